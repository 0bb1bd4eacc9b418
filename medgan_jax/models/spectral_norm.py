"""Spectral normalisation by power iteration (Miyato et al. 2018, arXiv:1802.05957).

A kernel is divided by an estimate of its largest singular value, which bounds the layer's Lipschitz constant. The
estimate's two singular vectors live in their own variable collection, `spectral`, beside the parameters: a training
forward improves them by one iteration, an evaluation forward leaves them as they are. The kernel itself is never
overwritten. Everything here is float32, whatever the layer computes in.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

_EPSILON = 1e-12  # torch.nn.utils.spectral_norm's


def _normalise(x: jax.Array) -> jax.Array:
    return x / jnp.maximum(jnp.linalg.norm(x), _EPSILON)


def power_iteration(matrix: jax.Array, u: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One step towards the singular vectors of the largest singular value.

    Args:
      matrix: (M, N).
      u: (N,), the previous estimate of the right singular vector.

    Returns:
      `u` (N,) and `v` (M,), unit vectors; `v @ matrix @ u` estimates the singular value from below.
    """
    v = _normalise(matrix @ u)
    return _normalise(matrix.T @ v), v


class SpectralNorm(nn.Module):
    """Divides a kernel by its largest singular value, the kernel seen as a matrix of inputs by outputs.

    The vectors `u` (C_out,) and `v` (the product of the other axes,) are kept in the collection `spectral`. No gradient
    flows through them, but the singular value's own gradient with respect to the kernel is kept (section 2.1 there).
    """

    @nn.compact
    def __call__(self, kernel: jax.Array, *, training: bool) -> jax.Array:
        """Normalises `kernel` (..., C_out); when `training`, iterates once, and `spectral` must be mutable."""
        matrix = kernel.reshape(-1, kernel.shape[-1]).astype(jnp.float32)
        if self.is_initializing():
            u = _normalise(jax.random.normal(self.make_rng("params"), matrix.shape[1:]))
            v = _normalise(matrix @ u)
        else:
            u = v = None
        u = self.variable("spectral", "u", lambda: u)
        v = self.variable("spectral", "v", lambda: v)
        if training and not self.is_initializing():
            u.value, v.value = power_iteration(jax.lax.stop_gradient(matrix), u.value)
        sigma = v.value @ matrix @ u.value
        return kernel / sigma
