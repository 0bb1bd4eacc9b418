"""The pyramid against convolutions written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medgan_jax.metrics.distribution import pyramid

laplacian_pyramid = jax.jit(pyramid.laplacian_pyramid, static_argnums=1)

KERNEL = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]) / 256


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
def test_levels_are_those_of_the_definition(channels):
    images = np.random.default_rng(0).uniform(0, 255, (2, 16, 24, channels))
    first, second, rest = laplacian_pyramid(jnp.asarray(images, jnp.float32), 2)
    half = each_channel(lambda x: smooth(x)[::2, ::2], images)
    quarter = each_channel(lambda x: smooth(x)[::2, ::2], half)
    np.testing.assert_allclose(first, images - each_channel(enlarge, half), atol=1e-3)
    np.testing.assert_allclose(second, half - each_channel(enlarge, quarter), atol=1e-3)
    np.testing.assert_allclose(rest, quarter, atol=1e-3)


def test_images_come_back():
    images = np.random.default_rng(1).uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)
    *bands, whole = laplacian_pyramid(images, 3)
    for band in reversed(bands):
        whole = np.asarray(band) + each_channel(enlarge, np.asarray(whole))
    np.testing.assert_allclose(whole, images, atol=1e-3)


def test_flat_images_have_empty_bands():
    images = np.broadcast_to(np.float32([0, 77, 255]), (2, 32, 32, 3))
    *bands, rest = laplacian_pyramid(images, 2)
    for band in bands:
        assert np.abs(band).max() == 0
    np.testing.assert_array_equal(rest, images[:, :8, :8])


def test_gradient_of_a_quadratic():
    """For a linear map A, x . grad |A x|^2 = 2 |A x|^2."""
    images = jnp.asarray(np.random.default_rng(2).normal(size=(1, 8, 8, 1)), jnp.float32)

    def energy(x):
        return sum((band**2).sum() for band in laplacian_pyramid(x, 1))

    value, gradient = jax.value_and_grad(energy)(images)
    assert float((images * gradient).sum()) == pytest.approx(2 * float(value), rel=1e-5)


def test_no_levels_is_the_image():
    images = jnp.ones((1, 7, 7, 1))
    (rest,) = laplacian_pyramid(images, 0)
    np.testing.assert_array_equal(rest, images)


@pytest.mark.parametrize("shape", [(1, 12, 8, 1), (1, 8, 8, 1)])
def test_sizes_that_cannot_be_halved(shape):
    with pytest.raises(ValueError, match="halved 3 times"):
        laplacian_pyramid(jnp.zeros(shape), 3)
