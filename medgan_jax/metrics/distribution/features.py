"""What a set of images is compared by: vectors, one for each image.

The standard vectors are the last pooled activations of Inception-v3, whose weights have to come from a file of the
user's, see `medgan_jax.models.inception`. The others need no file. They see less, and distances between them are on
scales of their own: compare figures of one kind of features only.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from medgan_jax.images import uint8_to_unit
from medgan_jax.metrics.distribution.pyramid import laplacian_pyramid, resized
from medgan_jax.metrics.paired.filters import average_pool
from medgan_jax.models.inception import InceptionFeatures, load_inception

_SIDE = 16  # px, of what pixel features keep
_CELLS = 4  # along each side, of what pyramid features average over


@dataclasses.dataclass(frozen=True)
class Features:
    """A kind of features.

    Attributes:
      name: as flags and reports have it.
      description: what they see, in a sentence.
      function: from uint8 images (N, H, W, 1 or 3) to float32 (N, D); jitted.
    """

    name: str
    description: str
    function: Callable[[jax.Array], jax.Array]

    def of(self, images: np.ndarray, *, batch_size: int = 32) -> np.ndarray:
        """Vectors float32 (N, D) of uint8 images (N, H, W, C), of which no more than a batch are ever held as float."""
        padded = -len(images) % batch_size  # one shape for all batches: one compilation
        rows = []
        for start in range(0, len(images), batch_size):
            batch = np.asarray(images[start : start + batch_size])
            if len(batch) < batch_size:
                batch = np.concatenate([batch, np.broadcast_to(batch[:1], (padded, *batch.shape[1:]))])
            rows.append(np.asarray(self.function(batch)))
        return np.concatenate(rows)[: len(images)]


@jax.jit
def pixel_features(images: jax.Array) -> jax.Array:
    """The image itself at 16 px: uint8 (N, H, W, C) to float32 (N, 256 C) in [0, 1]."""
    return resized(uint8_to_unit(images), _SIDE).reshape(len(images), -1)


@jax.jit
def pyramid_features(images: jax.Array) -> jax.Array:
    """Colour and texture by place and scale.

    Of each level of a Laplacian pyramid, down to 8 px, the logarithm of the local contrast in 4 x 4 cells, and what is
    left at 8 px averaged over the same cells.

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
    # Colours from 0 to 1 vary some five times less than logarithms of contrasts, which are -3 to -5: all about 1.
    return jnp.concatenate([5 * cells(rest), *contrasts], 1) / 4


PIXELS = Features("pixels", "the images themselves at 16 px: colour and layout, no texture", pixel_features)
PYRAMID = Features(
    "pyramid",
    "mean colour, and contrast at each scale down to 8 px, in 4 x 4 cells: colour, layout and texture, no shapes",
    pyramid_features,
)


def inception_features(weights: Path) -> Features:
    """Inception-v3's pooled activations, by weights from a file. Raises UserError when they are not usable."""
    module, variables = InceptionFeatures(), load_inception(weights)
    apply = jax.jit(lambda variables, images: module.apply(variables, uint8_to_unit(images)))
    description = f"Inception-v3, 2,048 pooled activations, weights of {weights.name}"
    return Features("inception", description, functools.partial(apply, variables))
