"""Holding images out of training, for evaluation: by class, and whole patients or lesions at a time."""

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from medgan_jax.data.sources import ImageSource
from medgan_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class SubsetSource:
    """Some of the images of another source."""

    source: ImageSource
    indices: tuple[int, ...]

    @property
    def root(self) -> str:
        """See `ImageSource`."""
        return self.source.root

    @property
    def names(self) -> tuple[str, ...]:
        """See `ImageSource`."""
        return tuple(self.source.names[index] for index in self.indices)

    @property
    def labels(self) -> tuple[str, ...] | None:
        """See `ImageSource`."""
        return self.source.labels and tuple(self.source.labels[index] for index in self.indices)

    @property
    def groups(self) -> tuple[str, ...] | None:
        """See `ImageSource`."""
        return self.source.groups and tuple(self.source.groups[index] for index in self.indices)

    def __len__(self) -> int:
        """The number of images."""
        return len(self.indices)

    def read(self, index: int, image_size: int, channels: int) -> np.ndarray:
        """See `ImageSource`."""
        return self.source.read(self.indices[index], image_size, channels)

    def content_ids(self, digest_files: Callable[[Sequence[Path]], list[str]]) -> list[str]:
        """See `ImageSource`."""
        ids = self.source.content_ids(digest_files)
        return [ids[index] for index in self.indices]


def hold_out(source: ImageSource, fraction: float) -> tuple[ImageSource, ImageSource]:
    """Divides a source into what training sees and what it does not.

    Of each class about `fraction` of the images are held out, at least one and never all; all images of one group,
    which is a patient or a lesion, go to the same side. The order in which groups are held out follows from their names
    alone, so the same images are held out wherever they lie, and most of them still are when others are added.

    Args:
      source: the images; where it has no groups, each image is one.
      fraction: above 0 and below 1.

    Returns:
      For training, and held out.

    Raises:
      UserError: a class has a single group, so that it cannot be divided.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(source.groups or source.names):
        groups[group].append(index)
    classes: dict[str, list[str]] = defaultdict(list)
    for group, members in groups.items():
        classes[source.labels[members[0]] if source.labels else ""].append(group)

    held_out: set[int] = set()
    for label, names in classes.items():
        if len(names) < 2:
            what = f"the images of class {label!r}" if label else "the images"
            raise UserError(
                f"data.holdout_fraction={fraction:g}: {what} in {source.root} are all of one group, {names[0]!r}; "
                "set it to 0, or add images"
            )
        wanted = fraction * sum(len(groups[name]) for name in names)
        taken = 0
        for name in sorted(names, key=_order)[:-1]:  # the last group always stays
            if taken and taken + len(groups[name]) / 2 > wanted:
                break
            held_out.update(groups[name])
            taken += len(groups[name])
    sides = [tuple(i for i in range(len(source)) if (i in held_out) == side) for side in (False, True)]
    return SubsetSource(source, sides[0]), SubsetSource(source, sides[1])


def _order(name: str) -> str:
    return hashlib.blake2b(name.encode(errors="surrogateescape")).hexdigest()
