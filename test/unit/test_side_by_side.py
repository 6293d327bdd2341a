"""benchmarks.side_by_side on made-up sessions."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tileir
from benchmarks import side_by_side
from test.models import tiny_llama
from tileir.frontends.torch_export import export_decode


class Session:
    """Takes as many ms a step as its window has copies."""

    noise = 0.0

    def __init__(self, package: Any, weights: Any) -> None:
        self.launch = dict(package.manifest["launch"])
        assert len(weights) > 5

    def logits(self, ids: list[int]) -> np.ndarray:
        return np.ones((len(ids), 8), np.float32) + self.noise * self.launch["tape_window"]

    def time_steps(self, steps: int, _position: int) -> float:
        assert steps == side_by_side.STEPS
        return float(self.launch["tape_window"])

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("packages")
    program = export_decode(tiny_llama(num_hidden_layers=1), 64)
    tileir.compile(program, target="h100").save(made / "tiny.tileir")
    return made


def test_sides_are_timed_with_their_launches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_by_side, "CudaSession", Session)
    sides = [side_by_side.parse_side(f"{folder}{change}") for change in ("", ":tape_window=5")]
    assert side_by_side.measure(sides, "tiny", [8, 16], 3) == [
        {"model": "tiny", "position": 8, "ms": [3.0, 5.0]},
        {"model": "tiny", "position": 16, "ms": [3.0, 5.0]},
    ]


def test_other_logits_are_not_timed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_by_side, "CudaSession", Session)
    monkeypatch.setattr(Session, "noise", 0.05)
    sides = [side_by_side.parse_side(f"{folder}{change}") for change in ("", ":tape_window=5")]
    with pytest.raises(AssertionError, match="logits differ"):
        side_by_side.measure(sides, "tiny", [8], 3)


def test_a_side_names_numbers() -> None:
    assert side_by_side.parse_side("a/b:splits=3:x=4") == (Path("a/b"), {"splits": 3, "x": 4})
    with pytest.raises(ValueError, match="unpack"):
        side_by_side.parse_side("a:splits")
