"""Holding images out of training, for evaluation: by class, and whole patients or lesions at a time."""

import dataclasses
import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from medgan_jax.data.sources import ImageSource
from medgan_jax.errors import UserError

_ORDERS = 100  # of the groups, tried until each class is on both sides


@dataclasses.dataclass(frozen=True)
class SubsetSource:
    """Some of the images of another source."""

    source: ImageSource
    indices: tuple[int, ...]
    ids: tuple[str, ...]  # what each image is made from

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
        return list(self.ids)  # known: files are read once


def hold_out(source: ImageSource, fraction: float, ids: Sequence[str]) -> tuple[ImageSource, ImageSource]:
    """Divides a source into what training sees and what it does not.

    Of each class about `fraction` of the images are held out, at least one and never all. All images of one group,
    which is a patient or a lesion, go to the same side, and so do all images of equal content: groups that share
    content are one. A group may hold images of several classes. Groups are taken in an order that follows from their
    names alone, those of scarce classes first, so the same images are held out wherever they lie, and most of them
    still are when others are added.

    Args:
      source: the images; where it has no groups, each image is one.
      fraction: above 0 and below 1.
      ids: what each image is made from, as `ImageSource.content_ids` has it.

    Returns:
      For training, and held out.

    Raises:
      UserError: a class has a single group, so that it cannot be divided; or groups of several classes leave no way
        to have each class on both sides.
    """
    labels = source.labels or ("",) * len(source)
    group_of = _groups(source.groups or source.names, ids)
    groups: dict[str, Counter[str]] = defaultdict(Counter)
    for group, label in zip(group_of, labels, strict=True):
        groups[group][label] += 1

    setting = f"data.holdout_fraction={fraction:g}"
    holders: dict[str, list[str]] = defaultdict(list)
    for group, counts in groups.items():
        for label in counts:
            holders[label].append(group)
    for label, names in sorted(holders.items()):
        if len(names) < 2:
            what = f"the images of class {label!r}" if label else "the images"
            raise UserError(
                f"{setting}: {what} in {source.root} are all of one group, {names[0]!r}, where equal images count as "
                "one group; set it to 0, or add images"
            )
    choices = (_choose(groups, fraction, salt) for salt in range(_ORDERS))
    held_out = next((choice for choice in choices if choice), None)
    if held_out is None:
        raise UserError(
            f"{setting}: the {len(groups)} groups in {source.root} hold images of several classes, and no division "
            "was found that leaves each class on both sides; set it to 0, or add images"
        )
    sides = [[i for i, group in enumerate(group_of) if (group in held_out) == side] for side in (False, True)]
    training, apart = (SubsetSource(source, tuple(side), tuple(ids[i] for i in side)) for side in sides)
    return training, apart


def _groups(names: Sequence[str], ids: Sequence[str]) -> list[str]:
    """The group of each image; groups that share content are one, called by the least of their names."""
    above = {name: name for name in names}

    def find(name: str) -> str:
        while above[name] != name:
            above[name] = above[above[name]]
            name = above[name]
        return name

    first: dict[str, str] = {}
    for name, content in zip(names, ids, strict=True):
        least, other = sorted((find(name), find(first.setdefault(content, name))))
        above[other] = least
    return [find(name) for name in names]


def _choose(groups: dict[str, Counter[str]], fraction: float, salt: int) -> set[str] | None:
    """Chooses groups to hold out, given how many images of which classes each has.

    Returns:
      Their names; None if some class would then be on one side only.
    """
    totals: Counter[str] = Counter()
    in_training: Counter[str] = Counter()  # groups that hold a class
    for counts in groups.values():
        totals.update(counts)
        in_training.update(counts.keys())
    held: Counter[str] = Counter()  # images of a class
    chosen = set()

    def spare(group: str) -> bool:
        return all(in_training[label] > 1 for label in groups[group])

    def take(group: str) -> None:
        chosen.add(group)
        held.update(groups[group])
        in_training.subtract(groups[group].keys())

    def cover(candidates: list[str]) -> None:
        for label in sorted(totals, key=lambda label: (totals[label], label)):
            if not held[label]:
                fitting = (group for group in candidates if label in groups[group] and spare(group))
                group = next(fitting, None)
                if group is not None:
                    take(group)

    order = sorted(groups, key=lambda group: _hash(group, salt))
    if salt:  # filling up first has led nowhere
        cover(order)
    # Scarce classes first: the others can fill up from groups without them.
    for group in sorted(order, key=lambda group: min(totals[label] for label in groups[group])):
        counts = groups[group]
        fits = all(held[label] + count / 2 <= fraction * totals[label] for label, count in counts.items())
        if fits and group not in chosen and spare(group):
            take(group)
    cover(sorted(order, key=lambda group: groups[group].total()))
    return chosen if all(held[label] for label in totals) else None


def _hash(name: str, salt: int) -> bytes:
    return hashlib.blake2b(name.encode(errors="surrogateescape"), salt=salt.to_bytes(1)).digest()
