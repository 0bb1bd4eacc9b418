"""Spectral normalisation by power iteration (Miyato et al. 2018, arXiv:1802.05957).

A layer's kernel is divided by an estimate of its largest singular value, which bounds the layer's Lipschitz constant.
The two singular vectors of the estimate are kept in their own variable collection, `spectral`, beside the parameters:
a training forward improves them by one iteration, an evaluation forward leaves them as they are. The stored kernel is
never overwritten. Everything here is float32, whatever the layer computes in.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

_EPSILON = 1e-12  # torch.nn.utils.spectral_norm's


def _normalise(x: jax.Array) -> jax.Array:
    return x / jnp.maximum(jnp.linalg.norm(x), _EPSILON)


def power_iteration(matrix: jax.Array, u: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One step towards the singular vectors of the largest singular value.

    Args:
      matrix: (M, N).
      u: (N,), the previous estimate of the right singular vector.

    Returns:
      `u` (N,) and `v` (M,), unit vectors without gradient, and `v @ matrix @ u`, an estimate from below of the singular
      value whose gradient with respect to `matrix` is the outer product of `v` and `u`.
    """
    v = jax.lax.stop_gradient(_normalise(matrix @ u))
    row = v @ matrix
    u = jax.lax.stop_gradient(_normalise(row))
    return u, v, row @ u


def largest_singular_value(kernel: jax.Array, *, iterations: int = 20) -> jax.Array:
    """Of a kernel (..., C_out), seen as a matrix of inputs by outputs: (), from below, by power iteration."""
    matrix = kernel.reshape(-1, kernel.shape[-1]).astype(jnp.float32)
    u = _normalise(jax.random.normal(jax.random.key(0), matrix.shape[1:]))
    u = jax.lax.fori_loop(1, iterations, lambda _, u: power_iteration(matrix, u)[0], u)
    return power_iteration(matrix, u)[2]


class SpectralNorm(nn.Module):
    """Estimates a kernel's largest singular value, the kernel seen as a matrix of inputs by outputs.

    The vectors `u` (C_out,) and `v` (the product of the other axes,) are kept in the collection `spectral`. No gradient
    flows through them, but the singular value's own gradient with respect to the kernel is kept (section 2.1 there).
    """

    @nn.compact
    def __call__(self, kernel: jax.Array, *, training: bool) -> jax.Array:
        """Estimates the singular value by which a layer is divided.

        Args:
          kernel: (..., C_out).
          training: take one power iteration first; `spectral` must be mutable.

        Returns:
          () float32, from below.
        """
        matrix = kernel.reshape(-1, kernel.shape[-1]).astype(jnp.float32)
        u = self.variable(
            "spectral", "u", lambda: _normalise(jax.random.normal(self.make_rng("params"), matrix.shape[1:]))
        )
        v = self.variable("spectral", "v", lambda: _normalise(matrix @ u.value))
        if not training or self.is_initializing():
            return v.value @ matrix @ u.value
        u.value, v.value, sigma = power_iteration(matrix, u.value)
        return sigma
