"""Classes as numbers: which there are, of which each image is, and in which order they are drawn."""

import dataclasses
import difflib
import unicodedata
from collections.abc import Sequence

import numpy as np

from medgan_jax.errors import UserError, abbreviate

_SHOWN = 8  # names in a message
_MANY = 20  # more classes than this need several images each


def composed(name: str) -> str:
    """A class's name in composed Unicode (NFC), by which names are compared: systems and editors differ in it."""
    return unicodedata.normalize("NFC", name)


@dataclasses.dataclass(frozen=True)
class Classes:
    """The classes of a conditional training; class i is called `names[i]`.

    Attributes:
      names: sorted, two or more.
      training: int32, (M,), the class of each image to train on.
      held_out: int32, (L,), the same of those held out; None where there are none.
    """

    names: tuple[str, ...]
    training: np.ndarray
    held_out: np.ndarray | None

    @property
    def counts(self) -> np.ndarray:
        """int, (len(names),), the images of each class to train on, 1 or more."""
        return np.bincount(self.training, minlength=len(self.names))

    def describe(self, *, balanced: bool) -> str:
        """One line: how many images each class has, and how they are drawn."""
        counts = self.counts
        shown = [f"{name} {count}" for name, count in zip(self.names, counts, strict=True)]
        start = f"classes: {abbreviate(shown, _SHOWN)}; batches draw them "
        if not balanced:
            return start + "in these proportions"
        few, many = counts.argmin(), counts.argmax()
        times = counts[many] / counts[few]
        weight = f", so a {self.names[few]} image is seen {times:.1f} times as often as a {self.names[many]} one"
        return start + "equally" + (weight if times > 1 else "")


def check_labels(labels: Sequence[str] | None, place: str) -> tuple[str, ...]:
    """The sorted names of the classes in `labels`, those of the images to train on; `place` is for messages.

    Raises:
      UserError: there are fewer than two classes, or so many that the labels are something else, such as ages.
    """
    if labels is None:
        raise UserError(
            f"conditional=True: the images of {place} have no labels; sort them into a folder per class, use "
            "data.source=csv, or set conditional=False"
        )
    names = tuple(sorted(set(labels)))
    if len(names) < 2:
        raise UserError(
            f"conditional=True learns several classes, and all {len(labels)} images of {place} are {names[0]!r}; add "
            "another class, or set conditional=False"
        )
    if len(names) > max(_MANY, len(labels) // 2):
        raise UserError(
            f"conditional=True learns classes, and the {len(labels)} images of {place} have {len(names)} labels: "
            f"{abbreviate(names)}; give labels that images share (data.label_column), or set conditional=False"
        )
    return names


def number_classes(training: Sequence[str] | None, held_out: Sequence[str] | None, place: str) -> Classes:
    """Numbers the labels of the images to train on and of those held out; `place` is for messages.

    Raises:
      UserError: there are fewer than two classes to train on, or another one is held out.
    """
    names = check_labels(training, place)
    numbers = {name: number for number, name in enumerate(names)}
    if unseen := sorted(set(held_out or ()) - set(names)):
        raise UserError(
            f"conditional=True: images of {abbreviate(list(map(repr, unseen)))} are held out of {place}, and none are "
            "left to train on; add images of it, or set data.holdout_fraction=0"
        )

    def numbered(labels: Sequence[str]) -> np.ndarray:
        return np.array([numbers[label] for label in labels], np.int32)

    return Classes(names, numbered(training or ()), None if held_out is None else numbered(held_out))


def class_number(label: str, names: Sequence[str]) -> int:
    """The number of the class called `label`.

    Raises:
      UserError: it is not one of `names`; there are none where the training was not conditional.
    """
    if not names:
        raise UserError(
            f"label={label}: the checkpoint has no classes, as its training was not conditional; leave it out"
        )
    composed_names = [composed(name) for name in names]
    if composed(label) not in composed_names:
        near = difflib.get_close_matches(label, names, n=1)
        hint = f"did you mean {near[0]}?" if near else "give one of them"
        raise UserError(f"label={label}: the classes of the checkpoint are {abbreviate(names, _SHOWN)}; {hint}")
    return composed_names.index(composed(label))


def in_proportion(number: int, counts: Sequence[int]) -> np.ndarray:
    """Classes drawn evenly in given proportions: the next is always the one that lags behind most.

    Args:
      number: how many to draw. A larger number begins with the same ones.
      counts: (C,), 0 or more and not all 0, the proportions.

    Returns:
      int32, (number,), each from 0 to C - 1.
    """
    shares = np.asarray(counts, np.int64)
    drawn = np.zeros_like(shares)
    classes = np.empty(number, np.int32)
    for i in range(number):
        classes[i] = np.argmax((i + 1) * shares - drawn * shares.sum())
        drawn[classes[i]] += 1
    return classes
