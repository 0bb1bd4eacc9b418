"""Gradient magnitude similarity deviation on several scales."""

import functools

import jax
import jax.numpy as jnp

from medgan_jax.metrics.paired.filters import average_pool, check_pair, gradient_magnitude, luminance, root

# Zhang et al. 2017, section 2.
_WEIGHTS = (0.096, 0.596, 0.289, 0.019)  # of the scales, finest first
_MASKING = 0.5  # alpha: how much strong edges hide differences
_STABILITY = 170.0  # for values from 0 to 255


@functools.partial(jax.jit, static_argnames="data_range")
def ms_gmsd(x: jax.Array, y: jax.Array, *, data_range: float = 1.0) -> jax.Array:
    """Multi-scale gradient magnitude similarity deviation (Zhang et al. 2017, doi:10.1109/ICASSP.2017.7952357).

    The spread over the image of the similarity of edge strengths (Xue et al. 2014, arXiv:1308.3052): a loss that is the
    same everywhere, however large, gives a small value. Symmetric. Only luminance is compared: the paper's chromatic
    term, for colour distortions, is left out, as in the published tables that this is compared with. A grey image is
    its own luminance.

    Args:
      x: floating, (N, H, W, 1 or 3), from 0 to `data_range`; at least 17 px.
      y: as `x`.
      data_range: the value of white.

    Returns:
      float32, (N,): 0 for identical images, larger, up to about 0.5, for less similar ones.

    Raises:
      ValueError: shapes or types are others.
    """
    x, y = check_pair(x, y, name="ms_gmsd", min_size=2 ** len(_WEIGHTS) + 1, data_range=data_range)
    x, y = 255 * luminance(x), 255 * luminance(y)
    total = jnp.zeros(len(x))
    for scale, weight in enumerate(_WEIGHTS):
        if scale:
            x, y = average_pool(x, 2), average_pool(y, 2)
        edges_x, edges_y = gradient_magnitude(x), gradient_magnitude(y)
        # 1 - similarity, which has the same spread, and is exactly 0 where edges are the same.
        unlike = (edges_x - edges_y) ** 2 / (edges_x**2 + edges_y**2 - _MASKING * edges_x * edges_y + _STABILITY)
        total += weight * jnp.var(unlike, (1, 2))
    return root(total)
