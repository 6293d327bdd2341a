"""Commands on a machine that only runs packages: the MLIR bindings and torch cannot be imported there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import tileir
from test.mistakes import write_model
from test.models import tiny_llama
from test.runtime.test_report import PACKET, consumers, report
from tileir.frontends.torch_export import export_decode
from tileir.tools.figures import figures, row_bytes

# What runs there, on a made-up GPU: a step takes 1 µs, by clocks of 1 GHz.
THERE = """
import json, sys
import numpy as np

for name in ("numba_cuda_mlir", "tileir.mlir", "torch", "transformers"):
    sys.modules[name] = None  # importing it is an ImportError
from tileir.package import Package
from tileir.tools import cli


class Session:
    def __init__(self, package):
        self.manifest, self.launch = package.manifest, dict(package.manifest["launch"])

    def trace(self, position):
        m = self.manifest
        clocks = np.zeros((m["sms"], len(m["table"]) + 1, len(m["marks"])), np.int64)
        clocks[:, -1, :4] = 1, 1, 1001, 1001
        clocks[:, :-1, 0] = np.linspace(1, 1000, len(m["table"])).astype(int)
        return clocks

    def time_steps(self, steps, position):
        return 1.0

    def logits(self, ids):
        return np.ones((len(ids), 4))

    def generate(self, ids, new, stop_ids):
        yield from ids[:new]

    def close(self):
        pass


Package.load = lambda self, *_, **__: Session(self)
cli.main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package that traces, and a model's folder."""
    made = tmp_path_factory.mktemp("there")
    program = export_decode(tiny_llama(num_hidden_layers=1), 128)
    tileir.compile(program, target="h100", trace=True).save(made / "m.tileir")
    write_model(made / "model")
    return made


def run(folder: Path, *arguments: str) -> str:
    """What a command prints."""
    done = subprocess.run(
        [sys.executable, "-c", THERE, *arguments], capture_output=True, text=True, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_inspect(folder: Path) -> None:
    package = tileir.load_package(folder / "m.tileir")
    found = run(folder, "inspect", "m.tileir", "--context", "40", "--json")
    assert json.loads(found) == figures(package, 40)


def test_a_trace_is_recorded_and_read_again(folder: Path) -> None:
    given = ["--weights", "model", "--position", "40", "--save", "step.npz"]
    table = run(folder, "trace", "m.tileir", *given)
    assert run(folder, "trace", "step.npz", "-o", "step.json", "--picture", "step.png") == table
    package = tileir.load_package(folder / "m.tileir")
    read = sum(map(sum, row_bytes(package, 40)[0]))
    assert f"step 1.0 µs; floor {read / 3.12e6:.1f} µs: {read / 1e6:.1f} MB" in table


def test_tune(folder: Path) -> None:
    assert "wrote t.tileir" in run(folder, "tune", "m.tileir", "-o", "t.tileir", "--position", "64")


def test_run(folder: Path) -> None:
    given = ["--weights", "model", "--prompt", "ab", "--max-new-tokens", "2"]
    assert run(folder, "run", "m.tileir", *given) == "ab\n"


def test_postmortem(folder: Path) -> None:
    (folder / "hang.json").write_text(json.dumps(report(*consumers(0, PACKET, 3, 9))))
    assert "waited for a packet in epoch 9" in run(folder, "postmortem", "hang.json")


def test_what_tracing_costs_is_measured_there() -> None:
    block = THERE.partition("from tileir.package")[0]
    script = f"{block}from benchmarks.trace_cost import measure\n"
    root = Path(__file__).parent.parent.parent
    subprocess.run([sys.executable, "-c", script], check=True, cwd=root)
