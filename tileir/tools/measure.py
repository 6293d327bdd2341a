"""What a device makes of forced ids: logits, and what its stages publish at some positions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tileir.package import Session
from tileir.runtime.exchange import read_channel
from tileir.stages import CHOICES, Notes, Part, Parts, Stage


@dataclass(frozen=True)
class Measured:
    """logits: [len(ids), vocabulary] f32. parts: what stages published, by (position, stage).

    stale: of parts that a step should have left and has not, what is there instead.
    """

    logits: np.ndarray
    parts: Parts
    stale: Mapping[tuple[int, Stage], str]


def stops(count: int) -> list[int]:
    """Positions at which stages are compared: the last of `count`, half as far, and so on to the first."""
    found = [count - 1]
    while found[-1] > 0:
        found.append((found[-1] - 1) // 2)
    return found[::-1]


def measure(session: Session, ids: Sequence[int], wanted: Parts) -> Measured:
    """Force ids on a session. A reference device tells what stages publish; of a GPU the `wanted` parts are read."""
    if not session.device.startswith("reference"):
        return _of_gpu(session, ids, wanted)
    told: Any = session  # a ReferenceSession, by its device
    notes = Notes(stops(len(ids)))
    told.listen(notes.hear)
    try:
        # A value that is no number is told with the first stage that publishes it.
        with np.errstate(all="ignore"):
            logits = session.logits(ids)
    finally:
        told.listen(None)
    return Measured(logits, notes.parts(), {})


def _of_gpu(session: Any, ids: Sequence[int], wanted: Parts) -> Measured:
    """A launch ends at each position that has parts: its last step's packets are then in the exchange memory."""
    logits = np.asarray(session.logits(ids))
    parts: dict[tuple[int, Stage], Part] = {}
    stale: dict[tuple[int, Stage], str] = {}
    for position in sorted({p for p, _ in wanted}):
        memory, epoch = session.exchange(ids[: position + 1])
        mine = {k: part for k, part in wanted.items() if k[0] == position}
        found, lacking = parts_in(memory, epoch, session.manifest["channels"], mine)
        parts |= found
        stale |= lacking
    return Measured(logits, parts, stale)


def parts_in(
    memory: np.ndarray, epoch: int, channels: Mapping[str, Mapping[str, Any]], wanted: Parts
) -> tuple[dict[tuple[int, Stage], Part], dict[tuple[int, Stage], str]]:
    """(parts, stale ones) of a Measured, out of the exchange memory (runtime/exchange.py).

    memory: uint64. channels: a manifest's. wanted: parts at one position, whose values are not looked at.
    """
    parts: dict[tuple[int, Stage], Part] = {}
    stale: dict[tuple[int, Stage], str] = {}
    for (position, stage), part in wanted.items():
        if stage.kind == CHOICES:
            # Kernels have no such stage.
            continue
        values, epochs = (
            a[part.index] for a in read_channel(memory, channels[stage.channel], epoch)
        )
        other = epochs[epochs != epoch]
        if len(other):
            stale[position, stage] = (
                f"{len(other)} of {len(epochs)} values are of epoch {', '.join(map(str, np.unique(other)[:3]))}, "
                f"not of the step's, {epoch}"
            )
        else:
            parts[position, stage] = Part(part.index, values)
    return parts, stale
