"""Tuning on sessions that are made up: a step's time is a function of the launch parameters, plus noise and drift."""

import inspect
import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
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
from tileir.tools.cli import tune
from tileir.tools.drawn import DrawnWeights
from tileir.tools.search import Space, grid, search
from tileir.tools.tune import launch_space, tune_session

# Of neither of which anything special is known; and attention's, which stay.
LIMITS = {"tape_window": [1, 12], "some_bytes": [0, 1 << 20]}
START = {"tape_window": 3, "some_bytes": 32768, "splits": 1, "alone_bytes": 0, "fed_window": 3}
BEST = START | {"tape_window": 8, "some_bytes": 4096}
Price = Callable[[dict[str, int]], float]


def flat(launch: dict[str, int]) -> float:
    return 1.0


def bowl(launch: dict[str, int]) -> float:
    """Best at 8 and 4096."""
    window, some = launch["tape_window"], launch.get("some_bytes", 4095)
    return 1.0 + 0.01 * abs(window - 8) + 0.004 * abs(log2(some + 1) - 12)


@dataclass
class Session:
    """price: ms of a step. noise: of each launch, relative; drift: of each after the one before.

    constants: parameters whose values the driver assembles, in 3 s.
    """

    price: Price
    noise: float = 0.0005
    drift: float = 0.0
    change: float = 0.0
    launch: dict[str, int] = field(default_factory=lambda: dict(START))
    seconds: float = 0.0
    timed: list[dict[str, int]] = field(default_factory=list)
    seed: int = 0
    constants: tuple[str, ...] = ()
    closed: bool = False

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.seed)
        self.assembled = {self._constants()}
        self.steps = set[int]()

    def _constants(self) -> tuple[int, ...]:
        return tuple(self.launch[name] for name in self.constants)

    def time_steps(self, steps: int, position: int) -> float:
        self.timed.append(dict(self.launch))
        self.steps.add(steps)
        slower = (1 + self.drift) ** len(self.timed)
        ms = self.price(self.launch) * slower * (1 + self.noise * self._random.normal())
        self.seconds += ms * steps / 1e3
        if self._constants() not in self.assembled:
            self.assembled.add(self._constants())
            self.seconds += 3
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
    return search(session, Space(LIMITS), seconds, 1024, session.now)


