"""Independent streams of random numbers from one seed.

`jax.random.split(key)[i]` and `fold_in(key, i)` may be the same key, so each use of a seed gets a key of its own first.
"""

import enum

import jax


class RngStream(enum.IntEnum):
    """What the random numbers are for. The values must never change: they decide every result."""

    INITIAL_WEIGHTS = 0
    TRAINING = 1  # folded with the step
    LATENTS = 2  # folded with the index of the image, in sampling and in the pictures of a run
    STATISTICS = 3  # latents on which batch statistics are estimated
    DISCRIMINATOR = 4  # folded with the step: dropout, and where the gradient penalty is taken
    AUGMENTATION = 5  # folded with the step
    CLASSIFIER = 6  # folded with the step: augmentation of what a classifier is trained on


def rng_key(seed: int, stream: RngStream) -> jax.Array:
    """The key of one stream of one seed."""
    return jax.random.fold_in(jax.random.key(seed), stream)
