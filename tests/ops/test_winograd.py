"""All lowerings of a convolution are one function: the same numbers, the same gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medgan_jax.ops.winograd import convolution_3x3, downsampling_convolution, upsampling_convolution

pytestmark = pytest.mark.slow


def cases(shape=(2, 6, 8, 3), taps=4):
    random = np.random.default_rng(1)
    return tuple(random.normal(size=s).astype(np.float32) for s in (shape, (taps, taps, shape[-1], 5)))


@pytest.mark.parametrize(
    ("convolve", "shape", "lowering"),
    [
        (downsampling_convolution, (2, 8, 12, 3), "matmul"),
        (downsampling_convolution, (2, 8, 12, 3), "winograd"),
        (upsampling_convolution, (2, 4, 6, 3), "matmul"),
        (upsampling_convolution, (2, 4, 6, 3), "winograd"),
        (convolution_3x3, (2, 4, 6, 8), "matmul"),
        (convolution_3x3, (2, 4, 6, 3), "winograd"),
    ],
)
def test_lowerings_agree_in_values_and_gradients(convolve, shape, lowering):
    """And in the gradient of a function of the gradient, which penalties need."""

    def loss(x, kernel, lowering):
        return jnp.sum(jnp.sin(convolve(x, kernel, lowering=lowering)))

    def penalty(x, kernel, lowering):
        return jnp.sum(jnp.square(jax.grad(loss)(x, kernel, lowering))) / 100

    def everything(lowering):
        x, kernel = cases(shape, 3 if convolve is convolution_3x3 else 4)
        out = convolve(x, kernel, lowering=lowering)
        return out, jax.grad(loss, (0, 1))(x, kernel, lowering), jax.grad(penalty, 1)(x, kernel, lowering)

    ours, native = (jax.jit(everything, static_argnums=0)(way) for way in (lowering, "native"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, native)


@pytest.mark.parametrize(
    ("convolve", "shape", "taps", "share"),
    [
        (downsampling_convolution, (2, 32, 32, 64), 4, 9 / 16),
        (upsampling_convolution, (2, 16, 16, 64), 4, 9 / 16),
        (convolution_3x3, (2, 16, 16, 64), 3, 16 / 36),
    ],
)
def test_large_layers_take_fewer_products_on_the_cpu(convolve, shape, taps, share):
    x, kernel = jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct((taps, taps, 64, 64), jnp.float32)
    flops = jax.jit(convolve).lower(x, kernel).compile().cost_analysis()["flops"]
    products = 2 * 16 * 16 * taps**2 * 2 * 64 * 64  # multiplications and additions of the sum as written
    assert share * products < flops < (share + 2 / 16) * products  # the transforms are additions too


def test_downsampling_is_the_sum_it_says():
    x, kernel = cases()
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    i, j = 1, 2
    expected = np.einsum("nhwc,hwcf->nf", padded[:, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4], kernel)
    found = np.asarray(jax.jit(downsampling_convolution)(x, kernel))
    np.testing.assert_allclose(found[:, i, j], expected, rtol=1e-4, atol=1e-4)


def test_upsampling_is_the_transpose_of_downsampling():
    x, kernel = cases()
    y = np.random.default_rng(3).normal(size=(2, 3, 4, 5)).astype(np.float32)
    forward = np.vdot(y, jax.jit(downsampling_convolution)(x, kernel))
    backward = np.vdot(jax.jit(upsampling_convolution)(y, kernel.swapaxes(2, 3)), x)
    np.testing.assert_allclose(forward, backward, rtol=1e-4)


def test_unknown_lowering_is_refused():
    with pytest.raises(ValueError, match="lowering must be"):
        downsampling_convolution(*cases(), lowering="fast")
