"""The speed benchmark's own arithmetic, where there is no GPU."""

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from benchmarks import decode, records, stream_read
from benchmarks.shapes import config_of
from tileir.errors import TileirError

KEYS = {
    *("gpu", "devices", "model", "dtype", "context", "ms", "p999_ms", "ceiling_tbps", "bytes"),
    *("share", "torch_compile_ms", "torch_compile_commit", "max_logit_error", "commit", "date"),
}


def record(model: str, context: int, **changes: Any) -> dict[str, Any]:
    facts = {"gpu": "NVIDIA H100", "devices": 1, "dtype": "bf16", "commit": "", "date": ""}
    figures = {"ms": 1.0, "p999_ms": None, "ceiling_tbps": 3.0, "bytes": 2_000_000_000}
    rest = {"share": 2 / 3, "max_logit_error": 0.1}
    peer = {"torch_compile_ms": None, "torch_compile_commit": None}
    return facts | {"model": model, "context": context} | figures | rest | peer | changes


class Memory:
    """A device whose memory is the host's."""

    def __init__(self, size: int) -> None:
        self.bytes = np.zeros(size, np.uint8)
        self.copies = self.pins = 0

    def pinned(self, size: int) -> np.ndarray:
        self.pins += 1
        return np.empty(size, np.uint8)

    def unpin(self, _array: np.ndarray) -> None:
        self.pins -= 1

    def begin_upload(self, array: np.ndarray, at: int) -> None:
        self.copies += 1
        assert len(self.bytes[at:]) >= len(array)
        self.bytes[at : at + len(array)] = array

    def synchronize(self) -> None:
        pass


class Session:
    """What `measure` and `timed` need of a session; a step takes 1 ms for every 1024 positions."""

    def __init__(self, context: int, states: int = 1 << 16) -> None:
        self.manifest = {"context": context, "memory": {"states": states}}
        self._device, self._states = Memory(states), 0
        self.asked: list[tuple[int, int]] = []

    def time_steps(self, steps: int, position: int) -> float:
        self.asked.append((steps, position))
        return (position + steps) / 1024

    def step_times(self, steps: int, position: int) -> np.ndarray:
        self.asked.append((steps, position))
        return np.linspace(0, 1, steps - 1)

    def close(self) -> None:
        pass


def test_bytes_of_llama_1b() -> None:
    # 1,235,814,400 parameters, the tied table once, and one row of it again; 2 · 8 · 64 values a layer and position.
    c = config_of("llama-3.2-1b")
    assert decode.step_bytes(c, 1) == 2 * (1_235_814_400 + 2048)
    assert decode.step_bytes(c, 33) - decode.step_bytes(c, 1) == 2 * 16 * 2 * 512 * 32


