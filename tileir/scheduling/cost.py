"""What a stage costs on a target, in µs. Coarse on purpose: it ranks candidates."""

from tileir.scheduling.assign import MAX_SPLITS
from tileir.target import Target


def stream_us(target: Target, size: float, busy_sms: int) -> float:
    """Time to stream `size` bytes through `busy_sms` of the target's SMs."""
    return size / (target.stream_tbps * 1e6 * min(1.0, busy_sms / target.sms))


def attend_us(target: Target, kv_heads: int, head_size: int, splits: int, rows: int) -> float:
    """Time of split attention over `rows` old rows, and of its combine."""
    tasks = kv_heads * splits
    rounds = -(-tasks // target.sms)
    share = 4 * head_size * -(-rows // splits) * rounds
    per_sm = target.stream_tbps * 1e6 / target.sms
    # Every split is a record that the combine polls: about 2 % of a hop each.
    return share / per_sm + target.hop_us * (2 + 0.02 * splits)


def choose_splits(target: Target, kv_heads: int, head_size: int, context: int) -> int:
    """The cheapest number of splits for a half-full context."""
    most = max(1, min(MAX_SPLITS, target.sms // kv_heads))
    return min(
        range(1, most + 1),
        key=lambda s: (attend_us(target, kv_heads, head_size, s, context // 2), s),
    )
