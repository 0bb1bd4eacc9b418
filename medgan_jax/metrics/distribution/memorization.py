"""Copies: whether fakes lie closer to training images than real patients do.

Averages do not tell: a generator that copies has excellent ones.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np

from medgan_jax.images import uint8_to_unit
from medgan_jax.metrics.distribution.bootstrap import Estimate
from medgan_jax.metrics.distribution.pyramid import resized

_SIDE = 32  # px: two photographs of one lesion match at this size, and two lesions do not
_SAME = 1 / 255  # below this distance two images are one
_BATCH = 32


@dataclasses.dataclass(frozen=True)
class Nearest:
    """The nearest of a reference set to each image.

    Attributes:
      index: (N,), of the nearest.
      distance: float32, (N,), root mean squared difference of values in [0, 1].
      symmetry: (N,), how the reference was turned to match: quarter turns, plus 4 where it was mirrored first.
    """

    index: np.ndarray
    distance: np.ndarray
    symmetry: np.ndarray

    def part(self, chosen: np.ndarray) -> "Nearest":
        """Of some of the images, by their numbers."""
        return Nearest(self.index[chosen], self.distance[chosen], self.symmetry[chosen])


def turned(image: np.ndarray, symmetry: int) -> np.ndarray:
    """(H, W, C) by a symmetry of the square, 0 to 7: `symmetry % 4` quarter turns, mirrored first from 4 on."""
    return np.rot90(image[:, ::-1] if symmetry >= 4 else image, symmetry % 4)


def nearest(images: np.ndarray, references: np.ndarray, *, symmetries: bool = True) -> Nearest:
    """Finds the nearest reference of each image, by the pixels at 32 px, or their own size where that is smaller.

    Args:
      images: uint8, (N, H, H, C).
      references: uint8, (M, H, H, C).
      symmetries: whether a reference may be mirrored and turned by quarters: the dermatoscope has no up.
    """
    ours, theirs = _thumbnails(images), _thumbnails(references)
    kinds = range(8) if symmetries else range(1)
    best = np.full(len(ours), np.inf, np.float32)
    index, symmetry = np.zeros(len(ours), np.int64), np.zeros(len(ours), np.int64)
    for kind in kinds:
        moved = np.stack([turned(image, kind) for image in theirs]).reshape(len(theirs), -1)
        for start in range(0, len(ours), _BATCH):
            part = slice(start, start + _BATCH)
            flat = ours[part].reshape(len(ours[part]), -1)
            squares = (flat**2).sum(1)[:, None] + (moved**2).sum(1)[None] - 2 * flat @ moved.T
            found = squares.argmin(1)
            # Once more without the products, whose rounding would hide an exact copy.
            distance = np.sqrt(((flat - moved[found]) ** 2).mean(1))
            closer = distance < best[part]
            best[part][closer], index[part][closer], symmetry[part][closer] = distance[closer], found[closer], kind
    return Nearest(index, best, symmetry)


def duplicated(found: Nearest) -> np.ndarray:
    """(N,), whether each image is its nearest, turned or not, to a grey level."""
    return found.distance < _SAME


def copied_share(fakes: Nearest, heldout: Nearest) -> Estimate:
    """The share of fakes that are closer to the training set than any held-out real is.

    A fake that is a training image to the grey level is a copy whatever the others are; a held-out real that is one
    says nothing, and is left out.

    Args:
      fakes: nearest training images of fakes.
      heldout: nearest training images of reals that the generator has not seen.

    Returns:
      From 0 to 1, with Wilson's interval: resampling would be certain of a share of which it has seen nothing. Blurred
      fakes are near to everything: look at the pairs before you call them copies.
    """
    strangers = heldout.distance[~duplicated(heldout)]
    copied = duplicated(fakes) | (fakes.distance < strangers.min(initial=0 if not len(strangers) else np.inf))
    share, number, z = float(copied.mean()), len(copied), 1.959964
    centre = (share + z**2 / (2 * number)) / (1 + z**2 / number)
    half = z / (1 + z**2 / number) * math.sqrt(share * (1 - share) / number + z**2 / (4 * number**2))
    return Estimate(share, max(0.0, centre - half) if share else 0.0, min(1.0, centre + half) if share < 1 else 1.0)


def _thumbnails(images: np.ndarray) -> np.ndarray:
    size = min(_SIDE, images.shape[1])
    parts = (images[i : i + _BATCH] for i in range(0, len(images), _BATCH))
    return np.concatenate([np.asarray(resized(uint8_to_unit(jnp.asarray(part)), size)) for part in parts])
