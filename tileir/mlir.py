"""The one place that imports the MLIR bindings.

`numba-cuda-mlir` carries upstream's Python bindings as a private package. They are loaded without running the
package's own front end (0.25 s instead of 0.7 s) and offered here under short names; the rest of tileir writes
`from tileir.mlir import ir, arith`. Upstream's modules are untyped: this is the only file that knows `Any`.
"""

import ctypes
import importlib
import importlib.machinery
import os
import sys
import types
from pathlib import Path
from typing import Any

_PARENT = "numba_cuda_mlir"


def _load_without_parent() -> None:
    """Put an empty parent package in place, so that its heavy `__init__` never runs."""
    if _PARENT in sys.modules:
        return
    spec = importlib.machinery.PathFinder.find_spec(_PARENT)
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("MLIR bindings missing: pip install numba-cuda-mlir==0.6.0")
    parent = types.ModuleType(_PARENT)
    parent.__path__ = list(spec.submodule_search_locations)
    parent.__spec__ = spec
    sys.modules[_PARENT] = parent
    # Keep this LLVM's symbols apart from any other LLVM in the process (torch, triton).
    mode = os.RTLD_NOW | os.RTLD_LOCAL | getattr(os, "RTLD_DEEPBIND", 0)
    libraries = Path(parent.__path__[0]) / "_mlir" / "_mlir_libs"
    for name in (
        "libMLIRPythonCAPI.so",
        "libMLIRPythonSupport-numba_cuda_mlir.so",
    ):
        ctypes.CDLL(str(libraries / name), mode=mode)


def _module(name: str) -> Any:
    return importlib.import_module(f"{_PARENT}._mlir.{name}")


_load_without_parent()

ir: Any = _module("ir")
passmanager: Any = _module("passmanager")
arith: Any = _module("dialects.arith")
ext: Any = _module("dialects.ext")
func: Any = _module("dialects.func")
gpu: Any = _module("dialects.gpu")
llvm: Any = _module("dialects.llvm")
nvvm: Any = _module("dialects.nvvm")
scf: Any = _module("dialects.scf")
vector: Any = _module("dialects.vector")


def announce_dialect(name: str) -> None:
    """Tell the bindings that a dialect has no module of theirs; they would look for it at every operation."""
    module = f"{_PARENT}._mlir.dialects.{name}"
    sys.modules.setdefault(module, types.ModuleType(module))


def new_context() -> Any:
    """A context with tileir's dialects loaded and threads off.

    MLIR's threads and verifiers written in Python wait for each other for ever.
    """
    from tileir.dialect import load_dialects

    context = ir.Context()
    context.enable_multithreading(False)
    with context:
        load_dialects()
    return context
