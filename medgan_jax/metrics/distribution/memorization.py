"""Memorization: whether fakes are closer to training images than held-out real images are.

Averages do not show it: a generator that copies its training images has excellent ones. Nor do distances of pixels or
features alone: a copy that is turned, cropped and recoloured a little is as far from its original as two lesions are
from each other. So features propose a few training images, and their pixels, registered, decide.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medgan_jax.images import Array, uint8_to_signed, uint8_to_unit
from medgan_jax.metrics.distribution.bootstrap import Estimate, bootstrap
from medgan_jax.metrics.distribution.features import resized
from medgan_jax.models.efficientnet_lite import MIN_SIZE, EfficientNetLite, load_efficientnet_lite

_SIZE = 32  # px: two photographs of one lesion match at this size, and two lesions do not
_WORKING_SIZE = 64  # px, at which features are computed and from which crops are cut
_CANDIDATES = 3  # training images that the features propose for each image
_CROPS = (1.0, 0.95, 0.9)  # shares of the side
_SAME = 1 / 255  # below this root mean squared difference two images are one
_FLAT = 0.5 / 255  # contrast that is all rounding
LEAST_HELD_OUT = 10  # by fewer, more than one good image in ten would be called a copy
_BATCH = 16  # as fast as 32, and less is computed in vain of a small set
_PAIRS_BATCH = 8  # images; the crops of their candidates take 6 MB


@dataclasses.dataclass(frozen=True)
class Nearest:
    """The training image that each of N images looks most like.

    Attributes:
      index: (N,), of the training image.
      distance: float32, (N,), 1 - the correlation of their pixels, from 0 to 2; 0 only where they are the same image.
      symmetry: (N,), how the training image was turned to match, see `turned`.
    """

    index: np.ndarray
    distance: np.ndarray
    symmetry: np.ndarray


def turned(images: Array, symmetry: int) -> Array:
    """(..., H, W, C) by a symmetry of the square, 0 to 7: `symmetry % 4` quarter turns, mirrored first from 4 on."""
    if symmetry >= 4:
        images = images[..., ::-1, :]
    for _ in range(symmetry % 4):
        images = images.swapaxes(-3, -2)[..., ::-1, :, :]
    return images


class CopySearch:
    """Looks for copies of training images, also mirrored, turned by quarters, cropped by up to a tenth, recoloured.

    Features propose the three training images nearest to each image, in eight orientations: EfficientNet-Lite1's
    activations at stride 16, averaged over the image, standardised by those of the training images, by their cosine.
    Pixels decide, at 32 px or the images' own size if smaller: each candidate in eight orientations, whole, or
    cropped to 95 or 90 % of its side at 3 x 3 places. The mean of each channel is removed and the whole scaled to unit
    mean square, so colour and contrast do not count.

    The time is that of 8 M + N images through the network, and of 57 N crops; the memory, 4 kB a training image.
    """

    def __init__(self, training: np.ndarray) -> None:
        """Computes the features of the training images.

        Args:
          training: uint8, (M, H, H, 1 or 3), of 16 px or more; possibly a memory map.

        Raises:
          UserError: the weights of EfficientNet-Lite1 are not installed as published.
        """
        self._training = training
        vectors = np.stack([_activations(training, symmetry) for symmetry in range(8)])
        self.mean, self.deviation = vectors.mean((0, 1)), vectors.std((0, 1))
        self.directions = self._direction(vectors)

    def nearest(self, images: np.ndarray, groups: tuple[np.ndarray, np.ndarray] | None = None) -> Nearest:
        """Finds the training image that each image looks most like.

        Args:
          images: uint8 (N, H, H, C), of the shape of the training images.
          groups: int, (N,) of the images and (M,) of the training images, to match none with one of its own group:
            of training images themselves this finds others, as if each had been held out. There are two groups or more.
        """
        directions = self._direction(_activations(images))
        ours, theirs = groups or (np.zeros(len(images), int), np.ones(self.directions.shape[1], int))
        parts = []
        for batch in _batches(len(images), _PAIRS_BATCH):
            others = ours[batch, None] != theirs
            candidates = np.asarray(_proposed(directions[batch], self.directions, others))
            distance, found, symmetry = self._compare(images[batch], candidates)
            parts.append((candidates[np.arange(len(batch)), found], np.asarray(distance), np.asarray(symmetry)))
        return Nearest(*(np.concatenate(values)[: len(images)] for values in zip(*parts, strict=True)))

    def _direction(self, vectors: np.ndarray) -> jax.Array:
        vectors = (vectors - self.mean) / (self.deviation + 1e-6)
        return jnp.asarray(vectors / (np.linalg.norm(vectors, axis=-1, keepdims=True) + 1e-6))

    def _compare(self, images: np.ndarray, candidates: np.ndarray) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Of images (B, H, H, C) with candidates (B, K): the distance, which of the K is the best, its symmetry."""
        return _registered(images, self._training[candidates])


