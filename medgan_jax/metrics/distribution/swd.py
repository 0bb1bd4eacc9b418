"""Sliced Wasserstein distance of the patches of image pyramids."""

import zlib
from collections.abc import Callable, Iterator

import jax
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from medgan_jax.metrics.distribution.bootstrap import Estimate, bootstrap
from medgan_jax.metrics.distribution.features import laplacian_pyramid

_SMALLEST = 16  # px, the smallest scale
_PATCH = 7  # px, the side of a patch
_PATCHES_PER_IMAGE = 128
_PATCHES_PER_SET = 2**15
_PART = 64  # directions: those of the interval, and those projected on at a time, to bound the memory
_CHUNK = 32  # images split into bands at a time

_split = jax.jit(laplacian_pyramid, static_argnames="levels")


def sliced_wasserstein(
    fakes: np.ndarray, reals: np.ndarray, *, seed: int = 0, replicates: int = 100, directions: int = 512
) -> dict[int, Estimate]:
    """Sliced Wasserstein distance of the patches of two sets of images, by scale (Karras et al. 2018, appendix B).

    arXiv:1710.10196. The images become Laplacian pyramids. From each level, patches of 7 x 7 pixels are taken at random
    places: 128 per image, fewer where a set would have more than 2^15. Each set's patches are normalised by that set's
    own mean and standard deviation per channel, as published, so brightness, contrast and tint of whole sets do not
    count. The patches are projected on random directions of unit length; the result is the mean over the directions of
    the Wasserstein-1 distance of the projections, times 1000.

    The places of an image's patches depend on the seed and its pixels alone: equal images have equal patches, and the
    order of images does not matter. The distance of finite sets of the same distribution is above 0, the more so the
    smaller the sets: compare values of the same sizes only.

    The interval comes from resampled images with all their patches, normalised again (for RGB images by the channels'
    mean variance along a direction, which saves projecting again). To save time it is the interval of the mean over the
    first 64 directions, shifted to the value; this makes it wider by up to a fifth.

    Args:
      fakes: uint8, (N, S, S, C), N >= 2.
      reals: uint8, (M, S, S, C), M >= 2.
      seed: of the places, the directions and the interval.
      replicates: of the bootstrap; 0 for the values alone.
      directions: how many, 512 as published.

    Returns:
      The distance by the scale's width in pixels: S, then halved as long as it is even and at least 16 pixels remain.
      Each but the last is of a band of one octave; the last is of the low-pass rest.

    Raises:
      ValueError: the images are not uint8, not square, smaller than 7 pixels, not of one shape, or too few.
    """
    for images in (fakes, reals):
        if images.dtype != np.uint8 or images.ndim != 4:
            raise ValueError(f"images must be uint8 (N, S, S, C), got {images.dtype} {images.shape}")
    size, width, channels = fakes.shape[1:]
    if fakes.shape[1:] != reals.shape[1:] or size != width or size < _PATCH:
        raise ValueError(f"images must be square, of one shape and 7 pixels or more: {fakes.shape}, {reals.shape}")
    generator = np.random.Generator(np.random.PCG64(seed))
    sizes = [size]
    while sizes[-1] % 2 == 0 and sizes[-1] // 2 >= _SMALLEST:
        sizes.append(sizes[-1] // 2)
    fake_patches, real_patches = _patches(fakes, sizes, seed), _patches(reals, sizes, seed)
    distances = {}
    for size in sizes:
        fake_set, real_set = _Patches(fake_patches.pop(0)), _Patches(real_patches.pop(0))  # pop: to free the memory
        units = generator.standard_normal((directions, channels, _PATCH**2))
        units /= np.linalg.norm(units, axis=(1, 2), keepdims=True)
        distances[size] = _distance(fake_set, real_set, units, seed=seed, replicates=replicates)
    return distances


def _patches(images: np.ndarray, sizes: list[int], seed: int) -> list[np.ndarray]:
    """For each scale, patches (N, patches, C, 7, 7)."""
    count = max(1, min(_PATCHES_PER_IMAGE, _PATCHES_PER_SET // len(images)))
    scales: list[list[np.ndarray]] = [[] for _ in sizes]
    for first in range(0, len(images), _CHUNK):
        chunk = np.ascontiguousarray(images[first : first + _CHUNK])
        generators = [np.random.Generator(np.random.PCG64([seed, zlib.crc32(image)])) for image in chunk]
        bands = _split(chunk.astype(np.float32), levels=len(sizes) - 1)
        for size, band, taken in zip(sizes, bands, scales, strict=True):
            places = np.stack([generator.integers(size - _PATCH + 1, size=(2, count)) for generator in generators])
            windows = sliding_window_view(np.asarray(band), (_PATCH, _PATCH), axis=(1, 2))
            taken.append(windows[np.arange(len(chunk))[:, None], places[:, 0], places[:, 1]])
    return [np.concatenate(taken) for taken in scales]


class _Patches:
    """The patches (N, patches, C, 7, 7) of one set, normalised."""

    def __init__(self, patches: np.ndarray) -> None:
        self.number, self._count, channels = patches.shape[:3]
        patches = patches.reshape(self.number, self._count, channels, -1).astype(np.float64)
        patches -= patches.mean(axis=(0, 1, 3), keepdims=True)
        deviation = patches.std(axis=(0, 1, 3), keepdims=True)
        patches /= np.where(deviation > 0, deviation, 1)
        self._matrix = patches.reshape(self.number * self._count, -1)
        self._means = patches.mean(axis=(1, 3))
        self._squares = np.where(deviation > 0, (patches**2).mean(axis=(1, 3), keepdims=True), 1)[:, 0, :, 0]

    def _project(self, directions: np.ndarray) -> np.ndarray:
        rows = self._matrix @ directions.reshape(len(directions), -1).T
        return np.ascontiguousarray(rows.T)  # several times as fast as columns

    def projections(self, directions: np.ndarray) -> np.ndarray:
        """Sorted projections (number, N * patches) on directions (number, C, 49)."""
        rows = self._project(directions)
        scales = np.sqrt((directions**2).sum(axis=2) @ self._squares.mean(axis=0))
        rows /= np.where(scales > 0, scales, 1)[:, None]
        rows.sort(axis=1)
        return rows

    def weighted_projections(
        self, directions: np.ndarray
    ) -> Callable[[np.ndarray], Iterator[tuple[np.ndarray, np.ndarray]]]:
        """A function of the images' weights that gives, by direction, sorted projections and the patches' weights.

        The projections are normalised for these weights.
        """
        rows = self._project(directions)
        order = np.argsort(rows, axis=1)
        rows, images = np.take_along_axis(rows, order, axis=1), order // self._count
        sums, energies = directions.sum(axis=2), (directions**2).sum(axis=2)

        def distributions(weights: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            means = weights @ self._means
            shifts, scales = sums @ means, np.sqrt(energies @ (weights @ self._squares - means**2).clip(0))
            steps = weights / self._count
            for places, image, shift, scale in zip(rows, images, shifts, scales, strict=True):
                yield (places - shift) / (scale or 1), steps[image]

        return distributions


def _distance(fakes: _Patches, reals: _Patches, directions: np.ndarray, *, seed: int, replicates: int) -> Estimate:
    """Mean Wasserstein-1 distance of the projections, times 1000."""
    parts = [directions[i : i + _PART] for i in range(0, len(directions), _PART)]
    distances = [_wasserstein(fakes.projections(part), reals.projections(part)) for part in parts]
    value = 1000 * float(np.mean(np.concatenate(distances)))
    if not replicates:
        return Estimate(value, value, value)
    fake_projections, real_projections = (x.weighted_projections(parts[0]) for x in (fakes, reals))

    def mean_distance(fake_weights: np.ndarray, real_weights: np.ndarray) -> float:
        pairs = zip(fake_projections(fake_weights), real_projections(real_weights), strict=True)
        return 1000 * float(np.mean([_weighted_wasserstein(*fake, *real) for fake, real in pairs]))

    resampled = bootstrap(mean_distance, (fakes.number, reals.number), seed=seed, replicates=replicates)
    shift = value - resampled.value
    return Estimate(value, max(0.0, resampled.low + shift), resampled.high + shift)


# `scipy.stats.wasserstein_distance` gives the same numbers, and takes four to six times as long: it takes one direction
# at a time, and sorts what is sorted.
def _wasserstein(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Wasserstein-1 distances (number,) of sorted values (number, n) and (number, m), all of equal weights.

    That is the mean distance of their quantiles, which are steps at multiples of 1 / n and 1 / m.
    """
    n, m = x.shape[1], y.shape[1]
    ends = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)  # times n m, so that equal ends are equal
    at_x, at_y = (ends - 1) // m, (ends - 1) // n
    return np.abs(x[:, at_x] - y[:, at_y]) @ np.diff(ends, prepend=0) / (n * m)


def _weighted_wasserstein(x: np.ndarray, x_weights: np.ndarray, y: np.ndarray, y_weights: np.ndarray) -> float:
    """Wasserstein-1 distance of two sets of sorted values: the area between their distribution functions."""
    places = np.concatenate([x, y])
    order = np.argsort(places, kind="stable")  # which merges sorted parts
    difference = np.cumsum(np.concatenate([x_weights, -y_weights]).take(order[:-1]))
    # On one thread, as BLAS would not: starting others takes longer than the sum.
    return float(np.einsum("i,i", np.abs(difference, out=difference), np.diff(places.take(order))))
