"""The passes' names, in the order of the journey; each is found by the naming rule."""

import importlib
from difflib import get_close_matches

from tileir.errors import PipelineError
from tileir.passes.base import Pass

NAMES = (
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
    """The class of a pass: flag `tile-graph`, file tile_graph.py, class TileGraphPass.

    Raises PipelineError, with near matches, for a name that is no pass of ours.
    """
    if name not in NAMES:
        near = get_close_matches(name, NAMES, n=1)
        guess = f"did you mean {near[0]!r}? " if near else ""
        raise PipelineError(
            f"unknown pass {name!r}", hint=f"{guess}tileir-opt --help lists all passes"
        )
    module = importlib.import_module(f"tileir.passes.{name.replace('-', '_')}")
    found = getattr(module, "".join(part.title() for part in name.split("-")) + "Pass")
    assert issubclass(found, Pass), name
    return found
