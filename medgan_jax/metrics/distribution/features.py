"""Feature vectors of images, for KID, FID and PRDC; and the Laplacian pyramid that some of them come from.

The default ones are the pooled activations of EfficientNet-Lite1, whose weights are installed with this package.
Published FIDs and KIDs are of Inception-v3, whose weights must come from a file of the user, see
`medgan_jax.models.inception`. Features without a network see less: by the pyramid's, a mosaic of blocks is as good as a
photograph. Each kind has its own scale: compare values of one kind of features only.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from medgan_jax.images import uint8_to_signed, uint8_to_unit
from medgan_jax.metrics.paired.filters import average_pool, weighted_sum
from medgan_jax.models.efficientnet_lite import VARIANTS, EfficientNetLite, load_efficientnet_lite
from medgan_jax.models.inception import InceptionFeatures, load_inception

_PIXELS_SIZE = 16  # px
_NETWORK_SIZE = 224  # px, about what EfficientNet-Lite was trained at
_CELLS = 4  # of pyramid features, along each side
_FILTER = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)  # of the pyramid


@dataclasses.dataclass(frozen=True)
class Features:
    """A kind of features.

    Attributes:
      name: as in flags and reports.
      description: what they see, in one sentence.
      function: from uint8 images (N, H, W, 1 or 3) to float32 (N, D).
    """

    name: str
    description: str
    function: Callable[[jax.Array], Any]

    def of(self, images: np.ndarray, *, batch_size: int = 32) -> np.ndarray:
        """Vectors float32 (N, D) of uint8 images (N, H, W, C), computed batch by batch."""
        rows = []
        for start in range(0, len(images), batch_size):
            # A last short batch is filled up: one shape, one compilation.
            batch = np.minimum(np.arange(start, start + batch_size), len(images) - 1)
            rows.append(np.asarray(self.function(jnp.asarray(images[batch]))))
        return np.concatenate(rows)[: len(images)]


@jax.jit
def pixel_features(images: jax.Array) -> jax.Array:
    """The image at 16 px: uint8 (N, H, W, C) to float32 (N, 256 C) in [0, 1]."""
    return resized(uint8_to_unit(images), _PIXELS_SIZE).reshape(len(images), -1)


@jax.jit
def pyramid_features(images: jax.Array) -> jax.Array:
    """Logarithms of local contrast at each scale, and mean colours, in 4 x 4 cells.

    The contrasts are those of the bands of a Laplacian pyramid down to 8 px; the colours are those of its rest.

    Args:
      images: uint8 (N, H, W, 1 or 3), at least 16 px; resized first where their size is no power of two.

    Returns:
      float32, (N, 16 C (levels + 1)).
    """
    levels = min(images.shape[1:3]).bit_length() - 4
    *bands, rest = laplacian_pyramid(resized(uint8_to_unit(images), 8 * 2**levels), levels)

    def cells(planes: jax.Array) -> jax.Array:
        pooled = average_pool(planes, planes.shape[1] // _CELLS)
        return pooled.reshape(len(pooled), -1)

    contrasts = [0.5 * jnp.log(cells(band**2) + 1e-6) for band in bands]  # 1e-6: a quarter of a grey level
    # Colours from 0 to 1 vary about five times less than log contrasts, which are -3 to -5: bring all to about 1.
    return jnp.concatenate([5 * cells(rest), *contrasts], 1) / 4


PIXELS = Features("pixels", "the images themselves at 16 px: colour and layout, no texture", pixel_features)
PYRAMID = Features(
    "pyramid",
    "mean colour, and contrast at each scale down to 8 px, in 4 x 4 cells: colour, layout and texture, no shapes",
    pyramid_features,
)


@functools.cache
def efficientnet_features(variant: str = "lite1") -> Features:
    """The pooled activations of EfficientNet-Lite, "lite0" or "lite1", pretrained on ImageNet.

    Images are resized to 224 px, bicubically, but enlarged fourfold at most. At their own 64 px the network sees a
    tenth as well how a set differs from another, in standard deviations of KID. Raises UserError where the weights are
    not installed as published.
    """
    module, variables = EfficientNetLite(variant), jax.device_put(load_efficientnet_lite(variant))

    @jax.jit
    def apply(variables: dict[str, dict], images: jax.Array) -> jax.Array:
        number, size, _, channels = images.shape
        side = min(_NETWORK_SIZE, 4 * size)
        images = jax.image.resize(uint8_to_signed(images), (number, side, side, channels), "cubic", antialias=True)
        activations: Any = module.apply(variables, images)
        return activations.pooled

    weights = VARIANTS[variant].file.removesuffix(".pth")
    description = (
        f"1,280 pooled activations at {_NETWORK_SIZE} px, or four times the image's size if that is less, weights "
        f"{weights}; not comparable with published FIDs"
    )
    return Features(f"efficientnet-{variant}", description, functools.partial(apply, variables))


def inception_features(weights: Path) -> Features:
    """Inception-v3's pooled activations, with weights from a file. Raises UserError when they are not usable."""
    module, variables = InceptionFeatures(), load_inception(weights)
    apply = jax.jit(lambda variables, images: module.apply(variables, uint8_to_unit(images)))
    description = f"Inception-v3, 2,048 pooled activations, weights of {weights.name}"
    return Features("inception", description, functools.partial(apply, variables))


