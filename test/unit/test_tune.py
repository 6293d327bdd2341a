"""Tuning on sessions that are made up: a step's time is a function of the launch parameters, plus noise and drift."""

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from math import log2
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tileir
from test.imports import loaded_by
from test.mistakes import Mistake, each_mistake, package
from test.models import tiny_llama, tiny_mla, tiny_moe
from test.unit.test_cli import command
from tileir.errors import TileirError
from tileir.frontends.torch_export import export_decode
from tileir.package import Package
from tileir.runtime import probes
from tileir.runtime.weights_check import check_weights
from tileir.target import TARGETS, find_target
from tileir.tools.drawn import DrawnWeights
from tileir.tools.search import grid, search
from tileir.tools.tune import tune_session

LIMITS = {"tape_window": [1, 12], "alone_bytes": [0, 1 << 20]}
START = {"tape_window": 3, "alone_bytes": 32768}
Price = Callable[[dict[str, int]], float]


def flat(launch: dict[str, int]) -> float:
    return 1.0


def bowl(launch: dict[str, int]) -> float:
    """Best at 8 and 4096."""
    window, alone = launch["tape_window"], launch["alone_bytes"]
    return 1.0 + 0.01 * abs(window - 8) + 0.004 * abs(log2(alone + 1) - 12)


@dataclass
class Session:
    """price: ms of a step. noise: of each launch, relative; drift: of each after the one before."""

    price: Price
    noise: float = 0.0005
    drift: float = 0.0
    change: float = 0.0
    launch: dict[str, int] = field(default_factory=lambda: dict(START))
    seconds: float = 0.0
    timed: list[dict[str, int]] = field(default_factory=list)
    seed: int = 0
    closed: bool = False

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.seed)

    def time_steps(self, steps: int, position: int) -> float:
        self.timed.append(dict(self.launch))
        slower = (1 + self.drift) ** len(self.timed)
        ms = self.price(self.launch) * slower * (1 + self.noise * self._random.normal())
        self.seconds += ms * steps / 1e3
        return ms

    def logits(self, ids: Any) -> np.ndarray:
        assert max(ids) < 128
        values = np.outer(np.asarray(ids) + 1, np.linspace(-1, 1, 128)).astype(np.float32)
        if self.launch != START:
            values[-1] *= 1 + self.change
        return values

    def close(self) -> None:
        self.closed = True

    def now(self) -> float:
        return self.seconds


def searched(session: Session, seconds: float = 60) -> Any:
    return search(session, LIMITS, seconds, 1024, session.now)


