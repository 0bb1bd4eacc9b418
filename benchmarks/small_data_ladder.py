"""The ladder of `benchmarks.small_data`: its rungs, how large its protocols are, and the training of each rung."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from configs import sngan64
from medgan_jax.config import Config, parse_config


@dataclasses.dataclass(frozen=True)
class Rung:
    """One row of the table.

    Attributes:
      base: the rung that it adds to; "" for the first.
      sentence: what it adds.
      changes: the fields of the config that differ from the base's.
      all_classes: trained on both classes, and judged by the one alone.
      best: no training of its own: of the base's, the generator in best/.
    """

    base: str
    sentence: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    all_classes: bool = False
    best: bool = False


PUBLISHED = "published"
RUNGS = {  # a technique that does not help is the base of none
    PUBLISHED: Rung("", "SNGAN, bce, batch 16, rates 2e-4, transposed convolutions: configs/sngan64.py"),
    "turns": Rung(PUBLISHED, "flips and quarter turns", {"augment.flips": True, "augment.quarter_turns": True}),
    "translation": Rung("turns", "shifts by up to an eighth of the side", {"augment.translation": 0.125}),
    "color": Rung("translation", "changes of brightness, saturation and contrast", {"augment.color": 1.0}),
    "cutout": Rung("translation", "a square of half the side hidden", {"augment.cutout": 0.5}),
    "adaptive": Rung(
        "translation",
        "probability of the changes steered by overfitting",
        {"augment.adaptive_target": 0.6, "augment.adaptive_images": 50_000},
    ),
    "bilinear": Rung("translation", "bilinear enlargement, then a convolution", {"upsample": "bilinear"}),
    "nearest": Rung("translation", "pixels doubled, then a convolution", {"upsample": "nearest"}),
    "hinge": Rung("nearest", "hinge loss", {"loss": "hinge"}),
    "r1": Rung("nearest", "R1 penalty, every 16th step", {"r1_weight": 10.0, "r1_every_steps": 16}),
    "lecam": Rung("nearest", "LeCam penalty", {"lecam_weight": 0.3}),
    "consistency": Rung("nearest", "consistency penalty", {"consistency_weight": 10.0}),
    "resnet": Rung("translation", "residual networks, which double pixels too", {"arch": "resnet"}),
    "average": Rung("nearest", "averaged generator, ramped up", {"ema_decay": 0.999, "ema_rampup": 0.05}),
    "average_hinge": Rung("average", "hinge loss", {"loss": "hinge"}),
    "conditional": Rung("average", "learns from both classes", {"conditional": True}, all_classes=True),
    "best": Rung("average", "the generator in best/ in place of the last", best=True),
}
RECOMMENDED = "average"
SETS = ("melanomas", "all")  # the images of --label, and all


@dataclasses.dataclass(frozen=True)
class Part:
    """A table: rungs that can be compared.

    Attributes:
      size: px.
      set: of `SETS`.
      maps: feature maps of both networks beside the image.
      images: how many reals each discriminator sees.
      seeds: trainings of each rung.
      rungs: which; all where none are named.
    """

    size: int
    set: str
    maps: int
    images: int
    seeds: int
    rungs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """SIZE/SET, also its folder."""
        return f"{self.size}/{self.set}"


PROTOCOLS = {
    "full": tuple(Part(size, of, maps=64, images=160_000, seeds=5) for size in (64, 128) for of in SETS),
    "reduced": (
        Part(64, "melanomas", maps=16, images=48_000, seeds=3),
        Part(64, "all", maps=16, images=48_000, seeds=3, rungs=(PUBLISHED, RECOMMENDED)),
        Part(128, "melanomas", maps=8, images=48_000, seeds=3, rungs=(PUBLISHED, RECOMMENDED)),
    ),
}
HOLDOUT = 0.2


def training_config(part: Part, name: str, seed: int, *, data: Mapping[str, str], label: str) -> Config:
    """The published recipe, and what the rungs up to this one change.

    Args:
      part: how large it is.
      name: of the rung.
      seed: of the training.
      data: where the images and their labels are, fields of the config's data.
      label: the scarce class.
    """
    c = sngan64.get_config()
    c.update(
        image_size=part.size, gen_features=part.maps, dis_features=part.maps, seed=seed, tensorboard=False,
        report=False, monitor_every_steps=0, keep_checkpoints=1, evaluate_every_steps=500,
    )  # fmt: skip
    both = part.set == "all" or RUNGS[name].all_classes
    c.data.update(data, source="csv", label="" if both else label, holdout_fraction=HOLDOUT)
    for rung in reversed(list(_with_bases(name))):
        for field, value in rung.changes.items():
            group, _, leaf = field.rpartition(".")
            (c[group] if group else c)[leaf] = value
    c.num_steps = part.images // c.batch_size
    return parse_config(c)


def _with_bases(name: str) -> Iterator[Rung]:
    while name:
        yield RUNGS[name]
        name = RUNGS[name].base
