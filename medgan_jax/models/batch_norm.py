"""Batch normalisation (Ioffe & Szegedy 2015, arXiv:1502.03167) with PyTorch's conventions, the published networks'.

Class-conditional, it has a scale and a bias for each class (de Vries et al. 2017, arXiv:1707.00683, as Miyato & Koyama
2018, arXiv:1802.05637, use it); the statistics are those of all classes together.

Differs from `flax.linen.BatchNorm` in two places that matter when weights travel between frameworks: the running
variance is the unbiased one, and the initial scale is drawn from N(1, 0.02) (Radford et al. 2016, arXiv:1511.06434).
Statistics are float32 whatever the input; under `jit` over a sharded batch they are those of the global batch.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

MOMENTUM = 0.9
EPSILON = 1e-5


def _initial_scale(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The same for all classes, in the axes before the last one."""
    return jnp.broadcast_to(1.0 + 0.02 * jax.random.normal(key, shape[-1:]), shape)


class BatchNorm(nn.Module):
    """Normalises each channel by the batch's mean and variance (training) or by their running averages.

    The parameters `scale` and `bias` are (C,), or (num_classes, C), where all classes begin alike.
    """

    num_classes: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, labels: jax.Array | None = None, *, training: bool) -> jax.Array:
        """Normalises.

        Args:
          x: (N, H, W, C) float.
          labels: (N,) int32 below `num_classes`, the class of each image; None where there are no classes.
          training: normalise by the statistics of this batch and update the running ones (`batch_stats` mutable).

        Returns:
          The same shape and type.
        """
        features = x.shape[-1:]
        shape = (self.num_classes, *features) if self.num_classes else features
        values = x.astype(jnp.float32)
        scale = self.param("scale", _initial_scale, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, features)
        running_var = self.variable("batch_stats", "var", jnp.ones, features)
        rows = labels if self.num_classes else None
        scales, biases = scale[rows], bias[rows]  # (N, C); (1, C) without classes
        if training:
            normalised, mean, var = _normalised_by_batch(values, scales, biases)
            if not self.is_initializing():
                count = x.size // x.shape[-1]
                unbiased = var * (count / max(count - 1, 1))
                running_mean.value = MOMENTUM * running_mean.value + (1 - MOMENTUM) * mean
                running_var.value = MOMENTUM * running_var.value + (1 - MOMENTUM) * unbiased
        else:
            normalised = _normalised(values, running_mean.value, running_var.value, scales, biases)
        return normalised.astype(x.dtype)


def _normalised(x: jax.Array, mean: jax.Array, var: jax.Array, scales: jax.Array, biases: jax.Array) -> jax.Array:
    gains = scales * jax.lax.rsqrt(var + EPSILON)[None]
    return x * gains[:, None, None] + (biases - mean[None] * gains)[:, None, None]


@jax.custom_vjp
def _normalised_by_batch(x: jax.Array, scales: jax.Array, biases: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`x` (N, H, W, C) normalised, the mean and the variance; scales and biases (N, C) or (1, C).

    The gradient by hand reads `x` and what comes in twice and keeps nothing else: autodiff's takes half as long again
    on a CPU, where memory limits it.
    """
    mean, var = jnp.mean(x, axis=(0, 1, 2)), jnp.var(x, axis=(0, 1, 2))
    return _normalised(x, mean, var, scales, biases), mean, var


def _forward(
    x: jax.Array, scales: jax.Array, biases: jax.Array
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[jax.Array, ...]]:
    normalised, mean, var = _normalised_by_batch(x, scales, biases)
    return (normalised, mean, var), (x, scales, mean, var)


def _backward(saved: tuple[jax.Array, ...], grads: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    x, scales, mean, var = saved
    y, mean_grad, var_grad = grads
    count = x.size // x.shape[-1]
    inverse = jax.lax.rsqrt(var + EPSILON)
    biases_grad = y.sum((1, 2))
    scales_grad = ((y * x).sum((1, 2)) - mean[None] * biases_grad) * inverse[None]
    # To x it is linear in y and in x: through the output, the mean and the variance.
    slope = (2 * var_grad - inverse**2 * (scales * scales_grad).sum(0)) / count
    constant = (mean_grad - inverse * (scales * biases_grad).sum(0)) / count - slope * mean
    gains = scales * inverse[None]
    x_grad = y * gains[:, None, None] + x * slope[None, None, None] + constant[None, None, None]
    if len(scales) != len(x):
        scales_grad, biases_grad = scales_grad.sum(0, keepdims=True), biases_grad.sum(0, keepdims=True)
    return x_grad, scales_grad, biases_grad


_normalised_by_batch.defvjp(_forward, _backward)


def estimate_statistics(
    module: nn.Module, variables: dict[str, Any], latents: jax.Array, labels: jax.Array | None = None
) -> dict[str, Any]:
    """A generator's variables with running statistics estimated anew, from training forwards over batches of latents.

    Running statistics belong to the weights and the distribution of latents that they were gathered with. With others,
    such as averaged weights or truncated latents, images come out pale.

    Args:
      module: the generator.
      variables: its parameters and statistics, of which the values do not matter.
      latents: (K, N, L), K batches.
      labels: (K, N) int32, the class of each; None where there are none.

    Returns:
      `variables` with the same parameters and these statistics.
    """
    params = {"params": variables["params"]}
    stats = {name: value for name, value in variables.items() if name != "params"}

    def forward(stats: dict[str, Any], batch: tuple[jax.Array, jax.Array | None]) -> tuple[Any, None]:
        return module.apply({**params, **stats}, *batch, training=True, mutable=list(stats))[1], None

    stats, _ = jax.lax.scan(forward, jax.tree.map(jnp.zeros_like, stats), (latents, labels))
    weight = 1 - MOMENTUM ** len(latents)  # a running average that starts from zero falls short by this factor
    return {**params, **jax.tree.map(lambda x: x / weight, stats)}
