"""Textual pass pipelines that mix our passes with upstream's.

    builtin.module(graph-fuse,specialize-gpu{devices=1},canonicalize,func.func(cse))

Upstream cannot register passes written in Python, so the text is parsed here; what is not ours goes to a PassManager
as text. Each level's contract is checked before and after each of our passes.
"""

import shlex
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lark

from tileir.dialect.contracts import check
from tileir.errors import PipelineError, TileirError
from tileir.mlir import ir, passmanager
from tileir.passes.base import Pass
from tileir.passes.registry import NAMES, find_pass

GRAMMAR = r"""
    start: "builtin.module" "(" [items] ")" | items
    items: item ("," item)*
    item: NAME [options] | NAME "(" items ")" -> nest
    options: "{" option* "}"
    option: NAME ["=" value]
    value: NAME | STRING | BRACED
    NAME: /[\w.\-]+/
    STRING: /"[^"]*"/
    BRACED: /\{[^{}]*\}/
    %import common.WS
    %ignore WS
"""


@dataclass(frozen=True)
class Upstream:
    """A pass, or nest of passes, of upstream MLIR, as text."""

    text: str
    name: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.text)


Item = Pass | Upstream


def parse_pipeline(text: str) -> list[Item]:
    """The passes of a pipeline, in order. Raises PipelineError with the place of what is wrong."""
    try:
        tree = lark.Lark(GRAMMAR, parser="earley", propagate_positions=True).parse(
            text or "builtin.module()"
        )
    except lark.exceptions.UnexpectedInput as error:
        at_end = isinstance(error, lark.exceptions.UnexpectedEOF)
        column = len(text) + 1 if at_end else max(error.column, 1)
        caret = " " * (column - 1) + "^"
        raise PipelineError(f"pipeline:1:{column}: cannot read it\n  {text}\n  {caret}") from None
    found = [child for child in tree.children if isinstance(child, lark.Tree)]
    return [_item(text, c) for items in found for c in items.children]


def _item(text: str, tree: Any) -> Item:
    name = str(tree.children[0])
    if tree.data == "nest":
        return Upstream(text[tree.meta.start_pos : tree.meta.end_pos])
    options = {}
    if tree.children[1] is not None:
        for option in tree.children[1].children:
            value = option.children[1]
            options[str(option.children[0])] = (
                "" if value is None else str(value.children[0]).strip('"')
            )
    if name in NAMES:
        return find_pass(name).from_options(options)
    try:
        whole = text[tree.meta.start_pos : tree.meta.end_pos]
        with ir.Context():
            passmanager.PassManager.parse(f"builtin.module({whole})")
    except ir.MLIRError:
        find_pass(name)
    except ValueError:
        find_pass(name)
    return Upstream(whole)


def run_pipeline(
    module: Any,
    pipeline: str,
    *,
    on_pass: Callable[[str, float], None] | None = None,
    after_pass: Callable[[str, Any], None] | None = None,
) -> None:
    """Run a pipeline on a builtin.module, in place; needs its context to be current.

    on_pass: called with each pass's name and seconds. after_pass: called with its name and the module. A pass that
    fails leaves its input as a file, and the error names the command that reproduces it.
    """
    for item in parse_pipeline(pipeline):
        start = time.perf_counter()
        before = str(module)
        try:
            _run(item, module)
        except TileirError as error:
            raise _reproducible(item, before, error) from None
        if on_pass is not None:
            on_pass(item.name, time.perf_counter() - start)
        if after_pass is not None:
            after_pass(item.name, module)


def _run(item: Item, module: Any) -> None:
    if isinstance(item, Upstream):
        passmanager.PassManager.parse(f"builtin.module({item.text})").run(module.operation)
        return
    check(module, item.before)
    item.run(module)
    try:
        module.operation.verify()
    except ir.MLIRError as error:
        raise AssertionError(f"{item.name} made invalid IR: {error}") from None
    check(module, item.after)


def _reproducible(item: Item, before: str, error: TileirError) -> TileirError:
    text = item.text() if isinstance(item, Pass) else item.text
    folder = tempfile.mkdtemp(prefix="tileir-")
    path = Path(folder) / f"before-{item.name.split('{')[0].replace('(', '-')}.mlir"
    path.write_text(before)
    command = f"tileir-opt {path} --pass-pipeline={shlex.quote(f'builtin.module({text})')}"
    hint = f"{error.hint}\n  reproduce: {command}" if error.hint else f"reproduce: {command}"
    return type(error)(error.message, location=error.location, hint=hint)
