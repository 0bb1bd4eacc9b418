"""The images of a run: decoded, divided, and the same in all processes."""

import dataclasses
from collections import Counter
from typing import Any

from medgan_jax.config import Config
from medgan_jax.data.batches import load_dataset, steps_per_epoch
from medgan_jax.data.cache import CachedImages
from medgan_jax.data.classes import Classes, number_classes
from medgan_jax.distributed import from_leader, is_leader
from medgan_jax.errors import UserError
from medgan_jax.evaluation.quick import check_enough


@dataclasses.dataclass(frozen=True)
class Data:
    """The images of a run.

    Attributes:
      training: to train on.
      held_out: kept from training; None where there are none.
      steps_per_epoch: whole batches of `training`.
      classes: that the networks learn; None where they are unconditional.
    """

    training: CachedImages
    held_out: CachedImages | None
    steps_per_epoch: int
    classes: Classes | None

    def describe(self) -> dict[str, Any]:
        """For dataset.json."""
        labels = Counter(self.training.labels or ())
        images = self.training
        return {"digest": images.digest, "num_images": len(images.images), "labels": dict(sorted(labels.items()))}


def load_data(config: Config) -> Data:
    """Decodes the images, or finds them decoded.

    In process 0 first, so that others which share its disk find them decoded.

    Raises:
      UserError: they cannot be read, are too few, or are not those of process 0.
    """

    def load() -> tuple[CachedImages, CachedImages | None]:
        return load_dataset(
            config.data,
            image_size=config.image_size,
            channels=config.channels,
            conditional=config.conditional,
            progress=is_leader(),
        )

    def agreed(digest: str) -> list[Any]:
        data = dataclasses.replace(config.data, path="", labels_csv="", cache_dir="")  # each machine has its own
        return [digest, dataclasses.replace(config, data=data).to_dict()]

    loaded = load() if is_leader() else None
    theirs = from_leader(loaded and agreed(loaded[0].digest))
    training, held_out = loaded or load()
    if agreed(training.digest) != theirs:
        what = "images" if training.digest != theirs[0] else "hyperparameters"
        raise UserError(f"other {what} than in process 0: start all processes with the same config and data")
    classes = None
    if config.conditional:
        place = config.data.path or config.data.source
        classes = number_classes(training.labels, held_out.labels if held_out else None, place)
    data = Data(training, held_out, steps_per_epoch(len(training.images), config.batch_size), classes)
    if config.evaluate_every_steps:
        check_enough(len(held_out.images) if held_out else 0, len(training.images))
    return data
