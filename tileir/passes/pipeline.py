"""Textual pass pipelines that mix our passes with upstream's.

    builtin.module(graph-fuse,specialize-gpu{devices=1},canonicalize,func.func(cse))

Upstream cannot register passes written in Python, so the text is parsed here; a run of upstream's passes goes to one
PassManager as text. Each level's contract is checked before and after each of our passes.
"""

import shlex
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from tileir.dialect.contracts import check
from tileir.errors import ContractError, TileirError
from tileir.mlir import ir, passmanager
from tileir.passes.base import Pass
from tileir.passes.grammar import Item, Upstream, parse_pipeline
from tileir.passes.registry import NAMES, source_of

__all__ = ["parse_pipeline", "run_pipeline"]


def run_pipeline(
    module: Any,
    pipeline: str,
    *,
    on_pass: Callable[[str, float], None] | None = None,
    after_pass: Callable[[str, Any], None] | None = None,
) -> None:
    """Run a pipeline on a builtin.module, in place; needs its context to be current.

    on_pass: called with each pass's name and seconds. after_pass: called with its name and the module. A pass that
    fails leaves its input as a file, and the error names the command that reproduces it. Raises PipelineError for
    the text, ContractError for a module of another level, TileirError for what a pass refuses.
    """
    watch = _Watch(module, on_pass, after_pass)
    for batch in _batches(parse_pipeline(pipeline)):
        before = str(module)
        watch.start()
        try:
            _run(batch, module, watch)
        except TileirError as error:
            command = _save(batch, before)
            hint = f"{error.hint}\n  {command}" if error.hint else command
            raise type(error)(error.message, location=error.location, hint=hint) from error
        except Exception as error:
            error.add_note(_save(batch, before))
            raise


class _Watch:
    """Tells the callers when a pass is done, and how long it took."""

    def __init__(
        self,
        module: Any,
        on_pass: Callable[[str, float], None] | None,
        after_pass: Callable[[str, Any], None] | None,
    ) -> None:
        self._module, self._on_pass, self._after_pass = module, on_pass, after_pass

    def start(self) -> None:
        self._mark = time.perf_counter()

    def done(self, item: Item) -> None:
        seconds = time.perf_counter() - self._mark
        if self._on_pass is not None:
            self._on_pass(item.name, seconds)
        if self._after_pass is not None:
            self._after_pass(item.name, self._module)
        self.start()


def _batches(items: list[Item]) -> Iterator[list[Item]]:
    """Each of our passes alone, each run of upstream's together."""
    for upstream, group in groupby(items, lambda item: isinstance(item, Upstream)):
        batch = list(group)
        yield from [batch] if upstream else ([item] for item in batch)


def _run(batch: list[Item], module: Any, watch: _Watch) -> None:
    if not isinstance(batch[0], Pass):
        _run_upstream(batch, module, watch)
        return
    (item,) = batch
    assert isinstance(item, Pass)
    check(module, item.before)
    item.run(module)
    try:
        module.operation.verify()
        check(module, item.after)
    except (ir.MLIRError, ContractError) as error:
        raise AssertionError(f"{item.name} made invalid IR: {error}") from None
    watch.done(item)


def _run_upstream(batch: list[Item], module: Any, watch: _Watch) -> None:
    """One PassManager for the run; a pass of Python's between them keeps the time."""
    manager = passmanager.PassManager("builtin.module")
    done: list[Item] = []
    failures: list[Exception] = []

    def step(_: Any, external: Any) -> None:
        done.append(batch[len(done)])
        try:
            watch.done(done[-1])
        except Exception as error:  # must not unwind MLIR's C++ frames
            failures.append(error)
            external.signal_pass_failure()

    for item in batch:
        manager.add(item.text())
        manager.add(step, name="step")
    try:
        manager.run(module.operation)
    except ir.MLIRError as error:
        if failures:
            raise failures[0] from None
        said = [d.message for d in error.error_diagnostics]
        name = batch[len(done)].name
        raise TileirError(f"{name} failed{': ' + said[0] if said else ''}") from error


def _save(batch: list[Item], before: str) -> str:
    """Save what a pass that failed was given; returns a line with the command that runs it again."""
    folder = tempfile.mkdtemp(prefix="tileir-")
    path = Path(folder) / f"before-{batch[0].name.partition('(')[0]}.mlir"
    path.write_text(before, encoding="utf-8")
    text = f"builtin.module({','.join(item.text() for item in batch)})"
    added = [source_of(type(i)) for i in batch if isinstance(i, Pass) and i.name not in NAMES]
    words = [str(path), *(f"--load-pass={file}" for file in added if file)]
    return f"reproduce: tileir-opt {shlex.join(words)} --pass-pipeline={shlex.quote(text)}"
