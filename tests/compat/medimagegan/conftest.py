"""Images that stand for reals and fakes."""

import numpy as np
import pytest

from medgan_jax.data.phantom import phantom_image


@pytest.fixture(scope="session")
def phantoms():
    """uint8, (61, 32, 32, 3)."""
    return np.stack([phantom_image(i, seed=11, image_size=32) for i in range(61)])
