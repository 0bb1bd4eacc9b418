"""Sets of phantoms, and the ways to spoil them."""

import numpy as np
import pytest

from medgan_jax.data.phantom import phantom_image

SIZE = 20  # px, at which there is every metric but MS-SSIM


@pytest.fixture(scope="session")
def phantoms():
    """uint8, (92, 20, 20, 3)."""
    return np.stack([phantom_image(i, seed=11, image_size=SIZE) for i in range(92)])


def noisy(images):
    """With a grid, which the checkerboard index sees."""
    noise = np.random.default_rng(0).normal(0, 25, images.shape)
    noise[:, ::2, ::2] += 25
    return np.clip(images + noise, 0, 255).astype(np.uint8)


def dark(images):
    return (0.6 * images).astype(np.uint8)


def duplicated(images):
    return np.concatenate([images[:3]] * -(-len(images) // 3))[: len(images)]


SPOILT = {"noisy": noisy, "dark": dark, "duplicated": duplicated}
