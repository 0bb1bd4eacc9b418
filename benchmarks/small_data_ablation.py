"""The ablation of `benchmarks.small_data`: its variants, the size of its protocols, and the config of each training."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from configs import sngan64
from medgan_jax.config import Config, parse_config


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
      base: the variant that it adds to; "" for the first.
      sentence: what it adds.
      changes: the fields of the config that differ from the base's.
      all_classes: trained on both classes, and evaluated on the scarce one alone.
      best: no training of its own: the generator in best/ of the base's training.
    """

    base: str
    sentence: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    all_classes: bool = False
    best: bool = False


PUBLISHED = "published"
VARIANTS = {  # a technique that does not help is the base of none
    PUBLISHED: Variant("", "SNGAN, bce, batch 16, rates 2e-4, transposed convolutions: configs/sngan64.py"),
    "turns": Variant(PUBLISHED, "flips and quarter turns", {"augment.flips": True, "augment.quarter_turns": True}),
    "translation": Variant("turns", "shifts by up to an eighth of the side", {"augment.translation": 0.125}),
    "color": Variant("translation", "changes of brightness, saturation and contrast", {"augment.color": 1.0}),
    "cutout": Variant("translation", "a square of half the side hidden", {"augment.cutout": 0.5}),
    "adaptive": Variant(
        "translation",
        "probability of the changes adapted to overfitting",
        {"augment.adaptive_target": 0.6, "augment.adaptive_images": 50_000},
    ),
    "bilinear": Variant("translation", "bilinear upsampling, then a convolution", {"upsample": "bilinear"}),
    "nearest": Variant("translation", "nearest upsampling, then a convolution", {"upsample": "nearest"}),
    "hinge": Variant("nearest", "hinge loss", {"loss": "hinge"}),
    "r1": Variant("nearest", "R1 penalty, every 16th step", {"r1_weight": 10.0, "r1_every_steps": 16}),
    "lecam": Variant("nearest", "LeCam penalty", {"lecam_weight": 0.3}),
    "resnet": Variant("translation", "residual networks, with nearest upsampling", {"arch": "resnet"}),
    "average": Variant("nearest", "moving average of the generator", {"ema_decay": 0.999, "ema_rampup": 0.05}),
    "average_hinge": Variant("average", "hinge loss", {"loss": "hinge"}),
    "conditional": Variant("average", "learns from both classes", {"conditional": True}, all_classes=True),
    "best": Variant("average", "the generator in best/ in place of the last", best=True),
}
RECOMMENDED = "average"
SETS = ("melanomas", "all")  # the images of --class_filter, and all


@dataclasses.dataclass(frozen=True)
class Part:
    """One table: variants that can be compared.

    Attributes:
      size: px.
      set: of `SETS`.
      maps: feature maps of both networks at the image's resolution.
      images: how many reals each discriminator sees in training.
      seeds: trainings of each variant.
      variants: which; all where none are named.
    """

    size: int
    set: str
    maps: int
    images: int
    seeds: int
    variants: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """SIZE/SET, also its folder."""
        return f"{self.size}/{self.set}"


PROTOCOLS = {
    "full": tuple(Part(size, of, maps=64, images=160_000, seeds=5) for size in (64, 128) for of in SETS),
    "reduced": (
        Part(64, "melanomas", maps=16, images=48_000, seeds=3),
        Part(64, "all", maps=16, images=48_000, seeds=3, variants=(PUBLISHED, RECOMMENDED)),
        Part(128, "melanomas", maps=8, images=48_000, seeds=3, variants=(PUBLISHED, RECOMMENDED)),
    ),
}
HOLDOUT = 0.2


def training_config(part: Part, name: str, seed: int, *, data: Mapping[str, str], class_filter: str) -> Config:
    """The published recipe, and what the variants up to this one change.

    Args:
      part: how large it is.
      name: of the variant.
      seed: of the training.
      data: where the images and their labels are, fields of the config's data.
      class_filter: the scarce class.
    """
    c = sngan64.get_config()
    c.update(
        image_size=part.size, gen_features=part.maps, dis_features=part.maps, seed=seed, tensorboard=False,
        report=False, monitor_every_steps=0, keep_checkpoints=1, evaluate_every_steps=500,
    )  # fmt: skip
    both = part.set == "all" or VARIANTS[name].all_classes
    c.data.update(data, source="csv", class_filter="" if both else class_filter, holdout_fraction=HOLDOUT)
    for variant in reversed(list(_with_bases(name))):
        for field, value in variant.changes.items():
            group, _, leaf = field.rpartition(".")
            (c[group] if group else c)[leaf] = value
    c.num_steps = part.images // c.batch_size
    return parse_config(c)


def _with_bases(name: str) -> Iterator[Variant]:
    while name:
        yield VARIANTS[name]
        name = VARIANTS[name].base
