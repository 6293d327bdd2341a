"""The `tileir` command: exit status, messages, what is printed where."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tileir
from test.mistakes import package, write_model
from test.models import tiny_llama
from test.unit.test_text import BYTES
from tileir.tools import cli
from tileir.tools.figures import figures
from tileir.tools.models import FAMILIES
from tileir.tools.text import Streamer


def command(*arguments: str) -> int:
    """The exit status of `tileir ARGUMENTS`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["tileir", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
    return int(caught.value.code or 0)


def test_help_says_what_the_exit_status_means(capsys: pytest.CaptureFixture[str]) -> None:
    assert command() == command("--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in ("0 all went well", "1 a mistake", "2 a command line", "130 interrupted"):
        assert words in text
    assert "--install-completion" in text


@pytest.mark.parametrize("name", ["compile", "run", "check", "inspect", "tune", "models"])
def test_every_command_has_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(name, "--help") == 0
    examples = capsys.readouterr().out.partition("Examples:")[2]
    assert examples.count(f"tileir {name}") >= 2


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--version") == 0
    assert capsys.readouterr().out == f"tileir {tileir.__version__}\n"


def test_shells_complete_commands(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setenv("_TILEIR_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "tileir comp")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert command() == 0
    assert capfd.readouterr().out.split() == ["compile"]


def test_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("models") == command("models", "--json") == 0
    people, _, machines = capsys.readouterr().out.partition("[")
    listed = [(f["name"], f["transformers_class"]) for f in json.loads(f"[{machines}")]
    assert listed == [(f.name, f.transformers_class) for f in FAMILIES]
    assert [line[:14].strip() for line in people.splitlines()] == [name for name, _ in listed]


def test_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(package().save(tmp_path / "m.tileir"))
    assert command("inspect", path, "--context", "7", "--json") == 0
    assert json.loads(capsys.readouterr().out) == figures(package(), 7)
    assert command("inspect", path, "--manifest") == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(package().manifest))
    assert command("inspect", path) == 0
    assert "15 rows of 9 bodies" in capsys.readouterr().out


def test_compile_tells_its_steps_unless_quiet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = str(write_model(tmp_path / "model")), str(tmp_path / "m.tileir")
    small = ["compile", model, "-o", out, "--target", "virtual", "--max-context", "32"]
    assert command(*small) == 0
    loud = capsys.readouterr()
    assert [n for n in ("import", "tile-graph", "verify-schedule") if n not in loud.err] == []
    assert f"wrote {out}" in loud.out
    assert command(*small, "--quiet") == 0
    quiet = capsys.readouterr()
    assert (quiet.out, "tile-graph" in quiet.err) == ("", False)
    assert tileir.load_package(out).files == package().files


def test_ctrl_c_leaves_nothing_half_written(tmp_path: Path) -> None:
    """A real one, as soon as the first step is told."""
    model, out = tmp_path / "model", tmp_path / "m.tileir"
    # Deep enough to be still at work when the signal arrives.
    tiny_llama(num_hidden_layers=64).save_pretrained(model)
    program = [sys.executable, "-m", "tileir.tools.cli", "compile", str(model), "-o", str(out)]
    # Who runs the tests in the background may have them ignore it, which children inherit.
    mine = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        running = subprocess.Popen(program, stderr=subprocess.PIPE, text=True, bufsize=1)
    finally:
        signal.signal(signal.SIGINT, mine)
    with running:
        assert running.stderr is not None
        first = next(line for line in running.stderr if " s\n" in line)
        running.send_signal(signal.SIGINT)
        rest = running.stderr.read()
    assert "import" in first
    assert running.returncode == 130, rest
    assert rest.endswith("interrupted\n")
    assert "Traceback" not in rest
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


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
    package = SimpleNamespace(load=lambda *_, **__: session, manifest=facts)
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
