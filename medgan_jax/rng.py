"""Independent streams of random numbers from one seed.

`jax.random.split(key)[i]` and `fold_in(key, i)` may be the same key, so two uses of one seed must part ways first.
"""

import enum

import jax


class RngStream(enum.IntEnum):
    """What the random numbers are for. Numbers are fixed for good: changing one changes every result."""

    INITIAL_WEIGHTS = 0
    TRAINING = 1  # folded with the step
    LATENTS = 2  # folded with the image's index: sampled images, and the pictures taken during training
    STATISTICS = 3  # latents on which batch statistics are estimated
    DISCRIMINATOR = 4  # folded with the step: what it does not see of an image, where its slope is taken
    AUGMENTATION = 5  # folded with the step: how the images that the discriminator sees are changed


def rng_key(seed: int, stream: RngStream) -> jax.Array:
    """The key of one stream of one seed."""
    return jax.random.fold_in(jax.random.key(seed), stream)
