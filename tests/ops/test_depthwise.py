"""Both lowerings of a depthwise convolution are one function: the same numbers, the same gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medgan_jax.ops.depthwise import depthwise_convolution

# Even and odd, not square; smaller than the kernel, one pixel.
SIZES = [(8, 5), (2, 1)]
convolution = jax.jit(depthwise_convolution, static_argnames=("stride", "lowering"))


def case(size, taps, dtype=jnp.float32):
    random = np.random.default_rng(1)
    return random.normal(size=(2, *size, 3)).astype(dtype), random.normal(size=(taps, taps, 3)).astype(dtype)


@pytest.mark.slow
@pytest.mark.parametrize(("taps", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_lowerings_agree_in_values_and_gradients(taps, stride):
    """And in the gradients of a function of the gradients, which penalties need."""

    def loss(arguments, lowering):
        return jnp.sum(jnp.sin(depthwise_convolution(*arguments, stride=stride, lowering=lowering)))

    def penalty(arguments, lowering):
        return sum(jnp.sum(jnp.square(gradient)) for gradient in jax.grad(loss)(arguments, lowering)) / 100

    def everything(arguments, lowering):
        out = depthwise_convolution(*arguments, stride=stride, lowering=lowering)
        return out, jax.grad(loss)(arguments, lowering), jax.grad(penalty)(arguments, lowering)

    cases = [case(size, taps) for size in SIZES]
    everywhere = jax.jit(lambda lowering: [everything(it, lowering) for it in cases], static_argnums=0)
    ours, native = everywhere("shifted"), everywhere("native")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, native)


@pytest.mark.parametrize("lowering", ["native", "shifted", None])
def test_it_is_the_sum_it_says(lowering):
    """At stride 2 an even size has its one line of padding at the end, an odd one has a line on each side."""
    x, kernel = case((8, 7), 3)
    out = convolution(x, kernel, stride=2, lowering=lowering)
    assert out.shape == (2, 4, 4, 3)
    first = np.einsum("nhwc,hwc->nc", x[:, 0:3, 0:2], kernel[:, 1:])
    last = np.einsum("nhwc,hwc->nc", x[:, 6:8, 5:7], kernel[:2, :2])
    np.testing.assert_allclose(out[:, 0, 0], first, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(out[:, 3, 3], last, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
def test_bfloat16_is_rounded_once(stride):
    """Not at each of the taps."""
    x, kernel = case((7, 6), 5, jnp.bfloat16)
    out = convolution(x, kernel, stride=stride, lowering="shifted")
    exact = convolution(x.astype(np.float32), kernel.astype(np.float32), stride=stride, lowering="native")
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(np.float32), exact, rtol=2**-8, atol=1e-5)


def test_unknown_lowering_is_refused():
    with pytest.raises(ValueError, match="lowering must be"):
        depthwise_convolution(*case((4, 4), 3), lowering="fast")
