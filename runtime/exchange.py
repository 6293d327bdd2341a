"""The exchange memory, as a kernel leaves it: of every channel the packets of the last step that wrote it.

A packet is 8 bytes, little endian: the payload in the low word, the epoch that it belongs to in the high one
(docs/ir.md, epochs). A channel begins at byte `offset` and has `depth` copies, one behind the other; a step's is number
epoch % depth. A copy has the channel's `values` in order: two to a packet with payload "bf16x2", the even one in the
low half; one with "f32"; one 32-bit word with "record". These facts of each channel stand in manifest["channels"].
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

PACKET_BYTES = 8


def read_channel(
    memory: np.ndarray, channel: Mapping[str, Any], epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    """(values, epochs) of the copy that a step of this epoch has written; both [values].

    memory: the exchange memory, uint64. Values are f32, of a "record" int64; each has the epoch of its packet, uint32:
    where that is another one, the step has not written the value.
    """
    pairs = channel["payload"] == "bf16x2"
    packets = channel["values"] // 2 if pairs else channel["values"]
    begin = channel["offset"] // PACKET_BYTES + epoch % channel["depth"] * packets
    words = memory[begin : begin + packets]
    payload, epochs = words.astype(np.uint32), (words >> np.uint64(32)).astype(np.uint32)
    if pairs:
        halves = np.stack([payload << np.uint32(16), payload & np.uint32(0xFFFF0000)], -1)
        return halves.view(np.float32).reshape(-1), np.repeat(epochs, 2)
    if channel["payload"] == "f32":
        return payload.view(np.float32), epochs
    return payload.astype(np.int64), epochs
