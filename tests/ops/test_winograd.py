"""The two lowerings are one function: the same numbers, the same gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medgan_jax.ops import winograd
from medgan_jax.ops.winograd import (
    downsampling_convolution,
    reducing_convolution,
    upsampling_convolution,
    upsampling_kernel,
)


def cases(shape=(2, 6, 8, 3)):
    x = jax.random.normal(jax.random.key(1), shape)
    kernel = jax.random.normal(jax.random.key(2), (4, 4, shape[-1], 5))
    return x, kernel


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize(
    ("convolve", "shape"),
    [(downsampling_convolution, (2, 8, 12, 3)), (upsampling_convolution, (2, 4, 6, 3))],
)
def test_lowerings_agree_in_values_and_gradients(convolve, shape, tiled, monkeypatch):
    """As sums of patches and as Winograd's tiles, whatever the sizes at which either is chosen."""
    monkeypatch.setattr(winograd, "_MIN_TILES", 0 if tiled else 10**9)
    monkeypatch.setattr(winograd, "_MIN_CHANNELS", 0)
    x, kernel = cases(shape)

    def loss(x, kernel, lowering):
        return jnp.sum(jnp.sin(convolve(x, kernel, lowering=lowering)))

    def penalty(x, kernel, lowering):
        return jnp.sum(jnp.square(jax.grad(loss)(x, kernel, lowering)))

    native, matmul = (
        (
            convolve(x, kernel, lowering=way),
            *jax.grad(loss, (0, 1))(x, kernel, way),
            jax.grad(penalty, 1)(x, kernel, way) / 100,
        )
        for way in ("native", "matmul")
    )
    for ours, theirs in zip(matmul, native, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("convolve", "shape"),
    [(downsampling_convolution, (2, 32, 32, 64)), (upsampling_convolution, (2, 16, 16, 64))],
)
def test_tiles_take_9_products_for_16(convolve, shape):
    """On the layers where the time goes; also a check that they are used at all."""
    x, kernel = jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct((4, 4, 64, 64), jnp.float32)
    lowered = jax.jit(lambda x, k: convolve(x, k, lowering="matmul")).lower(x, kernel)
    products = 2 * 16 * 16 * 16 * 2 * 64 * 64  # multiplications and additions of the sum as written
    flops = lowered.compile().cost_analysis()["flops"]
    assert 9 / 16 * products < flops < 11 / 16 * products  # the transforms are additions too


def test_downsampling_is_the_sum_it_says():
    x, kernel = cases()
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    i, j = 1, 2
    expected = np.einsum("nhwc,hwcf->nf", padded[:, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4], kernel)
    np.testing.assert_allclose(downsampling_convolution(x, kernel)[:, i, j], expected, rtol=1e-4, atol=1e-4)


def test_upsampling_is_the_transpose_of_downsampling():
    x, kernel = cases()
    y = jax.random.normal(jax.random.key(3), (2, 3, 4, 5))
    forward = jnp.vdot(y, downsampling_convolution(x, kernel))
    backward = jnp.vdot(upsampling_convolution(y, kernel.swapaxes(2, 3)), x)
    np.testing.assert_allclose(forward, backward, rtol=1e-4)


@pytest.mark.parametrize("lowering", ["native", "matmul"])
def test_merged_convolutions_are_the_two_steps_they_stand_for(lowering):
    """Values and gradients of repeating pixels, then 3x3; and of 3x3, then averaging."""
    x, kernel = cases()[0], jax.random.normal(jax.random.key(2), (3, 3, 3, 5))
    same = winograd.convolution

    def repeated(x, kernel):
        return same(jnp.repeat(jnp.repeat(x, 2, 1), 2, 2), kernel)

    def enlarging(x, kernel, lowering):
        return upsampling_convolution(x, upsampling_kernel(kernel, "nearest"), lowering=lowering)

    def averaged(x, kernel):
        y = same(x, kernel)
        return (y[:, ::2, ::2] + y[:, 1::2, ::2] + y[:, ::2, 1::2] + y[:, 1::2, 1::2]) / 4

    for merged, plain in ((enlarging, repeated), (reducing_convolution, averaged)):

        def loss(x, kernel, convolve):
            return jnp.sum(jnp.sin(convolve(x, kernel)))

        def ours(x, kernel, merged=merged):
            return merged(x, kernel, lowering=lowering)

        np.testing.assert_allclose(ours(x, kernel), plain(x, kernel), rtol=1e-4, atol=1e-4)
        for a, b in zip(*(jax.grad(loss, (0, 1))(x, kernel, f) for f in (ours, plain)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_the_3x3_convolution_is_the_sum_it_says():
    x, kernel = cases()[0], jax.random.normal(jax.random.key(2), (3, 3, 3, 5))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = np.einsum("nhwc,hwcf->nf", padded[:, 2:5, 0:3], kernel)
    np.testing.assert_allclose(winograd.convolution(x, kernel)[:, 2, 0], expected, rtol=1e-4, atol=1e-4)


def test_unknown_lowering_is_refused():
    x, kernel = cases()
    with pytest.raises(ValueError, match="lowering must be"):
        downsampling_convolution(x, kernel, lowering="fast")


@pytest.mark.parametrize("lowering", ["native", "matmul"])
def test_bilinear_upsampling_puts_means_between_pixels_then_convolves(lowering):
    x = jax.random.normal(jax.random.key(0), (2, 5, 6, 3))
    kernel = jax.random.normal(jax.random.key(1), (2, 2, 3, 4))
    large = np.zeros((2, 13, 15, 3))  # with zeros beyond the edge, and means before the first pixel and after the last
    large[:, 2:-1:2, 2:-1:2] = x
    large[:, 1::2] = (large[:, :-2:2] + large[:, 2::2]) / 2
    large[:, :, 1::2] = (large[:, :, :-2:2] + large[:, :, 2::2]) / 2
    corners = [large[:, i : i + 10, j : j + 12] for i in (1, 2) for j in (1, 2)]
    expected = sum(c @ k for c, k in zip(corners, np.asarray(kernel, np.float64).reshape(4, 3, 4), strict=True))
    found = upsampling_convolution(x, upsampling_kernel(kernel, "bilinear"), lowering=lowering)
    np.testing.assert_allclose(found, expected, atol=3e-5)


def grid(upsample):
    """How much even and odd outputs of a constant image differ, away from its edges."""
    size = winograd.UPSAMPLING_SIZES[upsample]
    kernel = jax.random.normal(jax.random.key(1), (size, size, 2, 3))
    out = upsampling_convolution(jnp.ones((1, 6, 6, 2)), upsampling_kernel(kernel, upsample))
    inner = out[0, 2:-2, 2:-2]
    return float(jnp.max(jnp.abs(inner - inner[:1, :1])))


def test_a_flat_image_stays_flat_where_enlarging_comes_first():
    assert grid("transposed") > 1
    assert grid("nearest") < 1e-5
    assert grid("bilinear") < 1e-5


def test_upsampling_kernel_refuses_another_size():
    with pytest.raises(ValueError, match="no kernel of shape"):
        upsampling_kernel(jnp.ones((4, 4, 1, 1)), "nearest")
    with pytest.raises(ValueError, match="bicubic"):
        upsampling_kernel(jnp.ones((4, 4, 1, 1)), "bicubic")
