"""What the paired metrics share: the check of a pair, linear filters, and powers with finite gradients."""

import functools
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

_MAX_SHIFTS = 3  # taps


def check_pair(x: jax.Array, y: jax.Array, *, name: str, min_size: int, data_range: float) -> tuple[jax.Array, ...]:
    """Checks two batches of images, and returns them as float32 in [0, 1].

    Args:
      x: images, floating, (N, H, W, 1 or 3), from 0 to `data_range`.
      y: images to compare with, one for each.
      name: of the metric, for messages.
      min_size: the least height and width.
      data_range: the value of white.

    Raises:
      ValueError: they are not that.
    """
    if x.shape != y.shape:
        raise ValueError(f"{name}: images of shapes {x.shape} and {y.shape} are no pairs")
    if x.ndim != 4 or x.shape[3] not in (1, 3):
        raise ValueError(f"{name}: takes images (N, H, W, 1 or 3), not {x.shape}")
    for images in (x, y):
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(f"{name}: takes floating images in [0, {data_range:g}], not {images.dtype}")
    if min(x.shape[1:3]) < min_size:
        raise ValueError(f"{name}: needs images of {min_size} px or more, not {x.shape[1]} x {x.shape[2]}")
    return x.astype(jnp.float32) / data_range, y.astype(jnp.float32) / data_range


def correlate(
    planes: jax.Array, rows: Sequence[float], columns: Sequence[float], *, padding: tuple[int, int] = (0, 0)
) -> jax.Array:
    """Correlates planes (N, H, W) with the separable kernel `rows[i] * columns[j]`.

    `padding` is the number of zeros before and after each plane, in both directions. Height and width of the result
    are less by the length of the kernel - 1 - the padding.

    A short kernel becomes sums of shifted planes. A long one becomes two products with banded matrices: on CPU, at the
    sizes of generated images, several times as fast as a convolution, or as shifted planes, of which XLA computes the
    first axis anew for each tap of the second.
    """
    if max(len(rows), len(columns)) <= _MAX_SHIFTS:
        planes = jnp.pad(planes, [(0, 0), padding, padding])
        return _shifted_sum(_shifted_sum(planes, rows, 1), columns, 2)
    down, along = (
        jnp.asarray(_band_matrix(size, kernel, padding))
        for size, kernel in zip(planes.shape[1:], (rows, columns), strict=True)
    )
    # In full float32: a GPU or TPU would round the factors, and SSIM takes small differences of the results.
    planes = jnp.einsum("oh,nhw->now", down, planes, precision=jax.lax.Precision.HIGHEST)
    return jnp.einsum("pw,now->nop", along, planes, precision=jax.lax.Precision.HIGHEST)


def _shifted_sum(planes: jax.Array, kernel: Sequence[float], axis: int) -> jax.Array:
    outputs = planes.shape[axis] - len(kernel) + 1
    return weighted_sum(
        [jax.lax.slice_in_dim(planes, tap, tap + outputs, axis=axis) for tap in range(len(kernel))], kernel
    )


def _band_matrix(size: int, kernel: Sequence[float], padding: tuple[int, int]) -> np.ndarray:
    """(outputs, size): row o holds the kernel from column o - padding[0] on, cut off at the ends."""
    outputs = size + sum(padding) - len(kernel) + 1
    matrix = np.zeros((outputs, size + sum(padding)), np.float32)
    for tap, weight in enumerate(kernel):
        matrix[np.arange(outputs), np.arange(outputs) + tap] = weight
    return matrix[:, padding[0] : padding[0] + size]


def gradient_magnitude(planes: jax.Array) -> jax.Array:
    """The Prewitt gradient (a third of the usual integers) of planes (N, H, W), with zeros around them."""
    smooth, difference = (1 / 3, 1 / 3, 1 / 3), (-1, 0, 1)
    across = correlate(planes, smooth, difference, padding=(1, 1))
    down = correlate(planes, difference, smooth, padding=(1, 1))
    return root(across**2 + down**2)


def average_pool(planes: jax.Array, size: int, *, before: int = 0) -> jax.Array:
    """Means over squares of `size` pixels, of planes (N, H, W) or images (N, H, W, C).

    `before` zeros come before the first row and column, and at the end as many as make the last squares complete.
    """
    number, height, width, *channels = planes.shape
    outputs = [-(-length // size) for length in (height, width)]
    after = [size * o - length - before for o, length in zip(outputs, (height, width), strict=True)]
    edges = [(0, 0, 0), (before, after[0], 0), (before, after[1], 0)] + [(0, 0, 0)] * len(channels)
    planes = jax.lax.pad(planes, jnp.zeros((), planes.dtype), edges)  # after may be negative, which cuts
    return planes.reshape(number, outputs[0], size, outputs[1], size, *channels).mean((2, 4))


def luminance(images: jax.Array) -> jax.Array:
    """Y of YIQ (NTSC): (N, H, W) from images (N, H, W, 1 or 3)."""
    return weighted_sum(_channels(images), (0.299, 0.587, 0.114)) if images.shape[3] == 3 else images[..., 0]


def chrominance(images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """I and Q of YIQ (NTSC): twice (N, H, W) from images (N, H, W, 3)."""
    channels = _channels(images)
    return weighted_sum(channels, (0.5959, -0.2746, -0.3213)), weighted_sum(channels, (0.2115, -0.5227, 0.3112))


def _channels(images: jax.Array) -> list[jax.Array]:
    return [images[..., channel] for channel in range(images.shape[3])]


def weighted_sum(parts: Sequence[jax.Array], weights: Sequence[float]) -> jax.Array:
    """The sum of `weights[i] * parts[i]`, in this order."""
    return functools.reduce(operator.add, (weight * part for weight, part in zip(weights, parts, strict=True)))


def root(x: jax.Array) -> jax.Array:
    """The square root of x >= 0, with gradient 0 at 0 instead of infinity."""
    return power(x, 0.5)


def power(x: jax.Array, exponent: float) -> jax.Array:
    """|x| ** exponent, with gradient 0 at 0 instead of infinity."""
    x = jnp.abs(x)
    positive = x > 0
    safe = jnp.where(positive, x, 1)
    return jnp.where(positive, jnp.sqrt(safe) if exponent == 0.5 else safe**exponent, 0)
