"""Mistakes as rows of a table: how to make one, and what must be said of it."""

import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import tileir
from test.models import arrays, tiny_llama
from test.unit.test_text import BYTES
from tileir.errors import TileirError
from tileir.frontends.torch_export import export_decode
from tileir.package import Package
from tileir.tools import cli, opt

CONTEXT = 32
Act = list[str] | Callable[[], object]


@dataclass(frozen=True)
class Mistake:
    """One row.

    prepare: makes the mistake's files in a folder that holds `m.tileir` and `model`; returns a command line or a call.
    words: what the message must hold: what, where, what is supported, what to do. status: the command's.
    """

    name: str
    prepare: Callable[[Path], Act]
    words: tuple[str, ...]
    status: int = 1

    def __str__(self) -> str:
        return self.name.replace(" ", "-")


@cache
def program() -> Any:
    """A small Llama's decode step."""
    return export_decode(tiny_llama(), CONTEXT)


@cache
def package(target: str = "virtual") -> Package:
    """It, compiled."""
    return tileir.compile(program(), target=target)


@cache
def tensors() -> dict[str, np.ndarray]:
    """Its weights."""
    return arrays(tiny_llama())


def write_model(folder: Path, **changes: Any) -> Path:
    """A model's folder: weights, config, tokenizer. changes: tensors instead of the model's; None leaves one out."""
    folder.mkdir(exist_ok=True)
    tiny_llama().config.save_pretrained(folder)
    held = {n: a for n, a in (tensors() | changes).items() if a is not None}
    save_file(held, folder / "model.safetensors")
    BYTES.save(str(folder / "tokenizer.json"))
    return folder


def each_mistake(rows: Sequence[Mistake]) -> Callable[..., None]:
    """A test of every row, in a folder of its own."""

    @pytest.mark.parametrize("row", rows, ids=str)
    def test_mistake(
        row: Mistake,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        folder = tmp_path / "here"
        folder.mkdir()
        check(row, folder, capsys, monkeypatch)

    return test_mistake


def check(
    row: Mistake, folder: Path, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch
) -> None:
    """Make the mistake: the message says what it must, and no file has come, gone or changed."""
    patch.chdir(folder)
    package().save(folder / "m.tileir")
    write_model(folder / "model")
    act = row.prepare(folder)
    before = _contents(folder)
    capsys.readouterr()
    said = _command(row, act, capsys) if isinstance(act, list) else _call(act)
    assert "Traceback" not in said
    assert [word for word in row.words if word not in said] == [], said
    assert _contents(folder) == before


def _command(row: Mistake, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command says on stderr; on stdout there must be nothing."""
    program, *rest = arguments
    main = {"tileir": cli.main, "tileir-opt": lambda given: sys.exit(opt.main(given))}[program]
    with pytest.raises(SystemExit) as ended:
        main(rest)
    out, said = capsys.readouterr()
    assert ended.value.code == row.status, said
    assert out == "" or not row.status
    if program == "tileir" and row.status:
        assert said[said.index("error: ") :].count("\nhint: ") == 1, said
    return said


def _call(act: Callable[[], object]) -> str:
    with pytest.raises(TileirError) as raised:
        act()
    assert raised.value.hint, "no hint"
    return str(raised.value)


def _contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }
