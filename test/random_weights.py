"""Random weights that any two machines draw alike; only NumPy is needed."""

import zlib
from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np


def random_weights(shapes: Mapping[str, Sequence[int]], seed: int) -> dict[str, np.ndarray]:
    """f32 arrays that bf16 holds exactly, by name; matrices keep the size of values, norms scale by about 1."""
    found = {}
    for name, shape in shapes.items():
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        deviation = 1.2 * shape[-1] ** -0.5 if len(shape) > 1 else 0.15
        noise = rng.standard_normal(shape, np.float32) * np.float32(deviation)
        values = noise if len(shape) > 1 or "bias" in name else 1 + noise
        found[name] = values.astype(ml_dtypes.bfloat16).astype(np.float32)
    return found