@pytest.mark.parametrize("name", decode.MODELS)
def test_bytes_are_those_of_the_weights(name: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    config = config_of(name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    table = model.get_input_embeddings().weight
    count = sum(p.numel() for p in model.parameters())
    if not config.tie_word_embeddings:
        count -= table.numel()
    assert decode.step_bytes(config, 1) == 2 * (count + config.hidden_size)


def test_new_records_replace_those_of_the_same_row(tmp_path: Path) -> None:
    path = tmp_path / "results" / "decode.json"
    records.merge(path, [record("a", 32), record("a", 1024), record("b", 32)])
    records.merge(path, [record("a", 1024, ms=0.5)])
    held = {(r["model"], r["context"]): r["ms"] for r in json.loads(path.read_text())}
    assert held == {("a", 32): 1.0, ("a", 1024): 0.5, ("b", 32): 1.0}


def test_torch_compile_that_was_not_run_again_keeps_its_time_and_commit(tmp_path: Path) -> None:
    path = tmp_path / "decode.json"
    first = {"torch_compile_ms": 2.0, "torch_compile_commit": "a", "commit": "a"}
    again = {"torch_compile_ms": 1.5, "torch_compile_commit": "b", "commit": "b"}
    records.merge(path, [record("m", 32, **first), record("m", 64, **first)])
    records.merge(path, [record("m", 32, commit="b"), record("m", 64, **again)])
    held = {r["context"]: r for r in json.loads(path.read_text())}
    assert [held[32][k] for k in first] == [2.0, "a", "b"]
    assert [held[64][k] for k in first] == [1.5, "b", "b"]


@pytest.mark.parametrize("gpu", ["H100", "H200"])
def test_committed_records_have_the_same_parts(gpu: str) -> None:
    held = json.loads(records.results_path(gpu).read_text())
    assert all(set(r) == KEYS for r in held)
    for r in held:
        assert r["bytes"] == decode.step_bytes(config_of(r["model"]), r["context"])
        share = r["bytes"] / (r["ms"] * 1e-3) / (r["ceiling_tbps"] * 1e12)
        assert r["share"] == pytest.approx(share)
        assert share <= 1
        assert (r["torch_compile_ms"] is None) == (r["torch_compile_commit"] is None)


def test_more_than_the_ceiling_is_no_share() -> None:
    row = record("a", 32)
    assert records.share(row, 2.0) == 1
    assert records.share(row, 1.99) is None
    text = records.row_text(row | {"share": None, "ceiling_tbps": 1.99})
    assert "1.0000 ms, more than the reading of 1.990 TB/s" in text


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_plot(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"decode.{suffix}"
    rows = [record("a", c, torch_compile_ms=2.0 if c == 32 else None) for c in (1, 32, 1024)]
    records.plot(rows, path)
    head = path.read_bytes()[:400]
    assert head.startswith(b"\x89PNG") or b"<svg" in head


def test_a_line_says_what_was_measured() -> None:
    assert "torch" not in records.row_text(record("a", 32))
    text = records.row_text(record("a", 32, torch_compile_ms=1.5, p999_ms=1.25))
    assert "1.0000 ms, 66.7% of 3.000 TB/s, 99.9 % 1.2500 ms" in text
    assert "torch.compile 1.5000 ms (1.50 ×)" in text


def test_a_gpu_without_a_list_is_refused() -> None:
    assert records.results_path("NVIDIA H200").name == "decode-h200.json"
    with pytest.raises(TileirError, match="A100"):
        records.results_path("NVIDIA A100-SXM4-80GB")


def test_all_of_kv_holds_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "NOISE_BYTES", 4096)
    session = Session(64, states=3 * 4096 + 100)
    decode.fill_states(session)  # type: ignore[arg-type]
    values = session._device.bytes.view(ml_dtypes.bfloat16).astype(np.float32)
    assert session._device.copies == 4
    assert session._device.pins == 0
    assert np.isfinite(values).all()
    assert values[-50:].all()
    assert 0.95 < values.std() < 1.05


def arguments() -> Namespace:
    peers = [(None, 512), ("another", 1024)]
    return Namespace(contexts=[128, 512, 1024, 4096], peer_contexts=peers, pinned_contexts=[1024])


def ceilings(*readings: float) -> Any:
    given = iter(readings)
    return lambda: next(given)


def run(
    path: Path, monkeypatch: pytest.MonkeyPatch, passed: bool, peer: Any, *readings: float
) -> bool:
    """`measure` of a made-up GPU, for as many models as there are pairs of readings of its ceiling; then `compare`."""
    found = {"passed": passed, "max_logit_error": 0.1}
    fakes = {
        "random_model": lambda _config: None,
        "TorchWeights": lambda _model: None,
        "CudaSession": lambda _package, _weights: Session(2048),
        "gate": lambda _session, _model: found,
        "ceiling_tbps": ceilings(*readings),
        "compiled_ms": peer,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(decode, name, fake)
    facts = {k: record("a", 1, commit="c")[k] for k in ("gpu", "devices", "commit", "date")}
    package: Any = None
    held = decode.Run(path)
    models = ("qwen3-4b", "qwen3-0.6b")[: max(1, len(readings) // 2)]
    passed = all([decode.measure(m, package, arguments(), facts, held) for m in models])
    decode.compare(held, arguments().peer_contexts)
    return passed


def test_a_model_that_fails_the_gate_has_no_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "decode.json"
    assert not run(path, monkeypatch, False, None)
    assert not path.exists()


def test_records_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "decode.json"
    assert run(path, monkeypatch, True, lambda _model, context: context / 8, 3e3, 3e3)
    rows = {r["context"]: r for r in json.loads(path.read_text())}
    assert all(set(r) == KEYS for r in rows.values())
    # The package holds 2048 positions; every row ends at its context.
    assert {c: r["ms"] for c, r in rows.items()} == {128: 0.125, 512: 0.5, 1024: 1.0}
    assert [r["torch_compile_ms"] for r in rows.values()] == [None, 64.0, None]
    assert [r["torch_compile_commit"] for r in rows.values()] == [None, "c", None]
    assert rows[1024]["p999_ms"] == pytest.approx(0.999)
    assert rows[128]["p999_ms"] is rows[512]["p999_ms"] is None
    assert rows[1024]["share"] == pytest.approx(rows[1024]["bytes"] / 1e-3 / 3e15)


@pytest.mark.parametrize("best", range(4))
def test_every_row_of_a_run_stands_beside_its_best_ceiling(
    best: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "decode.json"
    readings = [3.9e3, 4.1e3, 4.0e3, 3.8e3]
    readings[best] = 70.0e3
    assert run(path, monkeypatch, True, lambda *_: 1.0, *readings)
    rows = json.loads(path.read_text())
    assert {r["model"] for r in rows} == {"qwen3-4b", "qwen3-0.6b"}
    assert {r["ceiling_tbps"] for r in rows} == {70.0e3}
    assert all(r["share"] == records.share(r, 70.0e3) is not None for r in rows)


def test_a_step_above_the_ceiling_is_recorded_without_a_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "decode.json"
    # 8 GB in 0.125, 0.5 and 1 ms.
    assert run(path, monkeypatch, True, lambda *_: 1.0, 10.0, 20.0)
    shares = {r["context"]: r["share"] for r in json.loads(path.read_text())}
    assert shares[128] is None
    assert 0.3 < shares[1024] < 0.5


def test_a_peer_that_fails_leaves_our_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def peer(*_: Any) -> float:
        raise MemoryError

    path = tmp_path / "decode.json"
    with pytest.raises(MemoryError):
        run(path, monkeypatch, True, peer, 3e3, 3e3, 3e3, 3e3)
    # Also of the models behind: torch.compile comes last.
    assert [r["context"] for r in json.loads(path.read_text())] == [128, 512, 1024] * 2


def test_rows_of_torch_compile() -> None:
    assert decode.peer_row("32") == (None, 32)
    assert decode.peer_row("llama-3.2-1b:1") == ("llama-3.2-1b", 1)
    for text in ("gpt:1", "llama-3.2-1b", "1b:1"):
        with pytest.raises(ValueError, match=r"1b|gpt"):
            decode.peer_row(text)


def test_the_ceiling_is_the_best_of_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads follow each other; the first ones, whose clocks have yet to come up, do not count."""
    cupy = Cupy([2.0, 1.5, 1.0, 0.9, 1.1])
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    found = stream_read.ceiling_tbps(4.0, repeats=5)
    assert found == pytest.approx(4.0 / 0.9, rel=1e-4)
    assert cupy.reads == 5


class Cupy:
    """What stream_read needs of cupy; a read takes what is given, in ms."""

    uint8 = np.uint8

    def __init__(self, times: list[float]) -> None:
        self.times, self.reads = times, 0
        device = Namespace(attributes={"MultiProcessorCount": 132})
        event = Namespace(Event=lambda: Event(self), get_elapsed_time=lambda a, b: b.at - a.at)
        self.cuda = Namespace(Device=lambda: device, **vars(event))

    def zeros(self, size: int, _kind: Any) -> np.ndarray:
        return np.zeros(size // 2**20, np.uint8)

    def RawModule(self, **_: Any) -> Any:  # noqa: N802
        def read(*_: Any, **__: Any) -> None:
            self.reads += 1

        return Namespace(get_function=lambda _name: read)


class Event:
    def __init__(self, cupy: Cupy) -> None:
        self.cupy, self.at = cupy, float("nan")

    def record(self) -> None:
        self.at = sum(self.cupy.times[: self.cupy.reads])

    def synchronize(self) -> None:
        pass
