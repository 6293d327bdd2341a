"""The passes' names, in the order of the journey; each is found by the naming rule."""

import importlib

from tileir.passes.base import Pass

NAMES = (
    "absorb-latents",
    "graph-fuse",
    "specialize-gpu",
    "tile-graph",
    "fuse-communication",
    "specialize-block",
    "select-sync",
    "specialize-warp",
    "schedule-pipeline",
    "outline-stages",
    "allocate-memory",
    "verify-schedule",
)


def find_pass(name: str) -> type[Pass]:
    """The class of one of NAMES: flag `tile-graph`, file tile_graph.py, class TileGraphPass."""
    assert name in NAMES, name
    module = importlib.import_module(f"tileir.passes.{name.replace('-', '_')}")
    found = getattr(module, "".join(part.title() for part in name.split("-")) + "Pass")
    assert issubclass(found, Pass), name
    return found
