"""A guard against copies that goes with a generator: it knows the training images by hashes alone."""

import functools
import io
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medgan_jax.errors import UserError
from medgan_jax.files import replace_file
from medgan_jax.metrics.distribution.memorization import (
    CopySearch,
    crops,
    distances_of_unseen,
    memorized,
    normalized,
    turned_back,
)

GUARD = "guard.npz"  # in a workdir, or where its owner put it into the folder of a generator
_ARRAYS = ("key", "mean", "deviation", "features", "pixels", "unseen")
_FEATURES, _PIXELS = 0, 1  # kinds of hashes
_FEATURE_BITS, _PIXEL_BITS = 128, 512
_BATCH = 16


class Guard(CopySearch):
    """`CopySearch` by hashes of the training images in place of these, and the distances that unseen reals have.

    Instead of the training images' features and crops, the signs of their products with random vectors of +1 and -1 are
    kept: SimHash (Charikar 2002, doi:10.1145/509907.509965). The share of equal signs tells the angle between two
    vectors, and its cosine is the correlation. The hashes are no secret: anybody who has them can tell whether a
    photograph was trained on, and draw a blurred picture of each training image, see docs/privacy.md.
    """

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        """Takes what `calibrated` or `load` has.

        Args:
          arrays: `key` uint64, (), of the random vectors; `mean` and `deviation` float32, (112,), of the features;
            `features` uint8, (8, M, F / 8), F bits of each training image in each orientation; `pixels` uint8,
            (M, 19, P / 8), P bits of each of its crops; `unseen` float32, (L,), distances of unseen reals.
        """
        self.arrays, self.key = arrays, int(arrays["key"])
        self.mean, self.deviation = arrays["mean"], arrays["deviation"]
        self.directions = _unpacked(arrays["features"])

    @classmethod
    def calibrated(cls, training: np.ndarray, groups: np.ndarray, held_out: np.ndarray, *, key: int) -> "Guard":
        """A guard of training images, calibrated as `distances_of_unseen` says.

        Args:
          training: uint8, (M, H, H, 1 or 3), of 16 px or more; possibly a memory map.
          groups: int, (M,), the same number for images of one patient or lesion.
          held_out: uint8, (L, H, H, C).
          key: of the random vectors, below 2 ** 64. Another one for each data set: by one and the same, two guards
            would tell which images both have.

        Raises:
          UserError: the weights of EfficientNet-Lite1 are not installed as published.
        """
        search = CopySearch(training)
        rows = []
        for start in range(0, len(training), _BATCH):
            batch = np.minimum(np.arange(start, start + _BATCH), len(training) - 1)
            rows.append(_packed(_signs(_flat(crops(jnp.asarray(training[batch]))), key, _PIXELS, _PIXEL_BITS)))
        guard = cls(
            {
                "key": np.asarray(key, np.uint64),
                "mean": search.mean,
                "deviation": search.deviation,
                "features": _packed(_signs(search.directions, key, _FEATURES, _FEATURE_BITS)),
                "pixels": np.concatenate(rows)[: len(training)],
            }
        )
        guard.arrays["unseen"] = distances_of_unseen(guard, training, groups, held_out)
        return guard

    @classmethod
    def load(cls, path: Path) -> "Guard":
        """Reads what `save` wrote. Raises UserError where it cannot be read."""
        try:
            with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
                arrays = {name: file[name] for name in _ARRAYS}
            if len(arrays["pixels"]) != arrays["features"].shape[1] or arrays["features"].shape[2] * 8 != _FEATURE_BITS:
                raise ValueError("arrays do not fit")
            return cls(arrays)
        except Exception as error:  # on damaged bytes NumPy raises nearly anything
            raise UserError(
                f"{path}: is damaged; restore it, delete it and end the training again to have it written anew, or "
                "sample without it (--noguard, guard=False)"
            ) from error

    def save(self, path: Path) -> None:
        """Writes it, whole or not at all."""
        buffer, arrays = io.BytesIO(), dict[str, Any](self.arrays)
        np.savez(buffer, **arrays)
        replace_file(path, buffer.getvalue())

    def copies(self, images: np.ndarray) -> np.ndarray:
        """bool, (N,): which images, uint8 (N, H, H, C), are closer to a training image than all unseen reals are."""
        return memorized(self.nearest(images).distance, self.arrays["unseen"])

    def _direction(self, vectors: np.ndarray) -> jax.Array:
        return _signs(super()._direction(vectors), self.key, _FEATURES, self.directions.shape[-1])

    def _compare(self, images: np.ndarray, candidates: np.ndarray) -> tuple[jax.Array, jax.Array, jax.Array]:
        theirs = _unpacked(self.arrays["pixels"][candidates])
        return _closest(_signs(_flat(turned_back(jnp.asarray(images))), self.key, _PIXELS, theirs.shape[-1]), theirs)


def guard_key(digest: str) -> int:
    """The key of a training set by its hexadecimal digest: so a guard also tells whose it is."""
    return int(digest[:16], 16)


def _flat(images: jax.Array) -> jax.Array:
    """(N, P, S S C), without mean and contrast, of (N, P, S, S, C)."""
    return normalized(images).reshape(*images.shape[:2], -1)


def _signs(vectors: jax.Array, key: int, kind: int, bits: int) -> jax.Array:
    """+1 and -1, float32 (..., bits): the hashes of vectors (..., D)."""
    return _hashes(vectors, random_signs(key, kind, vectors.shape[-1], bits))


@jax.jit
def _hashes(vectors: jax.Array, random: jax.Array) -> jax.Array:
    return jnp.where(jnp.matmul(vectors, random, precision=jax.lax.Precision.HIGHEST) > 0, 1.0, -1.0)


@functools.lru_cache(maxsize=4)
def random_signs(key: int, kind: int, size: int, bits: int) -> np.ndarray:
    """+1 and -1, float32 (size, bits), from the bits of a generator whose stream NumPy keeps as it is.

    `kind` is 0 for features, 1 for pixels.
    """
    raw = np.random.PCG64([key, kind]).random_raw(-(-size * bits // 64))
    signs = np.unpackbits(raw.astype("<u8").view(np.uint8))[: size * bits].reshape(size, bits)
    return signs.astype(np.float32) * 2 - 1


def _packed(signs: jax.Array) -> np.ndarray:
    return np.packbits(np.asarray(signs) > 0, axis=-1)


def _unpacked(hashes: np.ndarray) -> jax.Array:
    return jnp.asarray(np.unpackbits(hashes, axis=-1).astype(np.float32) * 2 - 1)


@jax.jit
def _closest(ours: jax.Array, theirs: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As in `CopySearch`, from hashes of views, (B, 8, P), and of the crops of candidates, (B, K, T, P)."""
    agreement = jnp.einsum("bsp,bktp->bkts", ours, theirs) / ours.shape[-1]  # 1 - 2 / pi times the angle
    distances = (1 - jnp.sin(jnp.pi / 2 * agreement)).min(2).reshape(len(ours), -1)
    best = distances.argmin(1)
    return distances.min(1), best // 8, best % 8
