"""Power iteration against the singular value decomposition, and against Flax's own layer."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medgan_jax.models.spectral_norm import SpectralNorm, largest_singular_value, power_iteration


def kernel(seed=0):
    return jax.random.normal(jax.random.key(seed), (4, 4, 3, 5))


def exact(k):
    return np.linalg.svd(np.reshape(k, (-1, k.shape[-1])), compute_uv=False)[0]


@functools.partial(jax.jit, static_argnames="training")
def estimate(spectral, k, *, training):
    """The singular value, and the vectors after that."""
    sigma, updated = SpectralNorm().apply({"spectral": spectral}, k, training=training, mutable=["spectral"])
    return sigma, updated["spectral"]


def iterate(spectral, k, times):
    for _ in range(times):
        sigma, spectral = estimate(spectral, k, training=True)
    return sigma, spectral


def initial(k):
    return SpectralNorm().init(jax.random.key(1), k, training=True)["spectral"]


def test_converges_to_the_singular_value():
    k = kernel()
    sigma, _ = iterate(initial(k), k, 100)
    assert sigma.shape == ()
    assert sigma == pytest.approx(exact(k), rel=1e-5)
    assert largest_singular_value(k, iterations=100) == pytest.approx(exact(k), rel=1e-5)


def test_follows_a_perturbed_kernel():
    k = kernel()
    _, spectral = iterate(initial(k), k, 100)
    moved = k + 0.01 * kernel(7)
    sigma, _ = iterate(spectral, moved, 1)
    assert sigma == pytest.approx(exact(moved), rel=2e-3)
    stale, _ = estimate(spectral, moved, training=False)
    assert abs(sigma - exact(moved)) < abs(stale - exact(moved))


def test_one_training_forward_is_one_iteration():
    k = kernel()
    start = initial(k)
    _, spectral = iterate(start, k, 1)
    u, v, _ = power_iteration(k.reshape(-1, 5), start["u"])
    np.testing.assert_allclose(spectral["u"], u, atol=1e-6)
    np.testing.assert_allclose(spectral["v"], v, atol=1e-6)


def test_frozen_in_evaluation():
    k = kernel()
    spectral = initial(k)
    sigma, after = estimate(spectral, k, training=False)
    jax.tree.map(np.testing.assert_array_equal, after, spectral)
    assert sigma == pytest.approx(float(spectral["v"] @ k.reshape(-1, 5) @ spectral["u"]), rel=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_the_gradient_is_the_singular_values_own(training):
    """The outer product of the vectors, which get no gradient themselves."""
    k = kernel()
    spectral = initial(k)
    gradient = jax.grad(lambda k: estimate(spectral, k, training=training)[0])(k)
    _, vectors = estimate(spectral, k, training=training)
    np.testing.assert_allclose(gradient.reshape(-1, 5), jnp.outer(vectors["v"], vectors["u"]), rtol=1e-4, atol=1e-6)


def test_agrees_with_flax():
    """linen.SpectralNorm around a bias-free convolution, from the same u, one iteration each."""
    x = jax.random.normal(jax.random.key(4), (2, 8, 8, 3))
    conv = nn.Conv(5, (4, 4), use_bias=False)
    theirs = nn.SpectralNorm(conv, n_steps=1)
    variables = theirs.init(jax.random.key(5), x, update_stats=False)
    k = variables["params"]["layer_instance"]["kernel"]
    u = variables["batch_stats"]["layer_instance/kernel/u"][0]
    v = power_iteration(k.reshape(-1, 5), u)[1]
    expected, stats = theirs.apply(variables, x, update_stats=True, mutable=["batch_stats"])
    sigma, ours = estimate({"u": u, "v": v}, k, training=True)
    np.testing.assert_allclose(conv.apply({"params": {"kernel": k / sigma}}, x), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours["u"], stats["batch_stats"]["layer_instance/kernel/u"][0], atol=1e-5)
