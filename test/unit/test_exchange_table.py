"""The manifest's table of channels against what the reference device's SMs publish."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tileir
from test.models import arrays, tiny_llama
from tileir.frontends.torch_export import export_decode
from tileir.reference.engine import Sm
from tileir.scheduling.exchange_table import PACKET_VALUES, epochs_of, packets_of, writers
from tileir.target import TARGETS, target_text

MODELS: dict[str, dict[str, Any]] = {
    "two layers, ranges of tiles": {"vocab_size": 1100, "intermediate_size": 1040},
    "splits": {"num_hidden_layers": 1, "num_key_value_heads": 1, "max_position_embeddings": 1024},
}


@pytest.mark.parametrize("name", MODELS)
def test_writers_are_those_that_publish(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, context = tiny_llama(**MODELS[name]), 1024 if name == "splits" else 64
    package = tileir.compile(export_decode(model, context), target="virtual")
    published: dict[str, set[tuple[int, int]]] = {}
    publish = Sm.publish

    def noted(self: Any, channel: Any, *packets: Any, **how: Any) -> None:
        _epoch, _tokens, index, _values = packets
        at = published.setdefault(channel.name, set())
        at |= {(int(v), self.sm) for v in np.asarray(index).reshape(-1)}
        publish(self, channel, *packets, **how)

    monkeypatch.setattr(Sm, "publish", noted)
    # Enough positions for attention of one split alone, and of several.
    package.load(arrays(model), "reference").logits(list(range(40)))
    m = package.manifest
    # Where one split is always alone, nobody publishes parts, and combines do nothing.
    idle = (
        {} if name == "splits" else {c for c in m["channels"] if c.startswith(("partial", "att"))}
    )
    for channel, facts in m["channels"].items():
        values = PACKET_VALUES[facts["payload"]]
        said = {
            (int(packet) * values, int(w.sm[packet]))
            for w in writers(m, channel, m["sms"])
            for packet in np.flatnonzero(w.sm >= 0)
        }
        found = {p for p in published.get(channel, set()) if p[0] % values == 0}
        assert found <= said if channel in idle else found == said, channel


def test_splits_without_rows_publish_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of four splits, up to 16 old rows are one's alone, which finishes; more give each one at least 8."""
    quick = replace(TARGETS["virtual"], name="quick", hop_us=1e-3)
    (tmp_path / "quick.json").write_text(target_text(quick))
    model, publish = tiny_llama(**MODELS["splits"]), Sm.publish
    program, weights = export_decode(model, 1024), arrays(model)
    package = tileir.compile(program, target=str(tmp_path / "quick.json"))
    assert package.manifest["channels"]["partial_0"]["values"] == 4 * 4 * 18
    published: dict[int, set[int]] = {}

    def noted(
        self: Any, channel: Any, epoch: int, tokens: Any, index: Any, *rest: Any, **how: Any
    ) -> None:
        if channel.name == "partial_0":
            splits = set(np.asarray(index).reshape(-1) // 18 % 4)
            published[epoch] = published.get(epoch, set()) | splits
        publish(self, channel, epoch, tokens, index, *rest, **how)

    monkeypatch.setattr(Sm, "publish", noted)
    ids = list(range(40))
    made = package.load(weights, "reference").logits(ids)
    first = min(published) - 17
    found = [len(published.get(first + position, ())) for position in range(40)]
    assert found == [0] * 17 + [3] * 8 + [4] * 15
    assert all(splits == set(range(len(splits))) for splits in published.values())
    usual = tileir.compile(program, target="virtual").load(weights, "reference").logits(ids)
    np.testing.assert_allclose(made, usual, atol=1e-4)


def test_epochs_are_those_of_the_copy() -> None:
    channel = {"offset": 16, "depth": 2, "payload": "f32", "values": 2}
    memory = np.arange(12, dtype=np.uint32).view(np.uint64)
    assert epochs_of(packets_of(channel, 4, memory)).tolist() == [5, 7]
    assert epochs_of(packets_of(channel, 5, memory)).tolist() == [9, 11]
