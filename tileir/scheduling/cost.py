"""What a stage costs on a target, in µs. Coarse on purpose: it ranks candidates.

A stage streams what it owns at the target's measured rate and pays a hop for every exchange that it waits for.
"""

from tileir.scheduling.assign import MAX_SPLITS
from tileir.scheduling.pipeline import MAX_TAPE_SLOTS
from tileir.target import Target

ELEMENT_BYTES = 2
PACKET_BYTES = 8
# Every split is a record more that the combine polls: about 2 % of a hop.
SPLIT_HOPS = 0.02


def stream_us(target: Target, size: float) -> float:
    """Time to stream `size` bytes through all SMs."""
    return size / (target.stream_tbps * 1e6)


def contract_us(target: Target, rows: int, k: int) -> float:
    """Time of a contraction of `rows` weight rows over `k` values, and of its exchange.

    Remainders rotate over the SMs and rings take up the rest, so that a step streams evenly.
    """
    return stream_us(target, ELEMENT_BYTES * rows * k) + target.hop_us


def choose_windows(target: Target, tape_bytes: int, phases: int) -> tuple[int, int]:
    """Copies that may be on their way, and while the tape's ring is fed.

    tape_bytes: weights of a step, which all SMs share; phases: of a step. Where half a ring holds what a mean phase
    takes, a step waits for exchanges, memory has time to spare, and fewer copies are in the exchanges' way.
    """
    short = tape_bytes <= phases * target.sms * target.slot_bytes * MAX_TAPE_SLOTS // 2
    if short:
        return target.spare_window, target.spare_fed_window
    return target.window, target.fed_window


def attend_us(
    target: Target, kv_heads: int, head_size: int, splits: int, rows: int, results: int = 0
) -> float:
    """Time of split attention over `rows` old rows, of its exchange and its combine's.

    results: values that a split leaves for all heads, packets that are written and read once.
    """
    rounds = -(-kv_heads * splits // target.sms)
    share = 2 * ELEMENT_BYTES * head_size * -(-rows // splits) * rounds
    moved = share * target.sms + 2 * PACKET_BYTES * results * splits
    return stream_us(target, moved) + target.hop_us * (2 + SPLIT_HOPS * splits)


def usual_rows(context: int, window: int) -> int:
    """Old rows of a half-full context, of which attention sees `window` (0: all)."""
    return min(context // 2, window) if window else context // 2


def choose_splits(
    target: Target, kv_heads: int, head_size: int, rows: int, results: int = 0
) -> int:
    """The cheapest number of splits for `rows` old rows; no SM gets two tasks, if heads allow."""
    most = max(1, min(MAX_SPLITS, target.sms // kv_heads))
    return min(
        range(1, most + 1),
        key=lambda s: (attend_us(target, kv_heads, head_size, s, rows, results), s),
    )
