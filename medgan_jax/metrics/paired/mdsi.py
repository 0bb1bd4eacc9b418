"""Mean deviation similarity index."""

import functools
import math

import jax
import jax.numpy as jnp

from medgan_jax.metrics.paired.filters import average_pool, check_pair, gradient_magnitude, power, root, weighted_sum

_LUMINANCE, _H, _M = (0.2989, 0.587, 0.114), (0.3, 0.04, -0.35), (0.34, -0.6, 0.17)
# Nafchi et al. 2016, for values from 0 to 255: stabilise the comparisons of edges, of edges with those of the mean of
# both images, and of colours.
_C1, _C2, _C3 = 140.0, 55.0, 550.0
_EDGES = 0.6  # alpha: the weight of edges against colours
_EXPONENT = 0.25  # q and o: compresses the similarity, and the deviation


@functools.partial(jax.jit, static_argnames="data_range")
def mdsi(x: jax.Array, y: jax.Array, *, data_range: float = 1.0) -> jax.Array:
    """Mean deviation similarity index (Nafchi et al. 2016, doi:10.1109/ACCESS.2016.2604042).

    The mean deviation over the image of a similarity of edges and colours: a loss that is the same everywhere gives a
    small value. The paper's first image is the reference; exchanging the two changes the index little. A grey image
    counts as a colour image of three equal channels, for which the index is not published.

    Args:
      x: floating, (N, H, W, 1 or 3), from 0 to `data_range`; at least 3 px. From 384 px on both are shrunk first.
      y: as `x`.
      data_range: the value of white.

    Returns:
      float32, (N,): 0 for identical images, larger, up to about 0.7, for less similar ones.

    Raises:
      ValueError: shapes or types are others.
    """
    x, y = check_pair(x, y, name="mdsi", min_size=3, data_range=data_range)
    shrink = max(1, math.floor(min(x.shape[1:3]) / 256 + 0.5))
    # Squares around every `shrink`-th pixel, as in the paper's code.
    x, y = (average_pool(images, shrink, before=(shrink - 1) // 2) for images in (x, y))
    (light_x, h_x, m_x), (light_y, h_y, m_y) = _lhm(255 * x), _lhm(255 * y)
    edges_x, edges_y, edges_mean = (gradient_magnitude(p) for p in (light_x, light_y, (light_x + light_y) / 2))

    # All as 1 - similarity, which is exactly 0 for identical images: the roots below would make a hundredth of a
    # rounding error.
    def unlike(a: jax.Array, b: jax.Array, constant: float) -> jax.Array:
        return (a - b) ** 2 / (a**2 + b**2 + constant)

    edges = unlike(edges_x, edges_y, _C1) + unlike(edges_x, edges_mean, _C2) - unlike(edges_y, edges_mean, _C2)
    colours = ((h_x - h_y) ** 2 + (m_x - m_y) ** 2) / (h_x**2 + h_y**2 + m_x**2 + m_y**2 + _C3)
    similarity = 1 - (_EDGES * edges + (1 - _EDGES) * colours)

    # The power of a negative similarity is complex.
    size = power(similarity, _EXPONENT)
    angle = jnp.where(similarity < 0, math.pi * _EXPONENT, 0)
    real, imaginary = size * jnp.cos(angle) - 1, size * jnp.sin(angle)
    deviation = root(
        (real - real.mean((1, 2), keepdims=True)) ** 2 + (imaginary - imaginary.mean((1, 2), keepdims=True)) ** 2
    )
    return power(deviation.mean((1, 2)), _EXPONENT)


def _lhm(images: jax.Array) -> list[jax.Array]:
    """Luminance and the paper's two colour channels, each (N, H, W)."""
    if images.shape[3] == 1:
        return [sum(weights) * images[..., 0] for weights in (_LUMINANCE, _H, _M)]
    channels = [images[..., i] for i in range(3)]
    return [weighted_sum(channels, weights) for weights in (_LUMINANCE, _H, _M)]
