"""Sliced Wasserstein distance of the patches of image pyramids."""

import functools
import zlib
from collections.abc import Callable, Iterator

import jax
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from medgan_jax.metrics.distribution.bootstrap import Estimate, bootstrap
from medgan_jax.metrics.distribution.pyramid import laplacian_pyramid

_SMALLEST = 16  # pixels
_SIDE = 7  # pixels of a patch
_PATCHES_PER_IMAGE = 128
_PATCHES_PER_SET = 2**15
_DIRECTIONS = 512
_RESAMPLED = 64  # directions of the interval
_CHUNK = 32  # images taken apart at a time

_split = jax.jit(laplacian_pyramid, static_argnames="levels")


def sliced_wasserstein(
    fakes: np.ndarray, reals: np.ndarray, *, seed: int = 0, replicates: int = 100
) -> dict[int, Estimate]:
    """How far apart the patches of two sets of images are, scale by scale (Karras et al. 2018, appendix B).

    arXiv:1710.10196. The images become Laplacian pyramids. Of each level, patches of 7 x 7 pixels are taken at random
    places, 128 an image, or fewer where a set would have more than 2^15. Each set's patches are normalised by that
    set's own mean and standard deviation per channel, as published: the measure is blind to brightness, contrast and
    tint that differ between the sets as wholes. The patches are then projected on 512 random directions of unit
    length; the result is the mean over the directions of the Wasserstein-1 distances of the projections, times 1000.

    Where an image's patches lie depends on the seed and on its pixels alone: equal images have equal patches, and the
    order of the images means nothing. Sizes may differ; but the value is above 0 for finite sets of the same
    distribution, the more so the smaller they are: compare only values of the same sizes.

    The interval comes from resampled images with all their patches, normalised anew: of RGB images, whose channels
    would have to be projected again, by the channels' mean variance along a direction. To save time it is that of the
    mean over 64 of the 512 directions, moved to the value, and wider for that, by up to a fifth.

    Args:
      fakes: uint8, (N, S, S, C), N >= 2.
      reals: uint8, (M, S, S, C), M >= 2.
      seed: of the places, the directions and the interval.
      replicates: of the bootstrap; 0 for the values alone.

    Returns:
      The distance by the scale's width in pixels: S, then halved as often as it is even and at least 16 pixels remain.
      The bands of an octave first, the low-pass rest last.

    Raises:
      ValueError: the images are not uint8, not square, smaller than 7 pixels, not of one shape, or too few.
    """
    for images in (fakes, reals):
        if images.dtype != np.uint8 or images.ndim != 4:
            raise ValueError(f"images must be uint8 (N, S, S, C), got {images.dtype} {images.shape}")
    size, width = fakes.shape[1:3]
    if fakes.shape[1:] != reals.shape[1:] or size != width or size < _SIDE:
        raise ValueError(f"images must be square, of one shape and 7 pixels or more: {fakes.shape}, {reals.shape}")
    generator = np.random.Generator(np.random.PCG64(seed))
    sizes = [size]
    while sizes[-1] % 2 == 0 and sizes[-1] // 2 >= _SMALLEST:
        sizes.append(sizes[-1] // 2)
    fake_patches, real_patches = _patches(fakes, sizes, seed), _patches(reals, sizes, seed)
    distances = {}
    for size in sizes:
        sets = [_Patches(patches.pop(0)) for patches in (fake_patches, real_patches)]
        directions = generator.standard_normal((_DIRECTIONS, fakes.shape[3], _SIDE**2))
        directions /= np.linalg.norm(directions, axis=(1, 2), keepdims=True)
        distances[size] = _distance(*sets, directions, seed=seed, replicates=replicates)
    return distances


def _patches(images: np.ndarray, sizes: list[int], seed: int) -> list[np.ndarray]:
    """For each scale, patches (N, patches, C, 7, 7)."""
    count = max(1, min(_PATCHES_PER_IMAGE, _PATCHES_PER_SET // len(images)))
    scales = [[] for _ in sizes]
    for first in range(0, len(images), _CHUNK):
        chunk = np.ascontiguousarray(images[first : first + _CHUNK])
        generators = [np.random.Generator(np.random.PCG64([seed, zlib.crc32(image)])) for image in chunk]
        bands = _split(chunk.astype(np.float32), levels=len(sizes) - 1)
        for size, band, taken in zip(sizes, bands, scales, strict=True):
            places = np.stack([generator.integers(size - _SIDE + 1, size=(2, count)) for generator in generators])
            windows = sliding_window_view(np.asarray(band), (_SIDE, _SIDE), axis=(1, 2))
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

    def places(self, directions: np.ndarray) -> np.ndarray:
        """Where the patches lie on directions (number, C, 49): sorted, (number, N * patches)."""
        rows = np.ascontiguousarray((self._matrix @ directions.reshape(len(directions), -1).T).T)
        scales = np.sqrt((directions**2).sum(axis=2) @ self._squares.mean(axis=0))
        rows /= np.where(scales > 0, scales, 1)[:, None]
        rows.sort(axis=1)
        return rows

    def project(self, directions: np.ndarray) -> Callable[[np.ndarray], Iterator[tuple[np.ndarray, np.ndarray]]]:
        """Projects on directions (number, C, 49).

        Returns:
          A function of the images' shares: for each direction, the sorted places and the shares of the patches,
          normalised for these shares.
        """
        rows = self._matrix @ directions.reshape(len(directions), -1).T
        rows = np.ascontiguousarray(rows.T)  # several times as fast as columns
        order = np.argsort(rows, axis=1)
        rows, images = np.take_along_axis(rows, order, axis=1), order // self._count
        sums, energies = directions.sum(axis=2), (directions**2).sum(axis=2)

        def distributions(shares: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            means = shares @ self._means
            shifts, scales = sums @ means, np.sqrt(energies @ (shares @ self._squares - means**2).clip(0))
            steps = shares / self._count
            for places, image, shift, scale in zip(rows, images, shifts, scales, strict=True):
                yield (places - shift) / (scale or 1), steps[image]

        return distributions


def _distance(fakes: _Patches, reals: _Patches, directions: np.ndarray, *, seed: int, replicates: int) -> Estimate:
    """Mean Wasserstein-1 distance of the projections, times 1000."""
    parts = range(0, len(directions), _RESAMPLED)  # to bound the memory
    distances = [_equal_shares(*(x.places(directions[i : i + _RESAMPLED]) for x in (fakes, reals))) for i in parts]
    value = 1000 * float(np.mean(np.concatenate(distances)))
    if not replicates:
        return Estimate(value, value, value)
    projected = [x.project(directions[:_RESAMPLED]) for x in (fakes, reals)]
    distance = functools.partial(_mean_area, *projected)
    resampled = bootstrap(distance, (fakes.number, reals.number), seed=seed, replicates=replicates)
    moved = value - resampled.value
    return Estimate(value, max(0.0, resampled.low + moved), resampled.high + moved)


def _equal_shares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Wasserstein-1 distances (number,) of sorted places (number, n) and (number, m), all of equal shares.

    That is the mean distance of their quantiles, which are steps at multiples of 1 / n and 1 / m.
    """
    n, m = x.shape[1], y.shape[1]
    ends = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)  # times n m, so that equal ends are equal
    at_x, at_y = (ends - 1) // m, (ends - 1) // n
    return np.abs(x[:, at_x] - y[:, at_y]) @ np.diff(ends, prepend=0) / (n * m)


def _mean_area(fakes: Callable, reals: Callable, fake_shares: np.ndarray, real_shares: np.ndarray) -> float:
    pairs = zip(fakes(fake_shares), reals(real_shares), strict=True)
    return 1000 * float(np.mean([_area_between(*fake, *real) for fake, real in pairs]))


def _area_between(x: np.ndarray, x_shares: np.ndarray, y: np.ndarray, y_shares: np.ndarray) -> float:
    """Wasserstein-1 distance of two distributions on a line, each given by sorted places and their shares.

    That is the area between their distribution functions, which are steps.
    """
    places = np.concatenate([x, y])
    order = np.argsort(places, kind="stable")  # which merges sorted parts
    difference = np.cumsum(np.concatenate([x_shares, -y_shares]).take(order[:-1]))
    # On one thread, as BLAS would not: starting others takes longer than the sum.
    return float(np.einsum("i,i", np.abs(difference, out=difference), np.diff(places.take(order))))
