"""A merged kernel computes the two operations that it stands for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medgan_jax.ops.upsample import UPSAMPLING_SIZES, average_pooling_kernel, upsampling_kernel
from medgan_jax.ops.winograd import downsampling_convolution, upsampling_convolution

X = jax.random.normal(jax.random.key(0), (2, 4, 6, 3))


def kernel(size):
    return jax.random.normal(jax.random.key(1), (size, size, 3, 4))


def correlated(padded, k, height, width):
    """The sum over taps, of an image with its padding, in numpy."""
    taps = [(i, j) for i in range(len(k)) for j in range(len(k))]
    return sum(padded[:, i : i + height, j : j + width] @ np.asarray(k, np.float64)[i, j] for i, j in taps)


def padded(x):
    return np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def test_nearest_repeats_pixels_then_convolves():
    expected = correlated(padded(np.repeat(np.repeat(X, 2, 1), 2, 2)), kernel(3), 8, 12)
    found = upsampling_convolution(X, upsampling_kernel(kernel(3), "nearest"))
    np.testing.assert_allclose(found, expected, atol=3e-5)


def test_bilinear_puts_means_between_pixels_then_convolves():
    large = np.zeros((2, 11, 15, 3))  # with zeros beyond the edge, and means before the first pixel and after the last
    large[:, 2:-1:2, 2:-1:2] = X
    large[:, 1::2] = (large[:, :-2:2] + large[:, 2::2]) / 2
    large[:, :, 1::2] = (large[:, :, :-2:2] + large[:, :, 2::2]) / 2
    expected = correlated(large[:, 1:, 1:], kernel(2), 8, 12)
    found = upsampling_convolution(X, upsampling_kernel(kernel(2), "bilinear"))
    np.testing.assert_allclose(found, expected, atol=3e-5)


def test_average_pooling_comes_after_the_convolution():
    y = correlated(padded(X), kernel(3), 4, 6)
    expected = (y[:, ::2, ::2] + y[:, 1::2, ::2] + y[:, ::2, 1::2] + y[:, 1::2, 1::2]) / 4
    found = downsampling_convolution(X, average_pooling_kernel(kernel(3)))
    np.testing.assert_allclose(found, expected, atol=3e-5)


@pytest.mark.parametrize("upsample", UPSAMPLING_SIZES)
def test_a_constant_image_stays_constant_unless_transposed(upsample):
    """Away from its edges: no checkerboard."""
    k = upsampling_kernel(kernel(UPSAMPLING_SIZES[upsample]), upsample)
    inner = upsampling_convolution(jnp.ones((1, 6, 6, 3)), k)[0, 2:-2, 2:-2]
    differences = jnp.max(jnp.abs(inner - inner[:1, :1]))
    assert differences > 1 if upsample == "transposed" else differences < 1e-5


def test_upsampling_kernel_refuses_another_size_or_kind():
    with pytest.raises(ValueError, match="no kernel of shape"):
        upsampling_kernel(kernel(4), "nearest")
    with pytest.raises(ValueError, match="bicubic"):
        upsampling_kernel(kernel(4), "bicubic")
