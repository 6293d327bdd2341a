"""tileir-opt as a program: input, output, exit status; its messages are tested in test/opt."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from test.imports import loaded_by
from tileir.passes.registry import NAMES, find_pass
from tileir.tools.diagnostics import Place
from tileir.tools.opt import main

FINE = "func.func @f() {\n  return\n}\n"
WRONG = "func.func @f() {\n  retrun\n}\n"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('loc("-":2:8)', ("-", 2, 8)),
        ('loc("a b.mlir":12:3)', ("a b.mlir", 12, 3)),
        ("model.py:3:4", ("model.py", 3, 4)),
        ('loc("linear"("model.py":3:4))', ("model.py", 3, 4)),
        ('loc(callsite("f"("b.py":2:3) at "c.py":4:5))', ("b.py", 2, 3)),
        ('loc(fused["a.py":1:2, "b.py":3:4])', ("a.py", 1, 2)),
        ('loc(fused<"pass">["a.py":1:2])', ("a.py", 1, 2)),
        ('loc("a.mlir":0:0)', None),
        ("loc(unknown)", None),
        ("target 'h100'", None),
        ("", None),
    ],
)
def test_places_of_locations(text: str, place: tuple[str, int, int] | None) -> None:
    assert Place.of(text) == (Place(*place) if place else None)


def test_help_lists_every_pass_with_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for name in NAMES:
        found = find_pass(name)
        _, _, rest = text.partition(f"\n  {name} ")
        assert rest.lstrip().startswith((found.__doc__ or "").splitlines()[0])
        for option in found.options():
            assert f" {option}=" in rest


def test_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(FINE.encode())))
    assert main(["-"]) == 0
    assert "func.func @f()" in capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(WRONG.encode())))
    assert main([]) == 1
    assert "<stdin>:2:3: error: " in capsys.readouterr().err


def test_an_output_file_is_written_after_success_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in.mlir", tmp_path / "out.mlir"
    source.write_text(WRONG)
    assert main([str(source), "-o", str(out)]) == 1
    assert not out.exists()
    source.write_text(FINE)
    assert main([str(source), "-o", str(out)]) == 0
    assert "func.func @f()" in out.read_text()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["folder", "missing.mlir", "bytes.mlir"])
def test_input_that_cannot_be_read(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "bytes.mlir").write_bytes(b"\xff\xfe")
    assert main([str(tmp_path / name)]) == 1
    assert f"tileir-opt: error: cannot read {tmp_path / name}: " in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["a.mlir", "b.mlir"], ["a.mlir", "--split-input-fil"]])
def test_arguments_that_make_no_sense(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert arguments[-1] in capsys.readouterr().err


def test_a_reader_that_stops_early(tmp_path: Path) -> None:
    """As in `tileir-opt big.mlir | head -1`: no traceback."""
    source = tmp_path / "in.mlir"
    source.write_text(FINE)
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "tileir.tools.opt", str(source)]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert done.stderr == b""
    assert done.returncode == 1


def test_a_start_loads_nothing_heavy() -> None:
    loaded = loaded_by("tileir.tools.opt")
    assert "tileir.passes.pipeline" in loaded
    assert not loaded & {"torch", "transformers", "typer", "networkx", "safetensors"}
    assert not [m for m in loaded if m.startswith(("tileir.codegen", "tileir.frontends"))]
