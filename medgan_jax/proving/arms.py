"""The arms of a trial: which images a classifier is trained on, and how they are drawn."""

import dataclasses

import numpy as np

from medgan_jax.proving.classifier import Plan

BASES = {
    "plain": "reals as they are",
    "weighted": "reals, losses weighted so that all classes count the same",
    "oversampled": "reals, all classes drawn equally often",
    "augmented": "reals, all classes drawn equally often, flipped, turned, shifted and recoloured",
}
RATIOS = (0.5, 1.0, 2.0)
_WITH_FAKES = ("oversampled", "augmented")


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to train the classifier.

    Attributes:
      base: one of `BASES`: how reals are drawn.
      fakes: of "scarce", the scarcest class, or of "all" classes; "" for none. "copies": reals of the scarcest class
        under other names; "only": fakes of all classes, and no reals.
      ratio: fakes for each real of their class.
    """

    base: str
    fakes: str = ""
    ratio: float = 0.0

    @property
    def name(self) -> str:
        """As in files and tables."""
        if not self.fakes:
            return self.base
        if self.fakes == "only":
            return "fakes_only"
        return f"{self.base}_{self.fakes}_{self.ratio:g}"

    @property
    def has_fakes(self) -> bool:
        """Whether it is one of those that the verdict is about: reals and fakes together."""
        return self.fakes in ("scarce", "all")

    def describe(self) -> str:
        """For people."""
        if self.fakes == "only":
            return "fakes alone, all classes drawn equally often"
        if self.fakes == "copies":
            return f"control: {self.base}, each real of the scarcest class twice"
        if not self.fakes:
            return self.base
        whose = "the scarcest class" if self.fakes == "scarce" else "all classes"
        return f"{self.base} + {self.ratio:g} {'fake' if self.ratio == 1 else 'fakes'} per real, {whose}"


def all_arms(ratios: tuple[float, ...] = RATIOS) -> tuple[Arm, ...]:
    """Every arm of a trial; those without fakes first."""
    with_fakes = [Arm(base, fakes, ratio) for base in _WITH_FAKES for fakes in ("scarce", "all") for ratio in ratios]
    return (*map(Arm, BASES), *with_fakes, Arm("oversampled", "only", max(ratios)), Arm("oversampled", "copies", 1.0))


def plan(arm: Arm, labels: np.ndarray, synthetic: np.ndarray, num_classes: int) -> Plan:
    """How an arm draws from a pool of reals and fakes.

    Args:
      arm: the arm.
      labels: int, (N,), the class of each image of the pool; each class has reals.
      synthetic: bool, (N,); of each class the pool has at least `arm.ratio` fakes a real.
      num_classes: K.
    """
    counts = np.bincount(labels[~synthetic], minlength=num_classes)
    scarcest = int(counts.argmin())
    drawn = ~synthetic if arm.fakes != "only" else np.zeros_like(synthetic)
    if arm.fakes in ("scarce", "all", "only"):
        for label in [scarcest] if arm.fakes == "scarce" else range(num_classes):
            of_class = np.flatnonzero(synthetic & (labels == label))
            drawn[of_class[: round(arm.ratio * counts[label])]] = True
    shares = drawn.astype(np.float64)
    if arm.fakes == "copies":
        shares[drawn & (labels == scarcest)] *= 1 + arm.ratio
    in_class = np.bincount(labels, shares, num_classes)
    weights = np.ones(num_classes, np.float32)
    if arm.base == "weighted":
        weights = (in_class.sum() / (num_classes * in_class)).astype(np.float32)
    elif arm.base != "plain":
        shares /= in_class[labels]
    return Plan(shares / shares.sum(), weights, arm.base == "augmented")