def test_the_grid() -> None:
    assert grid(1, 4) == [1, 2, 3, 4]
    assert grid(0, 1024) == [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
    assert grid(5, 300) == [8, 16, 32, 64, 128, 256]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("drift", [0.0, 2e-4, -2e-4])
def test_the_optimum_is_found(seed: int, drift: float) -> None:
    session = Session(bowl, drift=drift, seed=seed)
    found = searched(session)
    assert found.finished
    assert found.launch == session.launch == {"tape_window": 8, "alone_bytes": 4096}
    assert {t.value for t in found.trials if t.name == "tape_window"} == set(range(1, 13))


def test_noise_changes_nothing() -> None:
    """Of 20 searches among equals, of some 32 values each, hardly one is fooled; nor by a drift."""
    fooled = 0
    for seed in range(20):
        found = searched(Session(flat, noise=0.02, drift=1e-4 * (seed % 3 - 1), seed=seed))
        fooled += found.launch != START
    assert fooled <= 1


def test_what_is_kept_depends_on_more_than_the_gain() -> None:
    """The same gain of 1 % counts where launches scatter by 0.1 %, and not where they do by 10 %."""

    def price(launch: dict[str, int]) -> float:
        return 0.99 if launch["tape_window"] == 5 else 1.0

    assert searched(Session(price, noise=0.001)).launch["tape_window"] == 5
    assert searched(Session(price, noise=0.1)).launch["tape_window"] == 3


@pytest.mark.parametrize("seconds", [4, 10, 20])
def test_time_is_kept(seconds: float) -> None:
    session = Session(bowl)
    found = searched(session, seconds)
    assert session.seconds <= seconds * 1.05
    assert not found.finished
    assert session.launch == found.launch
    assert found.ms <= found.first_ms * 1.01


def test_too_little_time_is_told() -> None:
    with pytest.raises(TileirError, match="1 seconds do not suffice to time 30 launches"):
        searched(Session(bowl), 1)


def test_parameters_that_cannot_be_better_take_one_pair() -> None:
    def price(launch: dict[str, int]) -> float:
        return 1.0 if launch == START else 2.0

    session = Session(price)
    found = searched(session)
    assert len(session.timed) == 30 + 2 * len(found.trials)


def tuned(monkeypatch: pytest.MonkeyPatch, session: Session) -> Any:
    monkeypatch.setattr(search, "__defaults__", (session.now,))
    held = Package(package().manifest | {"launch": START, "launch_limits": LIMITS}, package().files)
    return tune_session(held, session, 60, 0), held


def test_only_the_launch_of_a_package_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(bowl, change=0.005)
    result, held = tuned(monkeypatch, session)
    best = {"tape_window": 8, "alone_bytes": 4096}
    assert result.package.files == held.files
    assert result.package.manifest == held.manifest | {"launch": best}
    assert held.manifest["launch"] == START
    table = result.table()
    assert "kept" in table
    assert "ms a step with tape_window 8, alone_bytes 4096" in table


@pytest.mark.parametrize("change", [0.6, float("nan")])
def test_another_program_is_not_saved(change: float, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(bowl, change=change)
    with pytest.raises(TileirError, match="tape_window 8, alone_bytes 4096 logits differ"):
        tuned(monkeypatch, session)


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    held = tileir.compile(export_decode(tiny_llama(), 128), target="h100")
    session = Session(bowl, launch=dict(held.manifest["launch"]))
    monkeypatch.setattr(search, "__defaults__", (session.now,))
    path, out = str(held.save(tmp_path / "m.tileir")), str(tmp_path / "t.tileir")
    devices: list[Any] = []

    def load(self: Package, weights: Any, device: str) -> Session:
        devices.append((weights, device))
        return session

    monkeypatch.setattr(Package, "load", load)
    given = ["tune", path, "-o", out, "--position", "64", "--device", "cuda:1"]
    assert command(*given, "--weights", "w") == 0
    assert devices == [(Path("w"), "cuda:1")]
    assert session.closed
    assert f"wrote {out}" in capsys.readouterr().out
    assert tileir.load_package(out).manifest["launch"] == session.launch
    assert session.launch != held.manifest["launch"]
    assert command(*given) == 0
    assert isinstance(devices[1][0], DrawnWeights)


@pytest.mark.parametrize("model", [tiny_llama, tiny_moe, tiny_mla])
def test_drawn_weights_are_what_a_package_takes(model: Callable[[], Any]) -> None:
    """A session's checks pass, and what is packed of them are numbers."""
    held = tileir.compile(export_decode(model(), 32), target="virtual")
    drawn = DrawnWeights(held.packing)
    shapes, unused = check_weights(held.packing, drawn)
    assert not unused
    assert shapes == {n: a.shape for n, a in drawn.items()}
    with closing(held.load(drawn, "reference")) as session:
        logits = session.logits([1, 2, 3])
    assert np.isfinite(logits).all()
    assert logits.std() > 0.05


def test_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from test.runtime.test_probes import Gpu

    monkeypatch.setattr(probes, "Device", Gpu())
    path = tmp_path / "mine.json"
    assert command("tune", "--measure", str(path), "--base", "h200") == 0
    found = find_target(path)
    assert (found.name, found.sms, found.slot_bytes) == ("nvidia-h100-pcie", 114, 16384)
    assert f"wrote {path}" in capsys.readouterr().out
    assert json.loads(path.read_text())["hop_us"] == found.hop_us != TARGETS["h200"].hop_us


TUNE = ["tileir", "tune", "m.tileir", "--weights", "model"]


def tune_h100(folder: Path) -> list[str]:
    package("h100").save(folder / "m.tileir")
    return [*TUNE, "-o", "t"]


ROWS = [
    Mistake("nothing to tune", lambda f: ["tileir", "tune"], ("PACKAGE", "--measure"), 2),
    Mistake("both", lambda f: [*TUNE, "--measure", "t.json"], ("PACKAGE", "--measure"), 2),
    Mistake("no output", lambda f: TUNE, ("needs --output",), 2),
    Mistake("no time", lambda f: [*TUNE, "-o", "t", "--seconds", "0"], ("--seconds", "1"), 2),
    Mistake("negative position", lambda f: [*TUNE, "-o", "t", "--position", "-1"], ("--position",), 2),
    Mistake("weights to measure", lambda f: ["tileir", "tune", "--measure", "t.json", "--weights", "model"],
            ("--measure", "--weights"), 2),
    Mistake("output is a folder", lambda f: [*TUNE, "-o", "model"], ("model is a folder", "name a file")),
    Mistake("output in no folder", lambda f: [*TUNE, "-o", "gone/t"], ("no folder gone", "-o")),
    Mistake("no package", lambda f: ["tileir", "tune", "gone", "--weights", "model", "-o", "t"],
            ("no package at gone",)),
    Mistake("no kernel", lambda f: [*TUNE, "-o", "t"], ("'virtual'", "no kernel", 'target="h100"')),
    Mistake("short context", tune_h100,
            ("64 steps", "position 1024", "context of 32", "compile with more")),
    Mistake("unknown base", lambda f: ["tileir", "tune", "--measure", "t.json", "--base", "h10"],
            ("'h10'", "did you mean 'h100'?", ".json")),
    Mistake("base without kernels", lambda f: ["tileir", "tune", "--measure", "t.json", "--base", "virtual"],
            ("'virtual' has no kernels", "h100")),
    Mistake("no suffix", lambda f: ["tileir", "tune", "--measure", "t"], ("t is no name", "*.json")),
    Mistake("measured on the reference", lambda f: ["tileir", "tune", "--measure", "t.json", "--device", "reference"],
            ("'reference' cannot be timed", "cuda:N")),
    Mistake("no GPU", lambda f: ["tileir", "tune", "--measure", "t.json", "--device", "cuda:99"],
            ("no device cuda:99", "sees")),
    Mistake("target's file that is missing", lambda f: ["tileir", "compile", "model", "--target", "gone.json"],
            ("cannot read the target gone.json", "tileir tune --measure")),
    Mistake("target's file that is none", lambda f: ["tileir", "compile", "model", "--target", "model/config.json"],
            ("model/config.json: unknown field", "fields: name, sms")),
]  # fmt: skip


test_mistake = each_mistake(ROWS)


def test_tuning_needs_no_compiler() -> None:
    """A machine that measures or tunes has the driver, and neither torch nor MLIR."""
    loaded = loaded_by("tileir.tools.tune", "tileir.tools.cli", "tileir.runtime.probes")
    assert "tileir.tools.tune" in loaded
    assert not loaded & {
        "torch",
        "transformers",
        "numba_cuda_mlir",
        "tileir.mlir",
        "tileir.compiler",
    }
