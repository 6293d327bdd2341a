"""The exchange memory, as a kernel leaves it: of every channel the packets of the last step that wrote it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tileir.scheduling.exchange_table import PACKET_VALUES, epochs_of, packets_of


def read_channel(
    memory: np.ndarray, channel: Mapping[str, Any], epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    """(values, epochs) of the copy that a step of this epoch has written; both [values].

    memory: the exchange memory, uint64. channel: one of manifest["channels"] (scheduling/exchange_table.py). Values are
    f32, of a "record" int64; each has the epoch of its packet, uint32: where that is another one, the step has not
    written the value.
    """
    packets = packets_of(channel, epoch, memory)
    epochs = np.repeat(epochs_of(packets), PACKET_VALUES[channel["payload"]])
    payload = packets.astype(np.uint32)
    if channel["payload"] == "bf16x2":
        halves = np.stack([payload << np.uint32(16), payload & np.uint32(0xFFFF0000)], -1)
        return halves.view(np.float32).reshape(-1), epochs
    if channel["payload"] == "f32":
        return payload.view(np.float32), epochs
    return payload.astype(np.int64), epochs
