"""Pairs of images on which metrics.json was computed."""

import functools
from pathlib import Path

import numpy as np

from medgan_jax.data.phantom import phantom_image

EXPECTED = Path(__file__).parent / "metrics.json"
KINDS = ("other", "noisy", "dark", "same", "mirrored", "warm")
SHAPES = ((32, 3), (65, 3), (65, 1), (176, 3), (400, 3), (650, 3))  # 65 cannot be halved; MDSI shrinks 400 and 650


@functools.cache
def _phantoms(side: int) -> np.ndarray:
    return np.stack([phantom_image(i, seed=7, image_size=side) for i in range(4)])


def pairs(kind: str, size: int, channels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Two batches (3, size, size, channels), float32 in [0, 1], the first of phantoms, the second of `kind`."""
    side = 512 if size > 256 else 256
    phantoms = _phantoms(side)
    border = max(0, size - side)
    phantoms = np.pad(phantoms, ((0, 0), (0, border), (0, border), (0, 0)), mode="reflect")
    start = max(0, side - size) // 2
    phantoms = phantoms[:, start : start + size, start : start + size]
    images = phantoms.astype(np.float32) / 255
    if channels == 1:
        images = images.mean(-1, keepdims=True, dtype=np.float32)
    x = images[:3]
    noise = np.random.Generator(np.random.PCG64(size)).normal(0, 0.05, x.shape)
    y = {
        "other": images[1:],
        "noisy": np.clip(x + noise, 0, 1),
        "dark": 0.6 * x,
        "same": x,
        "mirrored": x[:, :, ::-1],
        "warm": x * np.asarray([0.9, 0.8, 0.6][:channels]),
    }[kind]
    return x, np.ascontiguousarray(y, np.float32)
