"""Weights and inputs on which projected.npz was computed, and what it keeps of an array."""

import zlib
from pathlib import Path

import numpy as np

EXPECTED = Path(__file__).parent / "projected.npz"
SIZE, LATENT, FEATURES, BATCH = 64, 8, 1, 4


def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """An array by its name in our variables, such as "gen/params/block_1/conv_0/kernel": far from initial values.

    But for the strength of noise, which is 0, as PyTorch has other noise.
    """
    random = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    leaf = name.rsplit("/", 1)[-1]
    if leaf == "strength":
        return np.zeros(shape, np.float32)
    if leaf in ("var", "scale"):
        return random.uniform(0.5, 1.5, shape).astype(np.float32)
    values = random.normal(size=shape)
    if leaf == "u":
        return (values / np.linalg.norm(values)).astype(np.float32)
    scale = np.prod(shape[:-1]) ** -0.5 if len(shape) > 1 else 0.2
    return (scale * values).astype(np.float32)


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """Reals (N, H, W, 3) in [-1, 1] and latents (N, L), float32."""
    random = np.random.Generator(np.random.PCG64(0))
    reals, latents = random.uniform(-1, 1, (BATCH, SIZE, SIZE, 3)), random.normal(size=(BATCH, LATENT))
    return np.float32(reals), np.float32(latents)


def summary(x: np.ndarray) -> np.ndarray:
    """Mean square, and some 100 values in a fixed order."""
    return np.concatenate([[np.mean(np.square(x))], x.ravel()[:: x.size // 100 | 1]]).astype(np.float32)