def feature_sets(fakes: ArrayLike, reals: ArrayLike, *, least: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Checks two sets of features, (N, D) and (M, D), and returns them as float64.

    Raises:
      ValueError: a set is not a matrix, has fewer than `least` rows or values that are not finite, or D differs.
    """
    fakes, reals = np.asarray(fakes, np.float64), np.asarray(reals, np.float64)
    if fakes.ndim != 2 or reals.ndim != 2 or fakes.shape[1] != reals.shape[1]:
        raise ValueError(f"features must be (N, D) and (M, D), got {fakes.shape} and {reals.shape}")
    if min(len(fakes), len(reals)) < least:
        raise ValueError(f"each set needs at least {least} images, got {len(fakes)} and {len(reals)}")
    if not (np.isfinite(fakes).all() and np.isfinite(reals).all()):
        raise ValueError("features must be finite")
    return fakes, reals


def laplacian_pyramid(images: jax.Array, levels: int) -> list[jax.Array]:
    """Splits images into bands of one octave each (Burt & Adelson 1983, as used by Karras et al. 2018, 1710.10196).

    Each halving is the 5 x 5 binomial filter with mirrored borders (border pixels not repeated), then every second
    pixel. Each doubling puts zeros between the pixels and applies four times the same filter.

    Args:
      images: (N, H, W, C), floating point, of any range.
      levels: how many bands; 0 for none.

    Returns:
      `levels` arrays (N, H / 2^i, W / 2^i, C), i from 0: each an image less its half-size version enlarged. Then the
      smallest version. The sum of a band and the enlarged next version gives the image back.

    Raises:
      ValueError: a side is not divisible by 2^levels, or less than 2 pixels would remain of it.
    """
    height, width = images.shape[1:3]
    if height % 2**levels or width % 2**levels or min(height, width) < 2 ** (levels + 1):
        raise ValueError(f"{height} x {width} pixels cannot be halved {levels} times to 2 pixels or more")
    bands = []
    for _ in range(levels):
        smaller = _smooth(_smooth(images, axis=1, step=2), axis=2, step=2)
        spread = jax.lax.pad(smaller, jnp.zeros((), images.dtype), [(0, 0, 0), (0, 1, 1), (0, 1, 1), (0, 0, 0)])
        bands.append(images - 4 * _smooth(_smooth(spread, axis=1), axis=2))
        images = smaller
    return [*bands, images]


def _smooth(images: jax.Array, *, axis: int, step: int = 1) -> jax.Array:
    """The binomial filter as a sum of shifted images: a convolution of so few channels is slower and less exact."""
    size = images.shape[axis]
    padded = jnp.pad(images, [(2, 2) if i == axis else (0, 0) for i in range(4)], mode="reflect")
    return weighted_sum([jax.lax.slice_in_dim(padded, k, k + size, step, axis) for k in range(5)], _FILTER)


def resized(images: jax.Array, size: int) -> jax.Array:
    """Floating images (N, H, W, C) at `size` px: block means where the size divides, else linear and antialiased."""
    number, height, width, channels = images.shape
    if height == width and height % size == 0:
        return average_pool(images, height // size)
    return jax.image.resize(images, (number, size, size, channels), "linear", antialias=True)
