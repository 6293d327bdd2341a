"""What a kernel that gave up left behind, for people."""

from collections import Counter
from typing import Any

import numpy as np


def describe_hang(words: np.ndarray, manifest: dict[str, Any]) -> str:
    """Who waited for what, most frequent first. words: [sms · (warps + 2), 8] uint32, see codegen/kernel.py."""
    warps, waits = manifest["warps"], manifest["report"]["waits"]
    lines: Counter[str] = Counter()
    example: dict[str, str] = {}
    for index, (code, row, epoch, detail, *_) in enumerate(words.tolist()):
        if not code:
            continue
        sm, warp = divmod(index, warps + 2)
        role = "consumer" if warp < warps else ("tape loader", "state loader")[warp - warps]
        body = manifest["row_bodies"][row % len(manifest["row_bodies"])]
        what = f"{role} in row {row} ({body}) waited for {waits[code - 1]} in epoch {epoch}"
        lines[what] += 1
        example.setdefault(what, f"SM {sm}, warp {warp}, number {detail}")
    head = "a wait on the device ran out of time; all blocks ended"
    table = [f"  {n:5d} × {what}; first: {example[what]}" for what, n in lines.most_common(12)]
    return "\n".join([head, *table])
