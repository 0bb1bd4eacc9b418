"""The two lowerings are one function: the same numbers, the same gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medgan_jax.models.convolution import downsampling_convolution, upsampling_convolution


def cases():
    x = jax.random.normal(jax.random.key(1), (2, 6, 8, 3))
    kernel = jax.random.normal(jax.random.key(2), (4, 4, 3, 5))
    return x, kernel


@pytest.mark.parametrize("convolution", [downsampling_convolution, upsampling_convolution])
def test_lowerings_agree_in_values_and_gradients(convolution):
    x, kernel = cases()

    def loss(x, kernel, lowering):
        return jnp.sum(jnp.sin(convolution(x, kernel, lowering=lowering)))

    native, matmul = (
        (convolution(x, kernel, lowering=way), *jax.grad(loss, (0, 1))(x, kernel, way)) for way in ("native", "matmul")
    )
    for ours, theirs in zip(matmul, native, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


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


def test_unknown_lowering_is_refused():
    x, kernel = cases()
    with pytest.raises(ValueError, match="lowering must be"):
        downsampling_convolution(x, kernel, lowering="fast")
