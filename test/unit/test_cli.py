"""The `tileir` command: exit status, messages, what is printed where."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tileir
from test.unit.test_text import BYTES
from tileir.tools import cli
from tileir.tools.text import Streamer


def command(*arguments: str) -> int:
    """The exit status of `tileir ARGUMENTS`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["tileir", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
    return int(caught.value.code or 0)


MISTAKES = [
    (["compile", ".", "--target", "h10"], "unknown target 'h10'\nhint: did you mean 'h100'?"),
    (["compile", ".", "--emit", "px"], "unknown stop 'px'\nhint: did you mean 'ptx'?"),
    (["compile", ".", "--print-ir-after", "tile-grap"], "did you mean 'tile-graph'?"),
    (["compile", ".", "-o", "gone/m.tileir"], "no folder gone"),
    (["compile", "gone", "-o", "m.tileir"], "gone holds no config.json"),
    (["inspect", "gone"], "no package at gone"),
    (["run", "gone", "--weights", ".", "--prompt", "a"], "no package at gone"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_mistakes_end_with_a_message(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(*arguments) == 1
    said = capsys.readouterr()
    assert said.err.startswith("error: ")
    assert message in said.err
    assert said.out == ""


class _Session:
    """Hands out tokens; what happens to it is kept."""

    def __init__(self, tokens: list[int], error: BaseException | None = None) -> None:
        self._tokens, self._error = tokens, error
        self.events: list[Any] = []

    def generate(self, ids: Any, max_new_tokens: int, stop_ids: Any = ()) -> Iterator[int]:
        self.events.append((list(ids), max_new_tokens, list(stop_ids)))
        try:
            yield from self._tokens
            if self._error is not None:
                raise self._error
        finally:
            self.events.append("ended")

    def close(self) -> None:
        self.events.append("closed")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer and a config."""
    BYTES.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    return tmp_path


def generate(folder: Path, session: _Session, monkeypatch: pytest.MonkeyPatch) -> int:
    facts = {"context": 64, "vocabulary": 300}
    package = SimpleNamespace(load=lambda weights, device: session, manifest=facts)
    monkeypatch.setattr(tileir, "load_package", lambda path: package)
    return command("run", "m", "--weights", str(folder), "--prompt", "ab", "--max-new-tokens", "9")


def test_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    session = _Session(BYTES.encode("né").ids)
    assert generate(folder, session, monkeypatch) == 0
    assert capsys.readouterr().out == "né\n"
    assert session.events == [(BYTES.encode("ab").ids, 9, [7]), "ended", "closed"]


@pytest.mark.parametrize(
    ("eos", "stops"), [(3, [3]), ([3, 4], [3, 4]), (None, [7]), ("missing", [7])]
)
def test_stop_ids_of_the_generation_config_come_first(
    eos: Any, stops: list[int], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if eos != "missing":
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    session = _Session([])
    assert generate(folder, session, monkeypatch) == 0
    assert session.events[0][2] == stops


def test_ctrl_c_ends_the_session(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = _Session(BYTES.encode("a").ids, KeyboardInterrupt())
    assert generate(folder, session, monkeypatch) == 130
    assert session.events[1:] == ["ended", "closed"]


def test_an_error_while_tokens_are_printed_ends_the_kernel_first(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = _Session(BYTES.encode("ab").ids)

    def push(self: Streamer, token: int) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(Streamer, "push", push)
    assert generate(folder, session, monkeypatch) == 130
    assert session.events[1:] == ["ended", "closed"]
