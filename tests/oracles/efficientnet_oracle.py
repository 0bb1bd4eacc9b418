"""Images on which efficientnet_lite.npz was computed, and which activations it holds."""

import zlib
from pathlib import Path

import numpy as np

EXPECTED = Path(__file__).parent / "efficientnet_lite.npz"
SHAPES = {"square": (64, 64, 3), "wide": (96, 128, 3), "odd": (45, 33, 1)}


def image(name: str) -> np.ndarray:
    """One batch of one image, uint8 (1, height, width, 1 or 3): waves and noise."""
    random = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    rows, columns, channels = np.ogrid[tuple(slice(length) for length in SHAPES[name])]
    waves = np.sin(rows / 5 + channels) + np.sin(columns / 9 - rows / 11 * channels)
    return (127.5 + 50 * waves + random.normal(0, 12, SHAPES[name])).clip(0, 255).astype(np.uint8)[None]


def summary(x: np.ndarray) -> np.ndarray:
    """Of one image's activations (1, ..., C): the mean of each channel, and some 200 of them in a fixed order."""
    return np.concatenate([x.reshape(-1, x.shape[-1]).mean(0), x.ravel()[:: x.size // 200 | 1]])
