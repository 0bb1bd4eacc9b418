"""Pairs of images on which metrics.json was computed."""

from pathlib import Path

import numpy as np

from medgan_jax.data.phantom import phantom_image

EXPECTED = Path(__file__).parent / "metrics.json"
KINDS = ("other", "noisy", "dark", "same", "mirrored", "warm")
SHAPES = ((32, 3), (65, 3), (65, 1), (176, 3), (400, 3))  # 65 cannot be halved evenly; 400 is shrunk by MDSI first


def pairs(kind: str, size: int, channels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Two batches (3, size, size, channels), float32 in [0, 1], the first of phantoms, the second of `kind`."""
    side = 512 if size > 256 else 256
    centre = slice((side - size) // 2, (side - size) // 2 + size)
    phantoms = np.stack([phantom_image(i, seed=7, image_size=side)[centre, centre] for i in range(4)])
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
