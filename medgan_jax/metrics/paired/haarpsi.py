"""Haar wavelet-based perceptual similarity index."""

import functools

import jax
import jax.numpy as jnp

from medgan_jax.metrics.paired.filters import average_pool, check_pair, chrominance, correlate, luminance

_SCALES = 3  # the two finest are compared, the third gives the weights
_STABILITY = 30.0  # the paper's C, for values from 0 to 255
_STEEPNESS = 4.2  # the paper's alpha, of the logistic function


@functools.partial(jax.jit, static_argnames="data_range")
def haarpsi(x: jax.Array, y: jax.Array, *, data_range: float = 1.0) -> jax.Array:
    """Haar wavelet-based perceptual similarity index (Reisenhofer et al. 2018, arXiv:1607.06140). Symmetric.

    The similarity of Haar coefficients on two fine scales, weighted by the third, and of colours. A grey image has no
    colours to compare.

    Args:
      x: floating, (N, H, W, 1 or 3), from 0 to `data_range`; at least 16 px. Both are halved first, as in the paper.
      y: as `x`.
      data_range: the value of white.

    Returns:
      float32, (N,): from 0 to 1; identical images have 1, to rounding.

    Raises:
      ValueError: shapes or types are others.
    """
    x, y = check_pair(x, y, name="haarpsi", min_size=2 ** (_SCALES + 1), data_range=data_range)
    planes_x, planes_y = _planes(x), _planes(y)

    # Differences instead of similarities: they are exactly 0 for identical images.
    perfect = jax.nn.sigmoid(_STEEPNESS)

    def loss(pairs: list[tuple[jax.Array, jax.Array]]) -> jax.Array:
        unlike = [(a - b) ** 2 / (a**2 + b**2 + _STABILITY) for a, b in pairs]
        return perfect - jax.nn.sigmoid(_STEEPNESS * (1 - sum(unlike) / len(unlike)))

    lost, weight, weights = jnp.zeros(len(x)), jnp.zeros(len(x)), []
    for orientation in range(2):
        *fine_x, coarse_x = (_haar(planes_x[0], scale, orientation) for scale in range(1, _SCALES + 1))
        *fine_y, coarse_y = (_haar(planes_y[0], scale, orientation) for scale in range(1, _SCALES + 1))
        weights.append(jnp.maximum(coarse_x, coarse_y))
        lost += jnp.sum(weights[-1] * loss(list(zip(fine_x, fine_y, strict=True))), (1, 2))
        weight += jnp.sum(weights[-1], (1, 2))
    if len(planes_x) > 1:
        colours = [(_smooth(a), _smooth(b)) for a, b in zip(planes_x[1:], planes_y[1:], strict=True)]
        mean_weight = sum(weights) / 2
        lost += jnp.sum(mean_weight * loss(colours), (1, 2))
        weight += jnp.sum(mean_weight, (1, 2))
    # Two black images have no weights and no loss.
    similarity = perfect - lost / jnp.where(weight > 0, weight, 1)
    return (jax.scipy.special.logit(similarity) / _STEEPNESS) ** 2


def _planes(images: jax.Array) -> list[jax.Array]:
    """Luminance, and for colour images chrominance, at half the size: (N, H/2, W/2) each."""
    colours = chrominance(images) if images.shape[3] == 3 else ()
    return [average_pool(255 * plane, 2) for plane in (luminance(images), *colours)]


def _haar(planes: jax.Array, scale: int, orientation: int) -> jax.Array:
    """Absolute Haar coefficients of `scale`, of the size of `planes`, aligned as by MATLAB's `conv2`."""
    half = 2 ** (scale - 1)
    box, step = [1 / (2 * half)] * (2 * half), [1.0] * half + [-1.0] * half
    kernels = (step, box) if orientation == 0 else (box, step)
    return jnp.abs(correlate(planes, *kernels, padding=(half - 1, half)))


def _smooth(planes: jax.Array) -> jax.Array:
    return jnp.abs(correlate(planes, (0.5, 0.5), (0.5, 0.5), padding=(0, 1)))
