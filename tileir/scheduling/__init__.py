"""Scheduling as plain data and algorithms: no MLIR in here."""
