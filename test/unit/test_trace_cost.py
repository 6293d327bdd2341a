"""benchmarks.trace_cost on made-up sessions."""

from pathlib import Path

import numpy as np
import pytest

import tileir
from benchmarks import trace_cost
from test.models import tiny_llama
from test.sessions import MadeUpSession
from tileir.frontends.torch_export import export_decode


class Session(MadeUpSession):
    """Takes 1 ms a step, and 2 % more if it traces; a traced step 5 %."""

    @property
    def traces(self) -> bool:
        return bool(self.manifest["memory"]["trace"])

    def time_steps(self, _steps: int, _position: int) -> float:
        return 1.02 if self.traces else 1.0

    def trace(self, _position: int, late: int = 0) -> np.ndarray:
        """Rows of 1000 clocks; `late` clocks more until a row's warps have met."""
        m = self.manifest
        clocks = np.zeros((m["sms"], len(m["table"]) + 1, len(m["marks"])), np.int64)
        times = {"begin": 1, "received": 400, "met": 500 + late, "multiplied": 800, "waited": 10}
        rows = np.arange(len(m["table"])) * 1000
        for name, clock in times.items():
            at = np.full_like(rows, clock) if name == "waited" else rows + clock
            clocks[:, :-1, m["marks"].index(name)] = at
        clocks[:, -1, :4] = 0, 0, rows[-1] + 1000, rows[-1] + 1000
        return clocks

    def step_times(self, steps: int, _position: int) -> np.ndarray:
        return np.array([1.0] * (steps - 2) + [1.05 if self.traces else 1.0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("packages")
    program = export_decode(tiny_llama(num_hidden_layers=1), 64)
    for variant in trace_cost.VARIANTS:
        package = tileir.compile(program, target="h200", trace=variant == "traced")
        package.save(made / f"tiny-{variant}.tileir")
    return made


def test_costs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_cost, "CudaSession", Session)
    for record, position in zip(
        trace_cost.measure(folder, "tiny"), trace_cost.POSITIONS, strict=True
    ):
        assert (record["model"], record["position"]) == ("tiny", position)
        assert record["cost"] == pytest.approx(0.02)
        assert record["step_cost"] == pytest.approx(0.05)


def test_marks_out_of_order_are_not_timed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Late(Session):
        def trace(self, position: int, late: int = 301) -> np.ndarray:
            return super().trace(position, late)

    class Lost(Session):
        def trace(self, position: int, late: int = 0) -> np.ndarray:
            clocks = super().trace(position, late)
            clocks[7, 1, self.manifest["marks"].index("received")] = 0
            return clocks

    for session, said in (
        (Late, "'met' behind 'multiplied'"),
        (Lost, "contractions without 'received'"),
    ):
        monkeypatch.setattr(trace_cost, "CudaSession", session)
        with pytest.raises(AssertionError, match=said):
            trace_cost.measure(folder, "tiny")


def test_other_bits_are_not_timed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Noisy(Session):
        @property
        def noise(self) -> float:  # type: ignore[override]
            return float(self.traces)

    monkeypatch.setattr(trace_cost, "CudaSession", Noisy)
    with pytest.raises(AssertionError, match="tiny: other bits with tracing"):
        trace_cost.measure(folder, "tiny")
