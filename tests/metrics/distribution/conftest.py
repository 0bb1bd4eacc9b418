"""Tables of features, and images, for the metrics of sets."""

import numpy as np
import pytest

from medgan_jax.data.phantom import phantom_image


@pytest.fixture(scope="session")
def phantoms():
    """uint8, (40, 64, 64, 3)."""
    return np.stack([phantom_image(i, seed=3, image_size=64) for i in range(40)])


@pytest.fixture(scope="session")
def table():
    """A function that makes features without random numbers: the tables that other implementations were given."""

    def features(number, size, shift):
        i, j = np.arange(number)[:, None], np.arange(size)
        return np.sin(1.7 * i * (j + 1) + 0.3 * i**2 + shift * j) + shift * np.cos(j)

    return features
