"""Weights and images on which inception.npz was computed: functions of their names."""

import zlib
from pathlib import Path

import numpy as np

EXPECTED = Path(__file__).parent / "inception.npz"
IMAGES = ("noise", "gradient", "large", "grey")


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """One array of the state dict, float32, such that activations neither die nor explode."""
    random = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    kind = name.rsplit(".", 1)[1]
    if len(shape) == 4:
        values = random.standard_normal(shape, np.float32) * np.sqrt(2 / np.prod(shape[1:]))
    elif kind in ("weight", "running_var"):
        values = random.uniform(0.5, 1.5, shape)
    else:
        values = random.normal(0, 0.2, shape)
    return values.astype(np.float32)


def image(name: str) -> np.ndarray:
    """One batch of one image, (1, height, width, 1 or 3), float32 in [0, 1]."""
    random = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    shape = {"noise": (40, 52, 3), "gradient": (52, 40, 3), "large": (340, 500, 3), "grey": (31, 30, 1)}[name]
    if name != "gradient":
        return random.uniform(size=(1, *shape)).astype(np.float32)
    rows, columns, channels = np.ogrid[: shape[0], : shape[1], : shape[2]]
    return (0.5 + 0.5 * np.sin(rows / 9 + columns * channels / 7))[None].astype(np.float32)
