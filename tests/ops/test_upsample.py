"""A merged kernel computes the two operations that it stands for."""

import functools

import jax
import numpy as np
import pytest

from medgan_jax.ops.upsample import UPSAMPLING_SIZES, average_pooling_kernel, upsampling_kernel
from medgan_jax.ops.winograd import downsampling_convolution, upsampling_convolution

X = np.random.default_rng(0).normal(size=(2, 4, 6, 3)).astype(np.float32)


def kernel(size):
    return np.random.default_rng(1).normal(size=(size, size, 3, 4)).astype(np.float32)


@functools.partial(jax.jit, static_argnames="upsample")
def upsampled(x, kernel, upsample):
    return upsampling_convolution(x, upsampling_kernel(kernel, upsample))


def correlated(padded, k, height, width):
    """The sum over taps, of an image with its padding, in numpy."""
    taps = [(i, j) for i in range(len(k)) for j in range(len(k))]
    return sum(padded[:, i : i + height, j : j + width] @ np.asarray(k, np.float64)[i, j] for i, j in taps)


def padded(x):
    return np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def test_nearest_repeats_pixels_then_convolves():
    expected = correlated(padded(np.repeat(np.repeat(X, 2, 1), 2, 2)), kernel(3), 8, 12)
    found = upsampled(X, kernel(3), "nearest")
    np.testing.assert_allclose(found, expected, atol=3e-5)


def test_bilinear_puts_means_between_pixels_then_convolves():
    large = np.zeros((2, 11, 15, 3))  # with zeros beyond the edge, and means before the first pixel and after the last
    large[:, 2:-1:2, 2:-1:2] = X
    large[:, 1::2] = (large[:, :-2:2] + large[:, 2::2]) / 2
    large[:, :, 1::2] = (large[:, :, :-2:2] + large[:, :, 2::2]) / 2
    expected = correlated(large[:, 1:, 1:], kernel(2), 8, 12)
    found = upsampled(X, kernel(2), "bilinear")
    np.testing.assert_allclose(found, expected, atol=3e-5)


def test_average_pooling_comes_after_the_convolution():
    y = correlated(padded(X), kernel(3), 4, 6)
    expected = (y[:, ::2, ::2] + y[:, 1::2, ::2] + y[:, ::2, 1::2] + y[:, 1::2, 1::2]) / 4
    found = jax.jit(lambda x, k: downsampling_convolution(x, average_pooling_kernel(k)))(X, kernel(3))
    np.testing.assert_allclose(found, expected, atol=3e-5)


@pytest.mark.parametrize("upsample", UPSAMPLING_SIZES)
def test_a_constant_image_stays_constant_unless_transposed(upsample):
    """Away from its edges: no checkerboard."""
    flat = np.ones((1, 6, 6, 3), np.float32)
    inner = np.asarray(upsampled(flat, kernel(UPSAMPLING_SIZES[upsample]), upsample))[0, 2:-2, 2:-2]
    differences = np.abs(inner - inner[:1, :1]).max()
    assert differences > 1 if upsample == "transposed" else differences < 1e-5


def test_upsampling_kernel_refuses_another_size_or_kind():
    with pytest.raises(ValueError, match="no kernel of shape"):
        upsampling_kernel(kernel(4), "nearest")
    with pytest.raises(ValueError, match="bicubic"):
        upsampling_kernel(kernel(4), "bicubic")