def test_the_grid() -> None:
    assert grid(1, 4) == [1, 2, 3, 4]
    assert grid(0, 1024) == [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
    assert grid(5, 300) == [8, 16, 32, 64, 128, 256]
    assert grid(0, 1000, few=True) == [0, 1, 8, 64, 512]
    assert grid(1, 2, few=True) == [1, 2]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("drift", [0.0, 2e-4, -2e-4])
def test_the_optimum_is_found(seed: int, drift: float) -> None:
    session = Session(bowl, drift=drift, seed=seed)
    found = searched(session)
    assert found.finished
    assert found.launch == session.launch == BEST
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


@pytest.mark.parametrize("seconds", [3, 5, 8])
def test_time_is_kept(seconds: float) -> None:
    session = Session(bowl)
    found = searched(session, seconds)
    assert session.seconds <= seconds * 1.05
    assert not found.finished
    assert session.launch == found.launch
    assert found.ms <= found.first_ms * 1.01


def test_too_little_time_is_told() -> None:
    with pytest.raises(TileirError, match="1 seconds do not suffice to time 30 launches of 48 st"):
        searched(Session(bowl), 1)


def test_parameters_that_cannot_be_better_take_one_pair() -> None:
    def price(launch: dict[str, int]) -> float:
        return 1.0 if launch == START else 2.0

    session = Session(price)
    found = searched(session)
    assert len(session.timed) == 1 + 30 + 2 * len(found.trials)


def test_parameters_that_gain_nothing_take_three_pairs_or_all() -> None:
    session = Session(flat, noise=0.0)
    found = searched(session)
    assert len(session.timed) == 1 + 30 + 6 * len(found.trials)


@pytest.mark.parametrize(("ms", "steps"), [(0.3, 64), (1.0, 50), (3.6, 16), (40.0, 16)])
def test_launches_are_short(ms: float, steps: int) -> None:
    session = Session(lambda launch: ms, noise=0.0)
    searched(session, 30 * 16 * 40 / 1e3 + 5)
    assert session.seconds > 0
    assert session.steps == {64, steps}


def times(session: Session, name: str) -> list[int]:
    """The values of a parameter in the order of their first launches, the first one left out."""
    return list(dict.fromkeys(launch[name] for launch in session.timed))[1:]


ALL = {
    "tape_window": 3, "fed_window": 3, "splits": 4, "alone_bytes": 32768, "split_bytes": 1, "replicas": 1,
    "poll_sleep_ns": 0,
}  # fmt: skip
ALL_LIMITS = {
    "poll_sleep_ns": [0, 1000], "replicas": [1, 2], "tape_window": [1, 4], "fed_window": [3, 3], "splits": [1, 4],
    "alone_bytes": [0, 1 << 20], "split_bytes": [1, 1 << 20], "another": [0, 1],
}  # fmt: skip
CONSTANTS = ("replicas", "poll_sleep_ns")


def with_caches(*caches: dict[str, int], launch: dict[str, int]) -> Package:
    """A package of these launch parameters, whose rows read these caches."""
    held = package()
    rows = [{"weights": 4096}, *({"weights": 0, "cache": {"heads": 1} | c} for c in caches)]
    facts = {"launch": launch, "launch_limits": ALL_LIMITS, "row_reads": [rows]}
    return replace(held, manifest=held.manifest | facts)


def attention(size: int, most: int = 8192, splits: int = 4) -> dict[str, int]:
    return {"bytes": size, "most": most, "splits": splits}


def test_values_that_act_alike_are_tried_once() -> None:
    """At position 900, a head of 256 bytes a position is alone from 231 to 247 KB on, one of 128 from 115 to 123."""
    launch = ALL | {"another": 0}
    held = with_caches(attention(256), attention(128), attention(256), launch=launch)
    space = launch_space(held, 900)
    assert space.values("alone_bytes", launch) == [131072, 262144]
    assert space.values("alone_bytes", launch | {"alone_bytes": 1 << 20}) == [131072, 65536]
    assert space.values("splits", launch) == [3, 2, 1]
    assert space.values("another", launch) == [1]
    # A fed window beyond the other is that one.
    wide = replace(space, limits=ALL_LIMITS | {"fed_window": [1, 12]})
    assert wide.values("fed_window", launch) == [2, 1]
    # Rows that one split takes alone ask for no number of splits.
    assert space.values("splits", launch | {"alone_bytes": 262144}) == []
    assert space.values("splits", launch | {"alone_bytes": 131072}) == [3, 2, 1]


def test_windows_and_single_splits_bound_what_is_tried() -> None:
    launch = ALL | {"another": 0}
    window = with_caches(attention(256, most=99), attention(256, splits=1), launch=launch)
    space = launch_space(window, 900)
    # 99 rows are alone from 25,344 bytes on, at every position behind.
    assert space.values("alone_bytes", launch) == [16384]
    assert space.values("splits", launch | {"alone_bytes": 0}) == [3, 2, 1]
    single = launch_space(with_caches(attention(256, splits=1), launch=launch), 900)
    assert single.values("alone_bytes", launch) == single.values("splits", launch) == []
    two = launch_space(with_caches(attention(256, splits=2), launch=launch), 900)
    assert two.values("splits", launch) == [1]


def test_a_position_that_becomes_alone_within_a_launch_is_a_case_of_its_own() -> None:
    launch = ALL | {"another": 0}
    space = launch_space(with_caches(attention(256), launch=launch), 1000)
    assert space.values("alone_bytes", launch) == [262144, 524288]


@pytest.mark.parametrize("seed", range(3))
def test_what_is_assembled_comes_last_and_alike_values_are_not_timed(seed: int) -> None:
    """Also where the manifest names the constants first."""

    def price(launch: dict[str, int]) -> float:
        alone = launch["alone_bytes"] >= 256 * 963
        sleep = {0: 0.0, 64: -0.02}.get(launch["poll_sleep_ns"], 0.01)
        return 1 + 0.05 * (launch["tape_window"] != 4) + 0.03 * (not alone) + sleep

    session = Session(price, launch=ALL | {"another": 0}, constants=CONSTANTS, seed=seed)
    held = with_caches(attention(256), launch=dict(session.launch))
    found = search(session, launch_space(held, 900), 60, 900, session.now)
    assert found.finished
    best = ALL | {"another": 0, "tape_window": 4, "alone_bytes": 262144, "poll_sleep_ns": 64}
    assert found.launch == best
    # Once a constant has changed all are tried again: 131072 acts as 32768 did.
    tried = [t.value for t in found.trials if t.name == "alone_bytes"]
    assert tried == [262144, 131072]
    assert times(session, "another") == [1]
    constants = [tuple(t[name] for name in CONSTANTS) for t in session.timed]
    first = next(i for i, c in enumerate(constants) if c != (1, 0))
    before = session.timed[:first]
    assert {t["another"] for t in before} == {0, 1}
    assert {t["tape_window"] for t in before} == {1, 2, 3, 4}
    assert times(session, "poll_sleep_ns") == [1, 8, 64, 512]


# ms of a step, bytes of a kv head's old row, splits.
SHAPES = {"SmolLM2-135M": (0.31, 256, 18), "Llama-3.1-8B": (3.6, 512, 16)}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("noise", [0.0005, 0.002])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_default_time_suffices_for_real_models(shape: str, noise: float, seed: int) -> None:
    ms, size, splits = SHAPES[shape]

    def price(launch: dict[str, int]) -> float:
        factor = 1 + 0.01 * abs(launch["tape_window"] - 5) + 0.004 * abs(launch["splits"] - 12)
        return ms * (
            factor + 0.02 * (launch["poll_sleep_ns"] > 0) - 0.03 * (launch["replicas"] > 1)
        )

    launch = ALL | {"splits": splits}
    limits = {
        "tape_window": [1, 12], "splits": [1, splits], "alone_bytes": [0, 1 << 20],
        "split_bytes": [1, 1 << 20], "replicas": [1, 2], "poll_sleep_ns": [0, 1000],
    }  # fmt: skip
    held = with_caches(attention(size, splits=splits), launch=launch)
    held = replace(held, manifest=held.manifest | {"launch_limits": limits})
    session = Session(price, noise, launch=launch, constants=CONSTANTS, seed=seed)
    default = inspect.signature(tune).parameters["seconds"].default
    found = search(session, launch_space(held, 1024), default, 1024, session.now)
    assert found.finished
    assert session.seconds < default
    assert (found.launch["replicas"], found.launch["poll_sleep_ns"]) == (2, 0)
    assert abs(found.launch["tape_window"] - 5) <= 1


def tuned(monkeypatch: pytest.MonkeyPatch, session: Session) -> Any:
    monkeypatch.setattr(search, "__defaults__", (session.now,))
    held = Package(package().manifest | {"launch": START, "launch_limits": LIMITS}, package().files)
    return tune_session(held, session, 60, 0), held


def test_only_the_launch_of_a_package_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(bowl, change=0.005)
    result, held = tuned(monkeypatch, session)
    assert result.package.files == held.files
    assert result.package.manifest == held.manifest | {"launch": BEST}
    assert held.manifest["launch"] == START
    table = result.table()
    assert "kept" in table
    assert "ms a step with tape_window 8, some_bytes 4096, splits 1" in table


@pytest.mark.parametrize("change", [0.6, float("nan")])
def test_another_program_is_not_saved(change: float, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(bowl, change=change)
    with pytest.raises(TileirError, match=r"tape_window 8, some_bytes 4096, .* logits differ"):
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
