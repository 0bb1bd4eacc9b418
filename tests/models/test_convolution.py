"""The two lowerings are one function: the same numbers, the same gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medgan_jax.models import convolution
from medgan_jax.models.convolution import (
    downsampling_convolution,
    enlarging_convolution,
    reducing_convolution,
    upsampling_convolution,
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
    monkeypatch.setattr(convolution, "_MIN_TILES", 0 if tiled else 10**9)
    monkeypatch.setattr(convolution, "_MIN_CHANNELS", 0)
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
    same = convolution.convolution

    def repeated(x, kernel):
        return same(jnp.repeat(jnp.repeat(x, 2, 1), 2, 2), kernel)

    def averaged(x, kernel):
        y = same(x, kernel)
        return (y[:, ::2, ::2] + y[:, 1::2, ::2] + y[:, ::2, 1::2] + y[:, 1::2, 1::2]) / 4

    for merged, plain in ((enlarging_convolution, repeated), (reducing_convolution, averaged)):

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
    np.testing.assert_allclose(convolution.convolution(x, kernel)[:, 2, 0], expected, rtol=1e-4, atol=1e-4)


def test_unknown_lowering_is_refused():
    x, kernel = cases()
    with pytest.raises(ValueError, match="lowering must be"):
        downsampling_convolution(x, kernel, lowering="fast")


def enlarged(x, upsample):
    """Twice the size: each pixel doubled, or the mean of two neighbours between them, zeros beyond the edge."""
    for axis in (1, 2):
        if upsample == "nearest":
            between = x
        else:
            after = jnp.concatenate(
                [jax.lax.slice_in_dim(x, 1, None, axis=axis), 0 * x.take(jnp.array([0]), axis)], axis
            )
            between = (x + after) / 2
        x = jnp.stack([x, between], axis + 1).reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])
    return x


@pytest.mark.parametrize("lowering", ["native", "matmul"])
@pytest.mark.parametrize("upsample", ["nearest", "bilinear"])
def test_upsampling_kernel_enlarges_then_convolves(upsample, lowering):
    size = convolution.UPSAMPLING_SIZES[upsample]
    x = jax.random.normal(jax.random.key(0), (2, 5, 6, 3))
    kernel = jax.random.normal(jax.random.key(1), (size, size, 3, 4))
    large = enlarged(x, upsample)
    if upsample == "bilinear":  # before the first pixel comes the mean of it and what is beyond the edge
        first = [0.5 * jax.lax.slice_in_dim(large, 0, 1, axis=1)]
        large = jnp.concatenate([*first, large], axis=1)
        large = jnp.concatenate([0.5 * jax.lax.slice_in_dim(large, 0, 1, axis=2), large], axis=2)
        padding = ((0, 0), (0, 0))
    else:
        padding = ((1, 1), (1, 1))
    expected = jax.lax.conv_general_dilated(large, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    composed = convolution.upsampling_kernel(kernel, upsample)
    found = convolution.upsampling_convolution(x, composed, lowering=lowering)
    np.testing.assert_allclose(found, expected, atol=3e-5)


def grid(upsample):
    """How much even and odd outputs of a constant image differ, away from its edges."""
    size = convolution.UPSAMPLING_SIZES[upsample]
    kernel = jax.random.normal(jax.random.key(1), (size, size, 2, 3))
    out = convolution.upsampling_convolution(jnp.ones((1, 6, 6, 2)), convolution.upsampling_kernel(kernel, upsample))
    inner = out[0, 2:-2, 2:-2]
    return float(jnp.max(jnp.abs(inner - inner[:1, :1])))


def test_a_flat_image_stays_flat_where_enlarging_comes_first():
    assert grid("transposed") > 1
    assert grid("nearest") < 1e-5
    assert grid("bilinear") < 1e-5


def test_upsampling_kernel_refuses_another_size():
    with pytest.raises(ValueError, match="no kernel of shape"):
        convolution.upsampling_kernel(jnp.ones((4, 4, 1, 1)), "nearest")
    with pytest.raises(ValueError, match="bicubic"):
        convolution.upsampling_kernel(jnp.ones((4, 4, 1, 1)), "bicubic")
