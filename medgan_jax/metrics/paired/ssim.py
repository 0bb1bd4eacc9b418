"""Structural similarity: on one scale by dm-pix, and on several."""

import functools

import dm_pix
import jax
import jax.numpy as jnp

from medgan_jax.metrics.paired.filters import average_pool, check_pair, correlate, gaussian_kernel, power

# Wang et al. 2003, table 1: what contrast sensitivity gives to each scale, finest first.
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


@functools.partial(jax.jit, static_argnames=("data_range", "window", "sigma", "k1", "k2"))
def ssim(
    x: jax.Array,
    y: jax.Array,
    *,
    data_range: float = 1.0,
    window: int = 11,
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
) -> jax.Array:
    """Structural similarity index (Wang et al. 2004, doi:10.1109/TIP.2003.819861). Symmetric.

    The mean over all places of a Gaussian window that lies inside the image, and over the channels.

    Args:
      x: floating, (N, H, W, 1 or 3), from 0 to `data_range`; at least `window` px.
      y: as `x`.
      data_range: the value of white.
      window: the side of the window.
      sigma: its standard deviation in px.
      k1: keeps the comparison of means steady in the dark.
      k2: keeps the comparison of variances steady where there is no structure.

    Returns:
      float32, (N,): from -1 to 1, which identical images have.

    Raises:
      ValueError: shapes or types are others.
    """
    x, y = check_pair(x, y, name="ssim", min_size=window, data_range=data_range)
    blur = _window(window, sigma)

    def filter_fn(planes: jax.Array) -> jax.Array:
        return blur(planes[..., 0])[..., None]

    channels = x.shape[3]
    x, y = (_planes(images)[..., None] for images in (x, y))
    return dm_pix.ssim(x, y, k1=k1, k2=k2, filter_fn=filter_fn).reshape(-1, channels).mean(1)


@functools.partial(jax.jit, static_argnames=("data_range", "window", "sigma", "k1", "k2", "weights"))
def ms_ssim(
    x: jax.Array,
    y: jax.Array,
    *,
    data_range: float = 1.0,
    window: int = 11,
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
    weights: tuple[float, ...] = MS_SSIM_WEIGHTS,
) -> jax.Array:
    """Multi-scale SSIM (Wang et al. 2003, doi:10.1109/ACSSC.2003.1292216). Symmetric.

    Contrast and structure are compared at each scale, luminance at the coarsest; negative factors count as 0. Taken
    in each channel, and averaged over them.

    Args:
      x: floating, (N, H, W, 1 or 3), from 0 to `data_range`; on five scales of at least 161 px.
      y: as `x`.
      data_range: the value of white.
      window: as for `ssim`.
      sigma: as for `ssim`.
      k1: as for `ssim`.
      k2: as for `ssim`.
      weights: the exponent of each scale, finest first; fewer of them allow smaller images.

    Returns:
      float32, (N,): from 0 to 1, which identical images have.

    Raises:
      ValueError: shapes or types are others.
    """
    min_size = (window - 1) * 2 ** (len(weights) - 1) + 1
    x, y = check_pair(x, y, name="ms_ssim", min_size=min_size, data_range=data_range)
    blur = _window(window, sigma)
    channels = x.shape[3]
    x, y = _planes(x), _planes(y)
    product = 1.0
    for scale, weight in enumerate(weights):
        if scale:
            x, y = _halved(x), _halved(y)
        mean_x, mean_y = blur(x), blur(y)
        covariance = blur(x * y) - mean_x * mean_y
        variances = blur(x**2) - mean_x**2 + blur(y**2) - mean_y**2
        similarity = (2 * covariance + k2**2) / (variances + k2**2)
        if scale == len(weights) - 1:
            similarity *= (2 * mean_x * mean_y + k1**2) / (mean_x**2 + mean_y**2 + k1**2)
        product *= power(jax.nn.relu(similarity.mean((1, 2))), weight)
    return product.reshape(-1, channels).mean(1)


def _planes(images: jax.Array) -> jax.Array:
    """(N, H, W, C) to (N C, H, W)."""
    number, height, width, channels = images.shape
    return images.transpose(0, 3, 1, 2).reshape(number * channels, height, width)


def _halved(planes: jax.Array) -> jax.Array:
    """Means of 2 x 2 px; of a last odd row or column, of what there is."""
    return average_pool(jnp.pad(planes, [(0, 0)] + [(0, size % 2) for size in planes.shape[1:]], mode="edge"), 2)


def _window(size: int, sigma: float) -> functools.partial[jax.Array]:
    kernel = gaussian_kernel(size, sigma)
    return functools.partial(correlate, rows=kernel, columns=kernel)
