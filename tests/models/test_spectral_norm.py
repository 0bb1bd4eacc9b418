"""Power iteration against the singular value decomposition, and against Flax's own layer."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medgan_jax.models import spectral_norm
from medgan_jax.models.spectral_norm import SpectralNorm, power_iteration

LAYER = SpectralNorm()


def kernel(seed=0):
    return jax.random.normal(jax.random.key(seed), (4, 4, 3, 5))


def largest_singular_value(k):
    return np.linalg.svd(np.reshape(k, (-1, k.shape[-1])), compute_uv=False)[0]


def normalise(spectral, k, *, training):
    """The kernel over its estimated singular value, and the estimate's vectors after that."""
    (sigma,), updated = LAYER.apply({"spectral": spectral}, k, training=training, mutable=["spectral"])
    return k / sigma, updated["spectral"]


def iterate(spectral, k, times):
    for _ in range(times):
        out, spectral = normalise(spectral, k, training=True)
    return out, spectral


def initial(k):
    return LAYER.init(jax.random.key(1), k, training=True)["spectral"]


def test_converges_to_the_singular_value():
    k = kernel()
    out, _ = iterate(initial(k), k, 100)
    assert largest_singular_value(out) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(out, k / largest_singular_value(k), rtol=1e-4)


def test_the_singular_value_from_afresh():
    for seed in range(3):
        assert spectral_norm.largest_singular_value(kernel(seed), iterations=100) == pytest.approx(
            largest_singular_value(kernel(seed)), rel=1e-5
        )


def test_follows_a_perturbed_kernel():
    k = kernel()
    _, spectral = iterate(initial(k), k, 100)
    moved = k + 0.01 * kernel(7)
    out, _ = iterate(spectral, moved, 1)
    assert largest_singular_value(out) == pytest.approx(1, abs=2e-3)
    stale, _ = normalise(spectral, moved, training=False)
    assert abs(largest_singular_value(out) - 1) < abs(largest_singular_value(stale) - 1)


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
    out, after = normalise(spectral, k, training=False)
    jax.tree.map(np.testing.assert_array_equal, after, spectral)
    sigma = spectral["v"] @ k.reshape(-1, 5) @ spectral["u"]
    np.testing.assert_allclose(out, k / sigma, rtol=1e-5)


def test_gradient_keeps_the_singular_values_own():
    """The derivative of W / sigma(W) along W is zero: scaling a kernel does not change its normalised form."""
    k = kernel()
    _, spectral = iterate(initial(k), k, 100)
    weights = kernel(3)

    def loss(k):
        return jnp.sum(weights * normalise(spectral, k, training=False)[0])

    along_k = jnp.vdot(jax.grad(loss)(k), k)
    assert abs(along_k) < 1e-4 * jnp.linalg.norm(jax.grad(loss)(k)) * jnp.linalg.norm(k)
    assert jnp.linalg.norm(jax.grad(loss)(k)) > 0.1


def test_no_gradient_through_the_iteration():
    k = kernel()
    spectral = initial(k)

    def loss(k, training):
        return jnp.sum(kernel(3) * normalise(spectral, k, training=training)[0])

    trained = jax.grad(loss)(k, True)
    _, spectral = iterate(spectral, k, 1)
    np.testing.assert_allclose(trained, jax.grad(loss)(k, False), rtol=1e-4, atol=1e-6)


def test_several_batches_are_as_many_iterations():
    k = kernel()
    spectral = initial(k)
    sigmas, updated = LAYER.apply({"spectral": spectral}, k, training=True, batches=3, mutable=["spectral"])
    for sigma in sigmas:
        out, spectral = normalise(spectral, k, training=True)
        np.testing.assert_allclose(k / sigma, out, rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, updated["spectral"], spectral)
    assert len(set(np.asarray(sigmas))) == 3


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
    normalised, ours = normalise({"u": u, "v": v}, k, training=True)
    np.testing.assert_allclose(conv.apply({"params": {"kernel": normalised}}, x), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours["u"], stats["batch_stats"]["layer_instance/kernel/u"][0], atol=1e-5)
