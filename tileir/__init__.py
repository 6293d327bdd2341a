"""tileir: an open compiler from torch.export to one persistent kernel."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tileir.compiler import Options as Options
    from tileir.compiler import compile as compile
    from tileir.compiler import compile_module as compile_module
    from tileir.errors import TileirError as TileirError
    from tileir.package import Package as Package
    from tileir.package import Session as Session
    from tileir.package import load_package as load_package

__version__ = "0.1.0"
_LAZY = {
    "Options": "tileir.compiler",
    "compile": "tileir.compiler",
    "compile_module": "tileir.compiler",
    "TileirError": "tileir.errors",
    "Package": "tileir.package",
    "Session": "tileir.package",
    "load_package": "tileir.package",
}


def __getattr__(name: str) -> Any:
    """Import the compiler only when it is used: the runtime needs no MLIR."""
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'tileir' has no attribute {name!r}")
