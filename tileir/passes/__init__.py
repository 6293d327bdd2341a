"""Passes, one file each: graph → tile → engine (docs/journey.md has their order)."""