def nearest(images: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The reference nearest to each image, by the pixels at 32 px or their own size if smaller.

    Args:
      images: uint8, (N, H, H, C).
      references: uint8, (M, H, H, C).

    Returns:
      Its index, (N,); and the root mean squared difference of pixels in [0, 1], (N,).
    """
    ours, theirs = (_thumbnails(x).reshape(len(x), -1) for x in (images, references))
    norms = (theirs**2).sum(1)
    parts = [(norms - 2 * ours[i : i + _BATCH] @ theirs.T).argmin(1) for i in range(0, len(ours), _BATCH)]
    index = np.concatenate(parts)
    return index, np.sqrt(np.square(ours - theirs[index]).mean(1))


def duplicated(distances: np.ndarray) -> np.ndarray:
    """(N,), whether the nearest training image is the same one to the grey level, from the distances (N,) to it."""
    return distances == 0


def distances_of_unseen(
    search: CopySearch,
    training: np.ndarray,
    groups: np.ndarray,
    held_out: np.ndarray,
    ours: np.ndarray | slice = slice(None),
) -> np.ndarray:
    """The distances, float32, of reals that were not trained on to the training images.

    They are what was held out; where that is fewer than `LEAST_HELD_OUT` images, the training images, each compared
    with those of other groups alone. Where all are of one group there are none.

    Args:
      search: among the training images.
      training: uint8, (M, H, H, C).
      groups: int, (M,), the same number for images of one patient or lesion.
      held_out: uint8, (L, H, H, C).
      ours: which of the training images may stand for unseen ones.
    """
    if len(held_out) >= LEAST_HELD_OUT:
        return search.nearest(held_out).distance
    if len(np.unique(groups)) < 2:
        return np.empty(0, np.float32)
    return search.nearest(np.asarray(training[ours]), (groups[ours], groups)).distance


def memorized(fakes: np.ndarray, heldout: np.ndarray) -> np.ndarray:
    """(N,), whether each fake is closer to the training set than any held-out real is.

    A fake that equals a training image to the grey level always counts. A held-out real that does is left out.

    Args:
      fakes: distances of fakes to their nearest training images, (N,).
      heldout: the same of reals that the generator was not trained on, (M,).
    """
    unseen = heldout[~duplicated(heldout)]
    return duplicated(fakes) | (fakes < unseen.min(initial=np.inf if len(unseen) else 0))


def memorization(fakes: np.ndarray, heldout: np.ndarray) -> Estimate:
    """The share of `memorized` fakes, from 0 to 1.

    With Wilson's interval: after no hit in N images, resampling would give an interval of zero width.
    """
    from scipy.stats import binomtest  # here, because it takes long to import

    copied = memorized(fakes, heldout)
    interval = binomtest(int(copied.sum()), len(copied)).proportion_ci(method="wilson")
    return Estimate(float(copied.mean()), float(interval.low), float(interval.high))


def chance_of_memorized(fakes: np.ndarray, heldout: np.ndarray) -> float:
    """The probability that as many fakes of a perfect generator, or more, are `memorized`; distances as there.

    Its fakes and the held-out reals are exchangeable: the k nearest of all N + M are fakes with the probability
    N / (N + M) * (N - 1) / (N + M - 1) * ..., k factors.
    """
    number, total = len(fakes), len(fakes) + int((~duplicated(heldout)).sum())
    places = np.arange(memorized(fakes, heldout).sum())
    return float(np.prod((number - places) / (total - places)))


def copying_z(fakes: np.ndarray, heldout: np.ndarray, *, seed: int, replicates: int = 200) -> Estimate:
    """C_T of Meehan et al. 2020, arXiv:2004.05675, of the whole space: whether fakes as a set copy.

    The z-score of the Mann-Whitney U of fakes' and held-out reals' distances to the training set. Standard normal for a
    perfect generator; below -3, the fakes are closer to the training images than unseen reals are; above 3, farther.
    Fakes that are all alike are no independent draws: their score is far from 0 whether they are copies or not.

    Their mean over cells of the space is left out: it needs tens of held-out reals in each cell.

    Args:
      fakes: distances of fakes to their nearest training images, (N,), at least 2.
      heldout: the same of reals that the generator was not trained on, (M,), at least 2.
      seed: of the bootstrap.
      replicates: of the bootstrap.
    """
    order = np.argsort(heldout)
    below, not_above = (np.searchsorted(heldout[order], fakes, side) for side in ("left", "right"))
    deviation = np.sqrt((len(fakes) + len(heldout) + 1) / (12 * len(fakes) * len(heldout)))

    def z(fake_weights: np.ndarray, heldout_weights: np.ndarray) -> float:
        cumulated = np.concatenate([[0], np.cumsum(heldout_weights[order])])
        farther = fake_weights @ (cumulated[below] + cumulated[not_above]) / 2  # U / NM: ties count half
        return float((farther - 0.5) / deviation)

    return bootstrap(z, [len(fakes), len(heldout)], seed=seed, replicates=replicates)


def _batches(number: int, size: int) -> Iterator[np.ndarray]:
    """Indices of all; the last batch is filled up with the last index: one shape, one compilation."""
    return (np.minimum(np.arange(start, start + size), number - 1) for start in range(0, number, size))


def _activations(images: np.ndarray, symmetry: int = 0) -> np.ndarray:
    """Float32, (N, 112), of uint8 images (N, H, H, C) as turned by a symmetry."""
    apply = _network()
    rows = [np.asarray(apply(turned(images[batch], symmetry))) for batch in _batches(len(images), _BATCH)]
    return np.concatenate(rows)[: len(images)]


@functools.cache
def _network() -> Callable[[np.ndarray], jax.Array]:
    module, variables = EfficientNetLite("lite1"), jax.device_put(load_efficientnet_lite("lite1"))

    @jax.jit
    def apply(variables: dict[str, dict], images: jax.Array) -> jax.Array:
        side = min(max(images.shape[1], MIN_SIZE), _WORKING_SIZE)
        activations: Any = module.apply(variables, resized(uint8_to_signed(images), side))
        return activations.taps[2].mean((1, 2))

    return functools.partial(apply, variables)


@jax.jit
def _proposed(directions: jax.Array, training: jax.Array, allowed: jax.Array) -> jax.Array:
    """The training images, (B, K), nearest to each of (B, D), from those in eight orientations, (8, M, D).

    Of those `allowed`, bool (B, M), at least one for each; where there are fewer than K, the nearest fills up.
    """
    cosines = jnp.einsum("bd,omd->bom", directions, training, precision=jax.lax.Precision.HIGHEST).max(1)
    values, found = jax.lax.top_k(jnp.where(allowed, cosines, -jnp.inf), min(_CANDIDATES, training.shape[1]))
    return jnp.where(jnp.isfinite(values), found, found[:, :1])


@jax.jit
def _registered(images: jax.Array, candidates: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The distance of each image, uint8 (B, H, H, C), to the best of its candidates, (B, K, H, H, C).

    Also which one that is, and its symmetry; each (B,).
    """
    number, views = len(images), turned_back(images)

    def flat(x: jax.Array) -> jax.Array:
        return x.reshape(number, -1, math.prod(views.shape[2:]))

    theirs = crops(candidates.reshape(-1, *images.shape[1:]))
    correlations = jnp.einsum(
        "bsd,btd->bts", flat(normalized(views)), flat(normalized(theirs)), precision=jax.lax.Precision.HIGHEST
    )
    distances = 1 - correlations.reshape(number, candidates.shape[1], -1, 8) / math.prod(views.shape[2:])
    # Only the same image has the distance 0, though correlations are rounded, and flat images have none.
    squares = ((flat(theirs[:, :1])[:, :, None] - flat(views)[:, None]) ** 2).mean(-1)
    distances = jnp.clip(distances, 1e-6).min(2)  # (B, K, 8)
    distances = jnp.where(squares < _SAME**2, 0, distances).reshape(number, -1)
    best = distances.argmin(1)
    return distances.min(1), best // 8, best % 8


def turned_back(images: jax.Array) -> jax.Array:
    """(N, 8, S, S, C) in [0, 1] of uint8 images (N, H, H, C): at S = 32 px or less, undone each symmetry in turn.

    The images are turned back, which is less work than to turn every crop of what they are compared with: a turned crop
    is a crop of what is turned.
    """
    backwards = [0, 3, 2, 1, 4, 5, 6, 7]
    whole = crops(images, (1.0,))
    return jnp.concatenate([turned(whole, symmetry) for symmetry in backwards], 1)


def crops(images: jax.Array, shares: tuple[float, ...] = _CROPS) -> jax.Array:
    """(N, P, S, S, C) in [0, 1] of uint8 images (N, H, H, C): crops of these shares of the side, the whole at first."""
    size = min(_SIZE, images.shape[1])
    smaller = resized(uint8_to_unit(images), min(_WORKING_SIZE, images.shape[1]))
    return jnp.concatenate([_cropped(smaller, share, size) for share in shares], 1)


def _cropped(images: jax.Array, share: float, size: int) -> jax.Array:
    """Crops (N, P, `size`, `size`, C) of `share` of the sides of images (N, S, S, C), at P places."""
    side = images.shape[1]
    places = [0.0] if share == 1 else [0.0, 0.5, 1.0]
    scale = size / (share * side)
    rows = [
        jax.image.scale_and_translate(
            jnp.eye(side), (size, side), (0,), jnp.array([scale]), jnp.array([-place * (1 - share) * side * scale]),
            "linear", precision=jax.lax.Precision.HIGHEST,
        )
        for place in places
    ]  # fmt: skip
    matrices = jnp.stack(rows)
    crops = jnp.einsum("ius,nstc->niutc", matrices, images, precision=jax.lax.Precision.HIGHEST)
    crops = jnp.einsum("jvt,niutc->nijuvc", matrices, crops, precision=jax.lax.Precision.HIGHEST)
    return crops.reshape(len(images), -1, *crops.shape[3:])


def normalized(images: jax.Array) -> jax.Array:
    """Each channel of (..., H, W, C) without its mean, the whole of unit mean square; 0 where there is no contrast."""
    images = images - images.mean((-3, -2), keepdims=True)
    contrast = jnp.sqrt((images**2).mean((-3, -2, -1), keepdims=True))
    return images / jnp.maximum(contrast, _FLAT)


def _thumbnails(images: np.ndarray) -> np.ndarray:
    size = min(_SIZE, images.shape[1])
    parts = (images[i : i + _BATCH] for i in range(0, len(images), _BATCH))
    return np.concatenate([np.asarray(resized(uint8_to_unit(jnp.asarray(part)), size)) for part in parts])
