"""The passes' names, in the order of the journey, and passes that others add without touching tileir.

Ours are found by the naming rule. A pass of your own is a `Pass` in a file of your own, under `@register`; from then on
pipelines know its name. `load_passes` imports such a file by its path, as `tileir-opt --load-pass` does.
"""

import importlib
import importlib.util
import re
import sys
from pathlib import Path

from tileir.errors import PipelineError
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
LEVELS = ("any", "graph", "tile", "engine")
_added: dict[str, type[Pass]] = {}


def pass_names() -> tuple[str, ...]:
    """The names that pipelines know: ours in the journey's order, then those registered, in the order of that."""
    return (*NAMES, *_added)


def find_pass(name: str) -> type[Pass]:
    """The class of one of pass_names(); of ours flag `tile-graph`, file tile_graph.py, class TileGraphPass."""
    if name in _added:
        return _added[name]
    assert name in NAMES, name
    module = importlib.import_module(f"tileir.passes.{name.replace('-', '_')}")
    found = getattr(module, "".join(part.title() for part in name.split("-")) + "Pass")
    assert issubclass(found, Pass), name
    return found


def register(found: type[Pass]) -> type[Pass]:
    """Let pipelines know a pass of your own; a decorator, above `@dataclass(frozen=True)`. Returns the class.

    found: with `name`, `before`, `after` and `run`, as tileir.passes.base.Pass has them; its docstring's first line is
    its help. A file that is loaded again puts its classes in the place of the old ones. Raises PipelineError for a name
    that is taken or that no pipeline could spell, for levels that do not exist and for a class without `run`.
    """
    name = found.name
    if not re.fullmatch(r"[a-z][\w-]*", name):
        raise PipelineError(
            f"{found.__name__}: {name!r} is no name of a pass",
            hint='a small letter, then letters, digits and hyphens: name: ClassVar[str] = "my-pass"',
        )
    for level in (found.before, found.after):
        if level not in LEVELS:
            raise PipelineError(
                f"pass {name!r} stands at level {level!r}", hint=f"levels: {', '.join(LEVELS)}"
            )
    if found.run is Pass.run:
        raise PipelineError(
            f"pass {name!r} has no `run`", hint="run(self, module) rewrites the module in place"
        )
    if name in NAMES or (name in _added and source_of(_added[name]) != source_of(found)):
        raise PipelineError(
            f"there is a pass {name!r} already", hint=f"other names than {', '.join(pass_names())}"
        )
    _added[name] = found
    return found


def load_passes(path: str | Path) -> list[str]:
    """Run a Python file that registers passes; their names. Its folder is not put on the path of imports.

    Raises PipelineError for a file that cannot be read, that ends with an error or that registers nothing.
    """
    path = Path(path)
    module = f"tileir_loaded_{path.stem}"
    spec = importlib.util.spec_from_file_location(module, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise PipelineError(f"no Python file {path}", hint="name a file whose passes are @register")
    before = dict(_added)
    # A dataclass looks its module up while it is made.
    sys.modules[module] = loaded = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(loaded)
    except PipelineError:
        raise
    except (Exception, SystemExit) as error:
        raise PipelineError(f"{path} ends with {type(error).__name__}: {error}") from error
    found = [name for name, made in _added.items() if before.get(name) is not made]
    if not found:
        raise PipelineError(
            f"{path} registers no pass", hint="from tileir.passes.registry import register"
        )
    return found


def source_of(found: type[Pass]) -> str:
    """The file of a pass's class; "" where there is none, as in a notebook's cell."""
    return getattr(sys.modules.get(found.__module__), "__file__", None) or ""
