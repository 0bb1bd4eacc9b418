"""Mean deviation similarity index."""

import functools
import math

import jax
import jax.numpy as jnp

from medgan_jax.metrics.paired.filters import average_pool, check_pair, gradient_magnitude, power, root

_LUMINANCE, _H, _M = (0.2989, 0.587, 0.114), (0.3, 0.04, -0.35), (0.34, -0.6, 0.17)


@functools.partial(jax.jit, static_argnames=("data_range", "c1", "c2", "c3", "edge_share", "exponent"))
def mdsi(
    x: jax.Array,
    y: jax.Array,
    *,
    data_range: float = 1.0,
    c1: float = 140.0,
    c2: float = 55.0,
    c3: float = 550.0,
    edge_share: float = 0.6,
    exponent: float = 0.25,
) -> jax.Array:
    """Mean deviation similarity index (Nafchi et al. 2016, doi:10.1109/ACCESS.2016.2604042).

    The mean deviation over the image of a similarity of edges and colours; where the loss is the same everywhere it is
    small. The paper's first image is the reference, but its index gives nearly the same with the two exchanged. A grey
    image counts as a colour image of three equal channels, for which the index is not published.

    Args:
      x: floating, (N, H, W, 1 or 3), from 0 to `data_range`; at least 3 px. From 384 px on both are shrunk first.
      y: as `x`.
      data_range: the value of white.
      c1: steadies the comparison of edges, for values from 0 to 255.
      c2: the same, for edges of the mean of both images.
      c3: steadies the comparison of colours, for values from 0 to 255.
      edge_share: the paper's alpha: the weight of edges against colours.
      exponent: the paper's q and o: compresses the similarity, and the deviation.

    Returns:
      float32, (N,): 0 for identical images, and the larger, to about 0.7, the less alike.

    Raises:
      ValueError: shapes or types are others.
    """
    x, y = check_pair(x, y, name="mdsi", min_size=3, data_range=data_range)
    shrink = max(1, math.floor(min(x.shape[1:3]) / 256 + 0.5))
    # Squares around every `shrink`-th pixel, as the paper's code has them.
    x, y = (average_pool(images, shrink, before=(shrink - 1) // 2) for images in (x, y))
    (light_x, h_x, m_x), (light_y, h_y, m_y) = _lhm(255 * x), _lhm(255 * y)
    edges_x, edges_y, edges_mean = (gradient_magnitude(p) for p in (light_x, light_y, (light_x + light_y) / 2))

    # All of it as 1 - similarity, which is 0 to the last digit for identical images: the roots at the end would make
    # a hundredth of a rounding error.
    def unlike(a: jax.Array, b: jax.Array, constant: float) -> jax.Array:
        return (a - b) ** 2 / (a**2 + b**2 + constant)

    edges = unlike(edges_x, edges_y, c1) + unlike(edges_x, edges_mean, c2) - unlike(edges_y, edges_mean, c2)
    colours = ((h_x - h_y) ** 2 + (m_x - m_y) ** 2) / (h_x**2 + h_y**2 + m_x**2 + m_y**2 + c3)
    similarity = 1 - (edge_share * edges + (1 - edge_share) * colours)

    # Of a negative similarity the power is complex.
    size = power(similarity, exponent)
    angle = jnp.where(similarity < 0, math.pi * exponent, 0)
    real, imaginary = size * jnp.cos(angle) - 1, size * jnp.sin(angle)
    deviation = root(
        (real - real.mean((1, 2), keepdims=True)) ** 2 + (imaginary - imaginary.mean((1, 2), keepdims=True)) ** 2
    )
    return power(deviation.mean((1, 2)), exponent)


def _lhm(images: jax.Array) -> list[jax.Array]:
    """Luminance and the paper's two colour channels, each (N, H, W)."""
    if images.shape[3] == 1:
        return [sum(weights) * images[..., 0] for weights in (_LUMINANCE, _H, _M)]
    return [sum(w * images[..., i] for i, w in enumerate(weights)) for weights in (_LUMINANCE, _H, _M)]
