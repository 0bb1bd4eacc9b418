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
        if training:
            mean, var = jnp.mean(values, axis=(0, 1, 2)), jnp.var(values, axis=(0, 1, 2))
            if not self.is_initializing():
                count = x.size // x.shape[-1]
                unbiased = var * (count / max(count - 1, 1))
                running_mean.value = MOMENTUM * running_mean.value + (1 - MOMENTUM) * mean
                running_var.value = MOMENTUM * running_var.value + (1 - MOMENTUM) * unbiased
        else:
            mean, var = running_mean.value, running_var.value
        rows = labels if self.num_classes else None
        gain = scale[rows] * jax.lax.rsqrt(var + EPSILON)[None]  # (N, C); (1, C) without classes
        shift = bias[rows] - mean[None] * gain
        return (values * gain[:, None, None] + shift[:, None, None]).astype(x.dtype)


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
