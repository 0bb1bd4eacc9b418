"""Features: shapes, batches, and what they see; the pyramid against convolutions written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medgan_jax.data.phantom import phantom_image
from medgan_jax.metrics.distribution import features as module
from medgan_jax.metrics.distribution.features import PIXELS, PYRAMID

pytestmark = pytest.mark.slow

laplacian_pyramid = jax.jit(module.laplacian_pyramid, static_argnums=1)

KERNEL = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]) / 256


@pytest.mark.parametrize(("features", "length"), [(PIXELS, 16 * 16 * 3), (PYRAMID, 16 * 3 * 4)])
def test_shape_and_batches(phantoms, features, length):
    images = phantoms[:7]
    vectors = features.of(images, batch_size=3)
    assert vectors.shape == (7, length)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(features.of(images[::-1], batch_size=7)[::-1], vectors, atol=1e-5)
    assert features.of(images[..., :1]).shape == (7, length // 3)


@pytest.mark.parametrize("size", [16, 128])
def test_every_size(size):
    image = phantom_image(0, seed=0, image_size=size)[None]
    assert PIXELS.of(image, batch_size=1).shape == (1, 768)
    assert PYRAMID.of(image, batch_size=1).shape == (1, 48 * (size.bit_length() - 3))
    assert np.all(np.isfinite(PYRAMID.of(np.zeros_like(image), batch_size=1)))


def test_pixels_are_means(phantoms):
    expected = phantoms[:7].reshape(7, 16, 4, 16, 4, 3).mean((2, 4)).reshape(7, -1) / 255
    np.testing.assert_allclose(PIXELS.of(phantoms[:7]), expected, atol=1e-6)


def test_the_pyramid_sees_texture_where_pixels_do_not(phantoms):
    """A checkerboard of single pixels averages away at 16 px."""
    images = phantoms[:7]
    board = np.indices((64, 64)).sum(0) % 2
    textured = np.clip(images.astype(int) + 10 * (2 * board - 1)[None, :, :, None], 0, 255).astype(np.uint8)
    assert ((images >= 10) & (images <= 245)).mean() > 0.9
    assert np.abs(PIXELS.of(textured) - PIXELS.of(images)).max() < 0.02
    assert np.abs(PYRAMID.of(textured) - PYRAMID.of(images)).max() > 0.2


def smooth(image):
    """One channel (H, W) under the 5 x 5 filter, borders mirrored."""
    padded = np.pad(image, 2, mode="reflect")
    return np.array(
        [[(padded[y : y + 5, x : x + 5] * KERNEL).sum() for x in range(image.shape[1])] for y in range(image.shape[0])]
    )


def enlarge(image):
    spread = np.zeros((2 * image.shape[0], 2 * image.shape[1]))
    spread[::2, ::2] = image
    return 4 * smooth(spread)


def each_channel(function, images):
    return np.stack([np.stack([function(image[..., c]) for c in range(image.shape[2])], axis=-1) for image in images])


@pytest.mark.parametrize("channels", [1, 3])
def test_pyramid_levels_are_those_of_the_definition(channels):
    images = np.random.default_rng(0).uniform(0, 255, (2, 16, 24, channels))
    first, second, rest = laplacian_pyramid(jnp.asarray(images, jnp.float32), 2)
    half = each_channel(lambda x: smooth(x)[::2, ::2], images)
    quarter = each_channel(lambda x: smooth(x)[::2, ::2], half)
    np.testing.assert_allclose(first, images - each_channel(enlarge, half), atol=1e-3)
    np.testing.assert_allclose(second, half - each_channel(enlarge, quarter), atol=1e-3)
    np.testing.assert_allclose(rest, quarter, atol=1e-3)


def test_flat_images_have_empty_bands_exactly():
    images = np.broadcast_to(np.float32([0, 77, 255]), (2, 32, 32, 3))
    *bands, rest = laplacian_pyramid(images, 2)
    assert all(np.abs(band).max() == 0 for band in bands)
    np.testing.assert_array_equal(rest, images[:, :8, :8])


def test_pyramid_gradient_of_a_quadratic():
    """For a linear map A, x . grad |A x|^2 = 2 |A x|^2."""
    images = jnp.asarray(np.random.default_rng(2).normal(size=(1, 8, 8, 1)), jnp.float32)

    def energy(x):
        return sum((band**2).sum() for band in laplacian_pyramid(x, 1))

    value, gradient = jax.value_and_grad(energy)(images)
    assert float((images * gradient).sum()) == pytest.approx(2 * float(value), rel=1e-5)


@pytest.mark.parametrize("shape", [(1, 12, 8, 1), (1, 8, 8, 1)])
def test_sizes_that_cannot_be_halved(shape):
    with pytest.raises(ValueError, match="halved 3 times"):
        laplacian_pyramid(jnp.zeros(shape), 3)
