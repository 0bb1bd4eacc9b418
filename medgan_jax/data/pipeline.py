"""From a config to images, and the order in which training sees them.

The order is a pure function of the seed and the step, so a resumed training needs no iterator state.
"""

from typing import TYPE_CHECKING

import numpy as np

from medgan_jax.data.cache import CachedImages, load_cached
from medgan_jax.data.sources import open_source
from medgan_jax.errors import UserError

if TYPE_CHECKING:
    from medgan_jax.config import DataConfig


def load_dataset(data: "DataConfig", *, image_size: int, channels: int, progress: bool = True) -> CachedImages:
    """Opens the source that the config names, and decodes it or finds it decoded.

    Raises:
      UserError: the source or its images cannot be read, or the cache cannot be written.
    """
    return load_cached(
        open_source(data),
        image_size=image_size,
        channels=channels,
        cache_dir=data.cache_dir,
        on_bad_image=data.on_bad_image,
        progress=progress,
    )


def epoch_permutation(num_images: int, *, seed: int, epoch: int) -> np.ndarray:
    """The order of one epoch: int32, (num_images,), each of 0 to num_images - 1 once."""
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))
    return generator.permutation(num_images).astype(np.int32)


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """How many whole batches an epoch has; a last partial batch is dropped.

    Raises:
      UserError: there are fewer images than a batch holds.
    """
    if num_images < batch_size:
        raise UserError(
            f"batch_size={batch_size} is more than the {num_images} images of the data set: lower it, or add images"
        )
    return num_images // batch_size


def batch_indices(first_step: int, num_steps: int, *, num_images: int, batch_size: int, seed: int) -> np.ndarray:
    """The images of consecutive training steps.

    Step s is in epoch s // steps_per_epoch.

    Args:
      first_step: from 0.
      num_steps: how many steps.
      num_images: size of the data set.
      batch_size: images a step.
      seed: of the training.

    Returns:
      int32, (num_steps, batch_size), each from 0 to num_images - 1.

    Raises:
      UserError: there are fewer images than a batch holds.
    """
    steps = np.arange(first_step, first_step + num_steps)
    steps_in_epoch = steps_per_epoch(num_images, batch_size)
    epochs, steps = np.divmod(steps, steps_in_epoch)
    indices = np.empty((num_steps, batch_size), np.int32)
    for epoch in np.unique(epochs):
        order = epoch_permutation(num_images, seed=seed, epoch=int(epoch))
        batches = order[: steps_in_epoch * batch_size].reshape(steps_in_epoch, batch_size)
        indices[epochs == epoch] = batches[steps[epochs == epoch]]
    return indices
