"""Memorization: whether fakes are closer to training images than held-out real images are.

Averages do not show it: a generator that copies its training images has excellent ones.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from medgan_jax.images import uint8_to_unit
from medgan_jax.metrics.distribution.bootstrap import Estimate
from medgan_jax.metrics.distribution.features import resized

_SIZE = 32  # px: two photographs of one lesion match at this size, and two lesions do not
_SAME = 1 / 255  # below this distance two images are one
_BATCH = 32


@dataclasses.dataclass(frozen=True)
class Nearest:
    """The nearest of a reference set to each image.

    Attributes:
      index: (N,), of the nearest.
      distance: float32, (N,), root mean squared difference of values in [0, 1].
      symmetry: (N,), how the reference was turned to match, see `turned`.
    """

    index: np.ndarray
    distance: np.ndarray
    symmetry: np.ndarray


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
    flat = ours.reshape(len(ours), -1)
    best = np.full(len(ours), np.inf, np.float32)
    index, symmetry = np.zeros(len(ours), np.int64), np.zeros(len(ours), np.int64)
    for kind in range(8 if symmetries else 1):
        moved = np.stack([turned(image, kind) for image in theirs]).reshape(len(theirs), -1)
        norms = (moved**2).sum(1)
        for start in range(0, len(ours), _BATCH):
            part = slice(start, start + _BATCH)
            found = (norms - 2 * flat[part] @ moved.T).argmin(1)
            # The distance is computed anew, because the rounding of the products would hide an exact copy.
            distance = np.sqrt(((flat[part] - moved[found]) ** 2).mean(1))
            closer = distance < best[part]
            best[part][closer], index[part][closer], symmetry[part][closer] = distance[closer], found[closer], kind
    return Nearest(index, best, symmetry)


def duplicated(distances: np.ndarray) -> np.ndarray:
    """(N,), whether the nearest image is the same one to the grey level, from the distances (N,) to it."""
    return distances < _SAME


def memorization(fakes: np.ndarray, heldout: np.ndarray) -> Estimate:
    """The share of fakes that are closer to the training set than any held-out real is.

    A fake that equals a training image to the grey level always counts. A held-out real that does is left out.

    Args:
      fakes: distances of fakes to their nearest training images, (N,).
      heldout: the same of reals that the generator was not trained on, (M,).

    Returns:
      From 0 to 1, with Wilson's interval: after no hit in N images, resampling would give an interval of zero width.
      Blurred fakes are near to everything: look at the pairs before you call them copies.
    """
    from scipy.stats import binomtest  # here, because it takes long to import

    unseen = heldout[~duplicated(heldout)]
    copied = duplicated(fakes) | (fakes < unseen.min(initial=np.inf if len(unseen) else 0))
    interval = binomtest(int(copied.sum()), len(copied)).proportion_ci(method="wilson")
    return Estimate(float(copied.mean()), float(interval.low), float(interval.high))


def _thumbnails(images: np.ndarray) -> np.ndarray:
    size = min(_SIZE, images.shape[1])
    parts = (images[i : i + _BATCH] for i in range(0, len(images), _BATCH))
    return np.concatenate([np.asarray(resized(uint8_to_unit(jnp.asarray(part)), size)) for part in parts])
