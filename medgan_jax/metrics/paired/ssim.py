"""Structural similarity: on one scale by dm-pix, and on several."""

import functools

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np

from medgan_jax.metrics.paired.filters import average_pool, check_pair, correlate, power

_WINDOW, _SIGMA = 11, 1.5  # px, of the Gaussian window of Wang et al. 2004
_K1, _K2 = 0.01, 0.03  # of Wang et al. 2004: stabilise the comparison of means in the dark, of variances in flat parts
# Wang et al. 2003, table 1: what contrast sensitivity gives to each scale, finest first.
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


@functools.partial(jax.jit, static_argnames="data_range")
def ssim(x: jax.Array, y: jax.Array, *, data_range: float = 1.0) -> jax.Array:
    """Structural similarity index (Wang et al. 2004, doi:10.1109/TIP.2003.819861). Symmetric.

    The mean over all places of an 11 x 11 Gaussian window that lies inside the image, and over the channels.

    Args:
      x: floating, (N, H, W, 1 or 3), from 0 to `data_range`; at least 11 px.
      y: as `x`.
      data_range: the value of white.

    Returns:
      float32, (N,): from -1 to 1; identical images have 1.

    Raises:
      ValueError: shapes or types are others.
    """
    x, y = check_pair(x, y, name="ssim", min_size=_WINDOW, data_range=data_range)
    channels = x.shape[3]
    x, y = (_planes(images)[..., None] for images in (x, y))
    # Our filter is several times as fast as dm-pix's own.
    scores = dm_pix.ssim(x, y, k1=_K1, k2=_K2, filter_fn=lambda planes: _blur(planes[..., 0])[..., None])
    return scores.reshape(-1, channels).mean(1)


@functools.partial(jax.jit, static_argnames=("data_range", "weights"))
def ms_ssim(
    x: jax.Array, y: jax.Array, *, data_range: float = 1.0, weights: tuple[float, ...] = MS_SSIM_WEIGHTS
) -> jax.Array:
    """Multi-scale SSIM (Wang et al. 2003, doi:10.1109/ACSSC.2003.1292216). Symmetric.

    Contrast and structure are compared at each scale, luminance at the coarsest; negative factors count as 0. The mean
    over the channels.

    Args:
      x: floating, (N, H, W, 1 or 3), from 0 to `data_range`; at least 161 px with five scales.
      y: as `x`.
      data_range: the value of white.
      weights: the exponent of each scale, finest first; fewer of them allow smaller images.

    Returns:
      float32, (N,): from 0 to 1; identical images have 1.

    Raises:
      ValueError: shapes or types are others.
    """
    min_size = (_WINDOW - 1) * 2 ** (len(weights) - 1) + 1
    x, y = check_pair(x, y, name="ms_ssim", min_size=min_size, data_range=data_range)
    channels = x.shape[3]
    x, y = _planes(x), _planes(y)
    product = jnp.ones(len(x))
    for scale, weight in enumerate(weights):
        if scale:
            x, y = _halved(x), _halved(y)
        mean_x, mean_y = _blur(x), _blur(y)
        covariance = _blur(x * y) - mean_x * mean_y
        variances = _blur(x**2) - mean_x**2 + _blur(y**2) - mean_y**2
        similarity = (2 * covariance + _K2**2) / (variances + _K2**2)
        if scale == len(weights) - 1:
            similarity *= (2 * mean_x * mean_y + _K1**2) / (mean_x**2 + mean_y**2 + _K1**2)
        product *= power(jax.nn.relu(similarity.mean((1, 2))), weight)
    return product.reshape(-1, channels).mean(1)


def _planes(images: jax.Array) -> jax.Array:
    """(N, H, W, C) to (N C, H, W)."""
    number, height, width, channels = images.shape
    return images.transpose(0, 3, 1, 2).reshape(number * channels, height, width)


def _halved(planes: jax.Array) -> jax.Array:
    """Means of 2 x 2 px; at an odd edge, of the pixels that are there."""
    return average_pool(jnp.pad(planes, [(0, 0)] + [(0, size % 2) for size in planes.shape[1:]], mode="edge"), 2)


def _blur(planes: jax.Array) -> jax.Array:
    kernel = np.exp(-0.5 * ((np.arange(_WINDOW) - (_WINDOW - 1) / 2) / _SIGMA) ** 2)
    kernel /= kernel.sum()
    return correlate(planes, kernel, kernel)
