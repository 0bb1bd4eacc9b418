"""Batch normalisation (Ioffe & Szegedy 2015, arXiv:1502.03167) with PyTorch's conventions, the published networks'.

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
    return 1.0 + 0.02 * jax.random.normal(key, shape)


class BatchNorm(nn.Module):
    """Normalises each channel by the batch's mean and variance (training) or by their running averages."""

    @nn.compact
    def __call__(self, x: jax.Array, *, training: bool) -> jax.Array:
        """Normalises `x` (..., C), float; when `training`, the collection `batch_stats` must be mutable."""
        features = x.shape[-1:]
        scale = self.param("scale", _initial_scale, features)
        bias = self.param("bias", nn.initializers.zeros, features)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, features)
        running_var = self.variable("batch_stats", "var", jnp.ones, features)
        if training:
            count = x.size // x.shape[-1]
            values = x.astype(jnp.float32).reshape(count, -1)
            mean = jnp.mean(values, axis=0)
            var = jnp.mean(jnp.square(values - mean[None]), axis=0)
            if not self.is_initializing():
                unbiased = var * (count / max(count - 1, 1))
                running_mean.value = MOMENTUM * running_mean.value + (1 - MOMENTUM) * mean
                running_var.value = MOMENTUM * running_var.value + (1 - MOMENTUM) * unbiased
        else:
            mean, var = running_mean.value, running_var.value
        gain = scale * jax.lax.rsqrt(var + EPSILON)
        shape = (1,) * (x.ndim - 1) + features
        normalised = x.astype(jnp.float32) * gain.reshape(shape) + (bias - mean * gain).reshape(shape)
        return normalised.astype(x.dtype)
