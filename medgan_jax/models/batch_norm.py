"""Batch normalisation (Ioffe & Szegedy 2015, arXiv:1502.03167) with PyTorch's conventions, the published networks'.

Class-conditional, it has a scale and a bias for each class (de Vries et al. 2017, arXiv:1707.00683, as Miyato & Koyama
2018, arXiv:1802.05637, use it); the statistics are those of all classes together.

Differs from `flax.linen.BatchNorm` in two places that matter when weights travel between frameworks: the running
variance is the unbiased one, and the initial scale is drawn from N(1, 0.02) (Radford et al. 2016, arXiv:1511.06434).
Statistics are float32 whatever the input; under `jit` over a sharded batch they are those of the global batch.
"""

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
    def __call__(self, x: jax.Array, labels: jax.Array | None = None, *, training: bool, batches: int = 1) -> jax.Array:
        """Normalises.

        Args:
          x: (N * batches, H, W, C) float; its rows take turns, one of each batch and again.
          labels: (N * batches,) int32 below `num_classes`, the class of each row; None where there are no classes.
          training: normalise by statistics of these batches; `batch_stats` must be mutable.
          batches: how many batches, each normalised by itself, as if they came one after the other.

        Returns:
          The same shape and type.
        """
        features = x.shape[-1:]
        shape = (self.num_classes, *features) if self.num_classes else features
        values = x.astype(jnp.float32).reshape(x.shape[0] // batches, batches, -1, x.shape[-1])
        scale = self.param("scale", _initial_scale, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, features)
        running_var = self.variable("batch_stats", "var", jnp.ones, features)
        if training:
            mean = jnp.mean(values, axis=(0, 2))
            var = jnp.mean(jnp.square(values - mean[None, :, None]), axis=(0, 2))
            if not self.is_initializing():
                count = values.shape[0] * values.shape[2]
                unbiased = var * (count / max(count - 1, 1))
                for b in range(batches):
                    running_mean.value = MOMENTUM * running_mean.value + (1 - MOMENTUM) * mean[b]
                    running_var.value = MOMENTUM * running_var.value + (1 - MOMENTUM) * unbiased[b]
        else:
            mean, var = running_mean.value[None], running_var.value[None]
        inverse = jax.lax.rsqrt(var + EPSILON)
        if self.num_classes:
            scale, bias = (y[labels].reshape(-1, batches, *features) for y in (scale, bias))
            gain = scale * inverse[None]
            normalised = values * gain[:, :, None] + (bias - mean[None] * gain)[:, :, None]
        else:
            gain = scale[None] * inverse
            normalised = values * gain[None, :, None] + (bias[None] - mean * gain)[None, :, None]
        return normalised.reshape(x.shape).astype(x.dtype)
