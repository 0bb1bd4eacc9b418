"""How many images of each class: from what is asked for to numbers of reals and fakes."""

import difflib
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import NamedTuple

from medgan_jax.errors import UserError, abbreviate

EQUAL = "equal"


class Counts(NamedTuple):
    """Numbers of images of one class."""

    reals: int
    fakes: int


def choose_counts(target: str, reals: Mapping[str, int], *, of_all: bool) -> dict[str, Counts]:
    """The numbers of real and generated images of each class.

    Args:
      target: "equal", as many of each class as of the largest; "LABEL=N,LABEL=N", reals and fakes together, of other
        classes as many as there are; or a number, the fakes for each real.
      reals: how many there are to train on, by class; 1 or more each.
      of_all: whether every class gets the same share of fakes, to rounding. A class that is shorter of its target than
        another then leaves out reals. Else only scarce classes get fakes: those short of the target, or with a number
        as target those smaller than the largest.

    Returns:
      By class, in the order of `reals`. No class gets more reals than there are.

    Raises:
      UserError: the target is none of these, names a class that there is not, or leaves nothing to generate.
    """
    largest = max(reals.values())
    ratio = None if target == EQUAL or "=" in target else _ratio(target)
    if ratio is not None:
        counts = {
            label: Counts(number, _rounded(ratio * number) if of_all or number < largest else 0)
            for label, number in reals.items()
        }
    else:
        totals = dict.fromkeys(reals, largest) if target == EQUAL else {**reals, **_listed(target, reals)}
        share = min([Fraction(1), *(Fraction(number, totals[label]) for label, number in reals.items())])
        used = {
            label: _rounded(share * totals[label]) if of_all else min(number, totals[label])
            for label, number in reals.items()
        }
        counts = {label: Counts(number, totals[label] - number) for label, number in used.items()}
    if not any(count.fakes for count in counts.values()):
        there = ", ".join(f"{label} {number}" for label, number in reals.items())
        raise UserError(
            f"--target={target}: no class is short of it, of the training images {there}; give a larger one"
        )
    return counts


def _ratio(target: str) -> Fraction:
    try:
        number = float(target)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise UserError(
            f"--target={target}: must be {EQUAL}, LABEL=N,LABEL=N (images of a class, reals and fakes together), or a "
            "number above 0 (fakes for each real), such as 0.5"
        )
    return Fraction(number)


def _listed(target: str, reals: Mapping[str, int]) -> dict[str, int]:
    totals: dict[str, int] = {}
    for item in target.split(","):
        label, _, number = (text.strip() for text in item.rpartition("="))
        if label not in reals:
            near = difflib.get_close_matches(label, reals, n=1)
            hint = f"did you mean {near[0]}?" if near else "give one of them"
            raise UserError(f"--target={target}: {label!r} is none of the classes {abbreviate(list(reals), 8)}; {hint}")
        if label in totals:
            raise UserError(f"--target={target}: gives two numbers to {label}; give one")
        if not (number.isascii() and number.isdigit() and int(number)):
            raise UserError(f"--target={target}: {label}={number} must be a whole number above 0")
        totals[label] = int(number)
    return totals


def _rounded(number: Fraction) -> int:
    """To the nearest whole number, halves up."""
    return math.floor(number + Fraction(1, 2))
