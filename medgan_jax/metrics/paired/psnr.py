"""Peak signal-to-noise ratio, by dm-pix."""

import functools

import dm_pix
import jax

from medgan_jax.metrics.paired.filters import check_pair


@functools.partial(jax.jit, static_argnames="data_range")
def psnr(x: jax.Array, y: jax.Array, *, data_range: float = 1.0) -> jax.Array:
    """Peak signal-to-noise ratio: -10 log10 of the mean squared difference, in dB. Symmetric.

    Args:
      x: floating, (N, H, W, 1 or 3), from 0 to `data_range`.
      y: as `x`.
      data_range: the value of white.

    Returns:
      float32, (N,): above 0; infinity, without a finite gradient, for identical images.

    Raises:
      ValueError: shapes or types are others.
    """
    return dm_pix.psnr(*check_pair(x, y, name="psnr", min_size=1, data_range=data_range))
