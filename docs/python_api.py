"""docs/python-api.md, made from the docstrings and signatures of what is public.

    python -m docs.python_api    # or: make docs

griffe reads the sources, so that signatures stand as they are written; ruff breaks the long ones. Of the passes, names
and options come from the registry.
"""

import functools
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe

import tileir
from tileir.frontends import torch_export
from tileir.passes.base import type_text, value_text
from tileir.passes.registry import NAMES, find_pass

PAGE = Path(__file__).with_name("python-api.md")
INTRODUCTION = """# Python API

Made from docstrings by `make docs`; a test compares it with them. Whatever is wrong with what you give raises a
`tileir.TileirError`, whose text says what is supported and what to do.
"""
ERRORS = ("TileirError", "PipelineError", "ContractError", "PackageError", "DeviceError")
# Of each module what its users call, in the order in which they meet it.
PUBLIC: dict[str, tuple[str, ...]] = {
    "tileir": tuple(name for name in tileir._LAZY if name not in ERRORS),
    "tileir.compiler": ("stop_at",),
    "tileir.errors": (*ERRORS, "DeviceHang"),
    "tileir.frontends.torch_export": tuple(torch_export.__all__),
    "tileir.target": ("find_target", "Target", "target_text"),
    "tileir.reference.session": ("ReferenceSession",),
    "tileir.reference.steps": ("Request",),
    "tileir.runtime.session": ("CudaSession",),
    "tileir.tools.tune": ("tune_package", "Tuned", "measure_target"),
    "tileir.tools.exact": ("exact_of", "load_exact", "ids_of", "Exact"),
    "tileir.tools.check": ("check_package",),
    "tileir.tools.bounds": ("Bounds",),
    "tileir.tools.check_report": ("Report", "StageError", "LogitError", "Rise"),
    "tileir.tools.search": ("Found", "Trial"),
    "tileir.passes.registry": ("register", "load_passes", "pass_names", "find_pass"),
    "tileir.passes.base": ("Pass",),
    "tileir.passes.pipeline": ("parse_pipeline", "run_pipeline"),
    "tileir.mlir": ("new_context",),
    "tileir.dialect.contracts": ("level_of", "check"),
    "tileir.dialect.attributes": (
        *("walk", "name_of", "get", "put", "build"),
        *("tensor", "shape_of", "element_of", "located"),
    ),
}


def document() -> str:
    """The whole page, as text."""
    parts = [INTRODUCTION, "".join(_contents())]
    for module, names in PUBLIC.items():
        parts.append(f"## `{module}`\n")
        for name in names:
            parts += _entry(_source(module, name))
    return "\n".join([*parts, "## Passes\n", *_passes()]) + "\n"


def _contents() -> Iterator[str]:
    for module, names in PUBLIC.items():
        yield f"- [`{module}`](#{_anchor(module)}): "
        yield ", ".join(f"[{name}](#{_anchor(name)})" for name in names) + "\n"
    yield "- [Passes](#passes)\n"


def _anchor(heading: str) -> str:
    """What a heading is called in links: small letters, no dots."""
    return heading.lower().replace(".", "")


@functools.cache
def _visited(module: str) -> griffe.Module:
    """A module's source, read and not run; found by Python, since parts of tileir lie beside it."""
    path = Path(inspect.getfile(importlib.import_module(module)))
    return griffe.visit(module, path, path.read_text(encoding="utf-8"))


def _source(module: str, name: str) -> Any:
    """The function or class as griffe has it, from where it is defined."""
    found = getattr(importlib.import_module(module), name)
    return _visited(found.__module__)[found.__qualname__]


def _entry(found: Any) -> Iterator[str]:
    """Heading, signature and docstring of a function or class, and of a class's methods."""
    yield f"### {found.name}\n"
    if found.is_function:
        yield _code(_signature(found))
        yield _prose(found, [p.name for p in found.parameters])
        return
    fields = [m for m in found.members.values() if _is_field(m)]
    methods = [m for m in found.members.values() if _is_method(m)]
    yield _code(_class(found, fields))
    made = found.members.get("__init__")
    yield _prose(found, [f.name for f in (made.parameters if made else fields)])
    for method in methods:
        yield f"#### {found.name}.{method.name}\n"
        yield _code(_signature(method))
        yield _prose(method, [p.name for p in getattr(method, "parameters", ())])


def _is_field(member: Any) -> bool:
    """An annotated attribute of the class, public."""
    own = member.is_attribute and "property" not in member.labels
    return own and member.annotation is not None and not member.name.startswith("_")


def _is_method(member: Any) -> bool:
    own = member.is_function or "property" in member.labels
    return own and not member.name.startswith("_")


def _signature(found: Any) -> str:
    if found.is_attribute:
        return f"{found.name}: {found.annotation}"
    decorators = "".join(f"@{d.value}\n" for d in found.decorators if str(d.value) == "classmethod")
    return f"{decorators}def {found.signature()}: ..."


def _class(found: Any, fields: list[Any]) -> str:
    decorators = "".join(f"@{d.value}\n" for d in found.decorators)
    bases = f"({', '.join(map(str, found.bases))})" if found.bases else ""
    lines = [_field(f) for f in fields]
    if "__init__" in found.members:
        lines.append(_signature(found.members["__init__"]))
    inside = "".join(f"    {line}\n" for line in lines) or "    ...\n"
    return f"{decorators}class {found.name}{bases}:\n{inside}"


def _field(found: Any) -> str:
    """As written; griffe keeps `ClassVar` only as a label that is missing."""
    of_class = found.value is not None and "instance-attribute" not in found.labels
    kind = f"ClassVar[{found.annotation}]" if of_class else str(found.annotation)
    return f"{found.name}: {kind}" + (f" = {found.value}" if found.value else "")


def _code(text: str) -> str:
    """A block of Python, as ruff formats it."""
    command = [sys.executable, "-m", "ruff", "format", "--isolated", "--line-length=100", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    return f"```python\n{done.stdout.strip()}\n```\n"


def _prose(found: Any, names: list[str]) -> str:
    """The docstring; names of parameters and fields that it explains become code."""
    assert found.docstring is not None, f"{found.path} has no docstring"
    text = found.docstring.value.strip()
    if names:
        one = "|".join(map(re.escape, names))
        listed = re.compile(rf"(?:(?<=^)|(?<=\s))((?:{one})(?:, (?:{one}))*):(?=\s)")
        text = listed.sub(lambda m: f"`{m[1].replace(', ', '`, `')}`:", text)
    return f"{text}\n"


def _passes() -> Iterator[str]:
    """A table of the passes in the pipeline's order."""
    yield "In the pipeline's order; `tileir-opt --help` prints the same, [journey.md](journey.md) explains them.\n"
    yield "| pass | levels | does | options (default) |"
    yield "|---|---|---|---|"
    for name in NAMES:
        found = find_pass(name)
        summary = (found.__doc__ or "").splitlines()[0]
        options = "<br>".join(
            f"`{key}`: {type_text(kind)} ({value_text(default)})"
            for key, (kind, default) in found.options().items()
        )
        yield f"| `{name}` | {found.before} → {found.after} | {summary} | {options} |"


if __name__ == "__main__":
    PAGE.write_text(document(), encoding="utf-8")
