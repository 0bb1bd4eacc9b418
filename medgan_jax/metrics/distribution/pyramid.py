"""The Laplacian pyramid (Burt & Adelson 1983), as Karras et al. 2018 (arXiv:1710.10196) use it."""

import jax
import jax.numpy as jnp

from medgan_jax.metrics.paired.filters import average_pool

_FILTER = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


def laplacian_pyramid(images: jax.Array, levels: int) -> list[jax.Array]:
    """Splits images into bands of an octave each; linear, differentiable, and exact for flat images.

    The binomial filter of 5 x 5 with mirrored borders (the border pixels not repeated) before each halving; the same
    filter, times 4, over the pixels with zeros between them to double the size again.

    Args:
      images: (N, H, W, C), floating point, of any range.
      levels: how many bands; 0 for none.

    Returns:
      `levels` arrays (N, H / 2^i, W / 2^i, C), i from 0, each an image less its smaller version enlarged; then the
      smallest version. Enlarging the last and adding the one before, and so on, gives the images back.

    Raises:
      ValueError: a side is not divisible by 2^levels, or less than 2 pixels would remain of it.
    """
    height, width = images.shape[1:3]
    if height % 2**levels or width % 2**levels or min(height, width) < 2 ** (levels + 1):
        raise ValueError(f"{height} x {width} pixels cannot be halved {levels} times to 2 pixels or more")
    bands = []
    for _ in range(levels):
        smaller = _filter(_filter(images, axis=1, step=2), axis=2, step=2)
        bands.append(images - _enlarge(smaller))
        images = smaller
    return [*bands, images]


def resized(images: jax.Array, size: int) -> jax.Array:
    """Floating images (N, H, W, C) at `size` px: by means where that comes out even, else linearly, antialiased."""
    number, height, width, channels = images.shape
    if height == width and height % size == 0:
        return average_pool(images, height // size)
    return jax.image.resize(images, (number, size, size, channels), "linear", antialias=True)


def _enlarge(images: jax.Array) -> jax.Array:
    spread = jax.lax.pad(images, jnp.zeros((), images.dtype), [(0, 0, 0), (0, 1, 1), (0, 1, 1), (0, 0, 0)])
    return 4 * _filter(_filter(spread, axis=1), axis=2)


def _filter(images: jax.Array, *, axis: int, step: int = 1) -> jax.Array:
    """Sums of shifted images: a convolution of so few channels is slower, and rounds on some devices."""
    size = images.shape[axis]
    padded = jnp.pad(images, [(2, 2) if i == axis else (0, 0) for i in range(4)], mode="reflect")
    shifted = (jax.lax.slice_in_dim(padded, k, k + size, step, axis) for k in range(5))
    return sum(weight * image for weight, image in zip(_FILTER, shifted, strict=True))
