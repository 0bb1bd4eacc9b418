"""The gradient of batch normalisation is written by hand: it is that of the formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medgan_jax.models.batch_norm import EPSILON, MOMENTUM, BatchNorm

LABELS = np.asarray([0, 2, 2, 1])


@pytest.mark.parametrize("num_classes", [0, 3])
def test_gradients_are_those_of_the_formula(num_classes):
    """To image, scale and bias, through what is returned and through the running statistics."""
    random = np.random.default_rng(0)
    x = random.normal(1, 2, (4, 3, 5, 6)).astype(np.float32)
    shape = (num_classes, 6) if num_classes else (6,)
    params = {"scale": random.normal(1, 0.3, shape), "bias": random.normal(0, 1, shape)}
    params = jax.tree.map(jnp.float32, params)
    labels = LABELS if num_classes else None

    def module(x, params):
        stats = {"mean": jnp.zeros(6), "var": jnp.zeros(6)}
        variables = {"params": params, "batch_stats": stats}
        return BatchNorm(num_classes).apply(variables, x, labels, training=True, mutable=["batch_stats"])

    def formula(x, params):
        rows = LABELS if num_classes else np.zeros(4, int)
        mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        scale, bias = (params[name][rows][:, None, None] for name in ("scale", "bias"))
        out = (x - mean) / jnp.sqrt(var + EPSILON) * scale + bias
        new = {"mean": mean, "var": var * x[..., 0].size / (x[..., 0].size - 1)}
        return out, {"batch_stats": jax.tree.map(lambda value: (1 - MOMENTUM) * value, new)}

    def loss(function, x, params):
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(function(x, params)))

    ours = jax.grad(lambda *at: loss(module, *at), (0, 1))(x, params)
    with jax.numpy_rank_promotion("allow"):
        if not num_classes:
            params = jax.tree.map(lambda leaf: leaf[None], params)
        expected = jax.grad(lambda *at: loss(formula, *at), (0, 1))(x, params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, np.reshape(b, a.shape), rtol=1e-4, atol=1e-5), ours, expected
    )
