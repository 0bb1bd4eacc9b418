"""Checkerboard artefacts: the power of periodic grids in the spectrum.

Transposed convolutions leave a grid of 2, 4 or 8 px in the images (Odena et al. 2016, doi:10.23915/distill.00003). It
shows as peaks in the spectrum (Durall et al. 2020, arXiv:2003.01826). Photographs have none.
"""

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from medgan_jax.images import uint8_to_unit
from medgan_jax.metrics.distribution.bootstrap import Estimate, bootstrap
from medgan_jax.metrics.paired.filters import luminance

PERIODS = (2, 4, 8)  # px
MIN_SIZE = 4 * min(PERIODS)  # px; each period needs images of four times its length
_BATCH = 64


def checkerboard_index(images: np.ndarray, *, seed: int = 0, replicates: int = 200) -> dict[int, Estimate]:
    """The power of a grid of each period, relative to its surroundings in the spectrum.

    The power spectrum of the grey images under a Hann window is averaged over the images. At each frequency of a grid
    of this period, except those of half the period, it is divided by the median of the sixteen frequencies two bins
    away (the window spreads power over one bin). The index is the mean of these ratios.

    Args:
      images: uint8, (N, H, W, 1 or 3).
      seed: of the interval.
      replicates: of the bootstrap.

    Returns:
      By period in px, for periods of at most a quarter of the image: about 1 where there is no grid.
    """
    size = min(images.shape[1:3])
    bins = {period: _bins(images.shape[1:3], period) for period in PERIODS if size >= 4 * period}
    if not bins:
        return {}
    batches = [images[i : i + _BATCH] for i in range(0, len(images), _BATCH)]
    power = np.concatenate([np.asarray(_power(batch, tuple(bins))) for batch in batches], dtype=np.float64)

    def indices(weights: np.ndarray) -> dict[int, float]:
        mean = np.tensordot(weights, power, 1)
        ratios = mean[:, 0] / np.maximum(np.median(mean[:, 1:], 1), np.finfo(np.float32).tiny)
        ends = np.cumsum([len(found) for found in bins.values()])
        return {period: part.mean() for period, part in zip(bins, np.split(ratios, ends[:-1]), strict=True)}

    return bootstrap(indices, [len(images)], seed=seed, replicates=replicates, bounds=(0, np.inf))


def _bins(shape: tuple[int, int], period: int) -> np.ndarray:
    """(F, 17, 2): each frequency of a period, then its surroundings, as bins of the two-dimensional FFT."""
    height, width = shape
    harmonics = [
        (round(i * height / period), round(j * width / period))
        for i in range(period)
        for j in range(period)
        if i % 2 or j % 2
    ]
    ring = [(i, j) for i in range(-2, 3) for j in range(-2, 3) if max(abs(i), abs(j)) == 2]
    return np.array([[((u + i) % height, (v + j) % width) for i, j in [(0, 0), *ring]] for u, v in harmonics])


@functools.partial(jax.jit, static_argnames="periods")
def _power(images: jax.Array, periods: tuple[int, ...]) -> jax.Array:
    return spectral_power(luminance(uint8_to_unit(images)), periods)


def spectral_power(planes: jax.Array, periods: Iterable[int]) -> jax.Array:
    """The power spectrum under a Hann window at the frequencies of grids.

    Args:
      planes: grey images, (N, H, W) float32.
      periods: of the grids, in px.

    Returns:
      (N, F, 17): at each frequency, then at the sixteen that surround it.
    """
    height, width = planes.shape[1:]
    bins = np.concatenate([_bins((height, width), period) for period in periods])
    planes = planes - planes.mean((1, 2), keepdims=True)
    # By matrix products: XLA divides no FFT among devices.
    (rows, row_places), (columns, column_places) = (np.unique(bins[..., i], return_inverse=True) for i in (0, 1))
    spectrum = jnp.einsum("uh,nhw,vw->nuv", _waves(height, rows), planes, _waves(width, columns), precision="highest")
    chosen = spectrum[:, row_places, column_places]
    return jnp.square(chosen.real) + jnp.square(chosen.imag)


def _waves(length: int, frequencies: np.ndarray) -> np.ndarray:
    """(F, length) complex64: a line's discrete Fourier transform at these frequencies, under a Hann window."""
    phases = np.outer(frequencies, np.arange(length)) / length
    return (np.hanning(length + 1)[:-1] * np.exp(-2j * np.pi * phases)).astype(np.complex64)
