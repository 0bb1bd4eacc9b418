"""Gradient magnitude similarity deviation on several scales."""

import functools

import jax
import jax.numpy as jnp

from medgan_jax.metrics.paired.filters import average_pool, check_pair, gradient_magnitude, luminance, root

# Zhang et al. 2017, section 2: the weight of each scale, finest first.
MS_GMSD_WEIGHTS = (0.096, 0.596, 0.289, 0.019)


@functools.partial(jax.jit, static_argnames=("data_range", "weights", "masking", "stability"))
def ms_gmsd(
    x: jax.Array,
    y: jax.Array,
    *,
    data_range: float = 1.0,
    weights: tuple[float, ...] = MS_GMSD_WEIGHTS,
    masking: float = 0.5,
    stability: float = 170.0,
) -> jax.Array:
    """Multi-scale gradient magnitude similarity deviation (Zhang et al. 2017, doi:10.1109/ICASSP.2017.7952357).

    The spread over the image of the similarity of edge strengths (Xue et al. 2014, arXiv:1308.3052): where the loss is
    the same everywhere, however great, it is small. Symmetric. Sees the luminance alone: the paper's chromatic term,
    which is for colour distortions, is left out, as in the system whose tables this is compared with. A grey image is
    its own luminance.

    Args:
      x: floating, (N, H, W, 1 or 3), from 0 to `data_range`; on four scales of at least 17 px.
      y: as `x`.
      data_range: the value of white.
      weights: of the scales, finest first; the published ones sum to 1.
      masking: the paper's alpha: how much strong edges hide differences.
      stability: the paper's constant, for values from 0 to 255.

    Returns:
      float32, (N,): 0 for identical images, and the larger, to about 0.5, the less alike.

    Raises:
      ValueError: shapes or types are others.
    """
    x, y = check_pair(x, y, name="ms_gmsd", min_size=2 ** len(weights) + 1, data_range=data_range)
    x, y = 255 * luminance(x), 255 * luminance(y)
    total = 0.0
    for scale, weight in enumerate(weights):
        if scale:
            x, y = average_pool(x, 2), average_pool(y, 2)
        edges_x, edges_y = gradient_magnitude(x), gradient_magnitude(y)
        # 1 - similarity, which has the same spread, and is 0 to the last digit where edges are the same.
        dissimilarity = (edges_x - edges_y) ** 2 / (edges_x**2 + edges_y**2 - masking * edges_x * edges_y + stability)
        total += weight * jnp.var(dissimilarity, (1, 2))
    return root(total)
