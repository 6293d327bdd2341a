"""benchmarks.side_by_side on made-up sessions."""

from pathlib import Path

import pytest

import tileir
from benchmarks import side_by_side
from test.models import tiny_llama
from test.sessions import MadeUpSession
from tileir.frontends.torch_export import export_decode


class Session(MadeUpSession):
    """Takes as many ms a step as its window has copies."""

    def time_steps(self, steps: int, _position: int) -> float:
        assert steps == side_by_side.STEPS
        return float(self.manifest["launch"]["tape_window"])


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
    class Noisy(Session):
        @property
        def noise(self) -> float:  # type: ignore[override]
            return 0.05 * self.manifest["launch"]["tape_window"]

    monkeypatch.setattr(side_by_side, "CudaSession", Noisy)
    sides = [side_by_side.parse_side(f"{folder}{change}") for change in ("", ":tape_window=5")]
    with pytest.raises(AssertionError, match="logits differ"):
        side_by_side.measure(sides, "tiny", [8], 3)


def test_a_side_names_numbers() -> None:
    assert side_by_side.parse_side("a/b:splits=3:x=4") == (Path("a/b"), {"splits": 3, "x": 4})
    with pytest.raises(ValueError, match="unpack"):
        side_by_side.parse_side("a:splits")
