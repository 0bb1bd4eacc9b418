"""Sets of phantoms, and the ways to spoil them."""

import numpy as np
import pytest

from medgan_jax.data.phantom import phantom_image

SIZE = 32


@pytest.fixture(scope="session")
def phantoms():
    """uint8, (100, 32, 32, 3)."""
    return np.stack([phantom_image(i, seed=11, image_size=SIZE) for i in range(100)])


def noisy(images):
    noise = np.random.default_rng(0).normal(0, 25, images.shape)
    return np.clip(images + noise, 0, 255).astype(np.uint8)


def blurred(images):
    padded = np.pad(images.astype(float), ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    return np.mean([padded[:, i : i + SIZE, j : j + SIZE] for i in range(5) for j in range(5)], 0).astype(np.uint8)


def dark(images):
    return (0.6 * images).astype(np.uint8)


def duplicated(images):
    return np.concatenate([images[:3]] * -(-len(images) // 3))[: len(images)]


def gridded(images):
    grid = np.zeros((SIZE, SIZE, 1))
    grid[::2, ::2] = 12
    return np.clip(images + grid, 0, 255).astype(np.uint8)


SPOILT = {"noisy": noisy, "blurred": blurred, "dark": dark, "duplicated": duplicated, "gridded": gridded}
