"""Sliced Wasserstein distance of the patches of image pyramids."""

import math
import zlib

import jax
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from medgan_jax.measures.bootstrap import Estimate, bootstrap
from medgan_jax.measures.pyramid import laplacian_pyramid

_SMALLEST = 16  # pixels
_SIDE = 7  # pixels of a patch
_PATCHES_PER_IMAGE = 128
_PATCHES_PER_SET = 2**15
_DIRECTIONS = 128
_CHUNK = 256  # images taken apart at a time

_split = jax.jit(laplacian_pyramid, static_argnames="levels")


def sliced_wasserstein(
    fakes: np.ndarray, reals: np.ndarray, *, seed: int = 0, replicates: int = 100
) -> dict[int, Estimate]:
    """How far apart the patches of two sets of images are, scale by scale (Karras et al. 2018, appendix B).

    arXiv:1710.10196. The images become Laplacian pyramids. Of each level, patches of 7 x 7 pixels are taken at random
    places, 128 an image, or fewer where a set would have more than 2^15. Each set's patches are normalised by that
    set's own mean and standard deviation per channel, as published: the measure is blind to brightness, contrast and
    tint that differ between the sets as wholes. The patches are then projected on random directions of unit length,
    and the mean over the directions of the Wasserstein-1 distances of the projections is the result, times 1000.

    Published are 512 directions; 128 take a quarter of the time, and the standard error that they add is a few per cent
    of the width of the interval. Where an image's patches lie depends on the seed and on its pixels alone, so equal
    images have equal patches, and the order of the images means nothing. Sizes may differ; but the value is above 0
    for finite sets of the same distribution, the more so the smaller they are: compare only values of the same sizes.

    The interval comes from resampled images, with their patches, and the normalisation of the whole set.

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
        directions = generator.standard_normal((_SIDE**2 * fakes.shape[3], _DIRECTIONS))
        directions /= np.linalg.norm(directions, axis=0)
        projections = [_normalised(patches.pop(0)) @ directions for patches in (fake_patches, real_patches)]
        distances[size] = _distance(*projections, seed=seed, replicates=replicates)
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


def _normalised(patches: np.ndarray) -> np.ndarray:
    """(N, patches, 49 * C) of mean 0 and standard deviation 1 in each channel; a flat channel is 0."""
    patches = patches.astype(np.float64)
    patches -= patches.mean(axis=(0, 1, 3, 4), keepdims=True)
    deviation = patches.std(axis=(0, 1, 3, 4), keepdims=True)
    patches /= np.where(deviation > 0, deviation, 1)
    return patches.reshape(*patches.shape[:2], -1)


def _distance(fakes: np.ndarray, reals: np.ndarray, *, seed: int, replicates: int) -> Estimate:
    """Mean Wasserstein-1 distance of projections (N, patches, directions) and (M, patches, directions), times 1000.

    For one direction it is the area between the two distribution functions, which are steps at the sorted projections.
    A replicate changes the height of the steps and not the order.
    """
    sizes, patches = (len(fakes), len(reals)), (fakes.shape[1], reals.shape[1])
    places = np.concatenate([fakes.reshape(-1, _DIRECTIONS), reals.reshape(-1, _DIRECTIONS)])
    places = np.ascontiguousarray(places.T)  # rows in one piece: several times as fast below
    order = np.argsort(places, axis=1)
    gaps = np.diff(np.take_along_axis(places, order, axis=1))
    images = np.repeat(np.arange(sum(sizes)), np.repeat(patches, sizes))[order[:, :-1]]
    difference = np.empty(gaps.shape[1])

    def distance(fake_shares: np.ndarray, real_shares: np.ndarray) -> float:
        steps = np.concatenate([fake_shares / patches[0], -real_shares / patches[1]])
        area = 0.0
        for image, gap in zip(images, gaps, strict=True):
            np.take(steps, image, out=difference, mode="clip")  # the mode that needs no copy
            np.cumsum(difference, out=difference)
            np.abs(difference, out=difference)
            area += np.einsum("i,i", difference, gap)  # on one thread: starting others takes longer than the sum
        return 1000 * float(area) / _DIRECTIONS

    return bootstrap(distance, sizes, seed=seed, replicates=replicates, bounds=(0, math.inf))
