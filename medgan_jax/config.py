"""The configuration: a ConfigDict for the user, frozen and checked dataclasses inside.

Values and their explanations stand in `configs/default.py`, and only there; here stand types and constraints.
"""

import dataclasses
import difflib
import math
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from medgan_jax.errors import UserError

ARCHITECTURES = ("dcgan", "sngan", "resnet")
UPSAMPLINGS = ("transposed", "nearest", "bilinear")
LOSSES = ("bce", "hinge", "wgan-gp")
DTYPES = ("float32", "bfloat16")
SOURCES = ("folder", "csv", "tfds", "phantom")
ON_BAD_IMAGE = ("refuse", "skip")
BEST_MEASURES = ("swd", "kid")
ON_ALARM = ("warn", "stop", "rollback")
IMAGE_SIZES = tuple(2**n for n in range(4, 10))

# A training may be continued with these changed: none of them alters a step, except that of a rollback, which the
# workdir notes. That the images are the same ones,
# wherever they lie, is checked by their digest.
CHANGEABLE = frozenset(
    {
        "num_epochs",
        "num_steps",
        "log_every_steps",
        "sample_every_steps",
        "checkpoint_every_steps",
        "keep_checkpoints",
        "num_sample_images",
        "evaluate_every_steps",
        "best_measure",
        "tensorboard",
        "report",
        "report_every_minutes",
        "monitor_every_steps",
        "alarm_patience",
        "on_alarm",
        "rollback_factor",
        "max_rollbacks",
        "output_prefix",
        "data.path",
        "data.labels_csv",
        "data.cache_dir",
        "data.on_bad_image",
        "data.device_budget_mb",
    }
)

# What trainings had before there were these fields, which the config.json of an older version lacks.
_BEFORE = {
    "upsample": "transposed",
    "conditional": False,
    "dis_dropout": 0.0,
    "loss": "bce",
    "r1_weight": 0.0,
    "lecam_weight": 0.0,
    "consistency_weight": 0.0,
    "dis_steps": 1,
    "simultaneous": False,
    "ema_rampup": 0.0,
    "init_from": "",
    "augment.flips": False,
    "augment.quarter_turns": False,
    "augment.color": 0.0,
    "augment.translation": 0.0,
    "augment.cutout": 0.0,
}


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which images; see `configs/default.py`. An empty string means "not given"."""

    source: str
    path: str
    labels_csv: str
    image_column: str
    label_column: str
    group_column: str
    class_filter: str
    tfds_name: str
    split: str
    num_phantoms: int
    horizontal_flip: bool
    holdout_fraction: float
    on_bad_image: str
    cache_dir: str
    device_budget_mb: int


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """What the discriminator sees of an image; see `configs/default.py`."""

    flips: bool
    quarter_turns: bool
    color: float
    translation: float
    cutout: float
    probability: float
    adaptive_target: float
    adaptive_images: int

    def changes(self) -> bool:
        """Whether anything is to be changed at all."""
        return bool(
            self.probability and (self.flips or self.quarter_turns or self.color or self.translation or self.cutout)
        )


@dataclasses.dataclass(frozen=True)
class Config:
    """A training, checked; see `configs/default.py`."""

    arch: str
    image_size: int
    channels: int
    latent_dim: int
    gen_features: int
    dis_features: int
    upsample: str
    conditional: bool
    balance_classes: bool
    dis_dropout: float
    dtype: str
    batch_size: int
    num_epochs: int
    num_steps: int
    loss: str
    gp_weight: float
    r1_weight: float
    r1_every_steps: int
    lecam_weight: float
    consistency_weight: float
    dis_steps: int
    simultaneous: bool
    lr_gen: float
    lr_dis: float
    adam_beta1: float
    adam_beta2: float
    real_label: float
    label_flip: float
    ema_decay: float
    ema_rampup: float
    init_from: str
    seed: int
    log_every_steps: int
    sample_every_steps: int
    checkpoint_every_steps: int
    keep_checkpoints: int
    num_sample_images: int
    evaluate_every_steps: int
    best_measure: str
    tensorboard: bool
    report: bool
    report_every_minutes: float
    monitor_every_steps: int
    alarm_patience: int
    on_alarm: str
    rollback_factor: float
    max_rollbacks: int
    output_prefix: str
    augment: AugmentConfig
    data: DataConfig

    def total_steps(self, steps_per_epoch: int) -> int:
        """The length of the training."""
        return self.num_steps or self.num_epochs * steps_per_epoch

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, for JSON; `parse_config` reads them back."""
        return dataclasses.asdict(self)


def parse_config(values: ConfigDict | Mapping[str, Any]) -> Config:
    """Checks a ConfigDict, or nested plain values, and freezes it.

    Raises:
      UserError: unknown, missing, ill-typed or impossible fields, all of them in one message.
    """
    config, problems = _read_config(values, {})
    if problems:
        raise UserError("config: " + "; ".join(problems))
    return config


def config_problems(values: ConfigDict | Mapping[str, Any], names: Mapping[str, str]) -> list[str]:
    """What `parse_config` would complain of; `names` says what to call fields that came under another name."""
    return _read_config(values, names)[1]


def _read_config(values: ConfigDict | Mapping[str, Any], names: Mapping[str, str]) -> tuple[Config, list[str]]:
    problems: list[str] = []
    if isinstance(values, ConfigDict):
        values = values.to_dict()
    config = _read_fields(Config, values, "", problems)
    return config, problems or _constraint_problems(config, names)


def parse_data(values: ConfigDict | Mapping[str, Any]) -> DataConfig:
    """Checks and freezes the fields of a data set alone.

    Raises:
      UserError: as `parse_config`.
    """
    problems: list[str] = []
    values = values.to_dict() if isinstance(values, ConfigDict) else values
    data = _read_fields(DataConfig, values, "data.", problems)
    problems = problems or _data_problems(data)
    if problems:
        raise UserError("; ".join(problems))
    return data


def field_names() -> list[str]:
    """Every field, those of a group after its name and a point."""
    return _field_names(Config, "")


def _field_names(cls: type, prefix: str) -> list[str]:
    names = []
    for field in dataclasses.fields(cls):
        name = prefix + field.name
        names += _field_names(field.type, f"{name}.") if dataclasses.is_dataclass(field.type) else [name]
    return names


def changed_fields(old: Mapping[str, Any], new: Config) -> list[str]:
    """What differs between a saved `Config.to_dict()` and a config that may not differ, as "field: old -> new".

    Where the saved one lacks a field, because an older version wrote it, the training had none of what the field turns
    on; other such fields are taken as unchanged.
    """
    before, after = _BEFORE | dict(_flatten(old)), dict(_flatten(new.to_dict()))
    return [
        f"{name}: {before[name]!r} -> {value!r}"
        for name, value in after.items()
        if name in before and name not in CHANGEABLE and before[name] != value
    ]


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _read_fields(cls: type, values: Mapping[str, Any], prefix: str, problems: list[str]) -> Any:
    fields = {field.name: field.type for field in dataclasses.fields(cls)}
    for name in values:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            hint = f", did you mean {prefix}{near[0]}?" if near else ""
            problems.append(f"{prefix}{name} is not a field{hint}")
    read = {}
    for name, kind in fields.items():
        if name not in values:
            problems.append(f"{prefix}{name} is missing")
            continue
        value = values[name]
        if dataclasses.is_dataclass(kind):
            if isinstance(value, Mapping):
                read[name] = _read_fields(kind, value, f"{name}.", problems)
            else:
                problems.append(f"{prefix}{name} must be a group of fields, not {value!r}")
        elif kind is float and isinstance(value, int | float) and not isinstance(value, bool):
            read[name] = float(value)
        elif type(value) is kind:
            read[name] = value
        else:
            problems.append(f"{prefix}{name} must be of type {kind.__name__}, not {value!r}")
    return None if problems else cls(**read)


class _Rules:
    """Collects what breaks them."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self.names = names
        self.problems: list[str] = []

    def require(self, holds: bool, field: str, value: Any, rule: str) -> None:
        if not holds:
            self.problems.append(f"{self.names.get(field, field)}={value!r} must be {rule}")

    def one_of(self, options: tuple[Any, ...], field: str, value: Any) -> None:
        near = difflib.get_close_matches(value, options, n=1) if isinstance(value, str) else []
        hint = f" (did you mean {near[0]}?)" if near else ""
        self.require(value in options, field, value, "one of " + ", ".join(map(str, options)) + hint)


def _constraint_problems(c: Config, names: Mapping[str, str]) -> list[str]:
    rules = _Rules(names)
    require, one_of = rules.require, rules.one_of
    one_of(ARCHITECTURES, "arch", c.arch)
    require(
        c.image_size in IMAGE_SIZES, "image_size", c.image_size,
        f"a power of two from {IMAGE_SIZES[0]} to {IMAGE_SIZES[-1]}",
    )  # fmt: skip
    one_of((1, 3), "channels", c.channels)
    one_of(DTYPES, "dtype", c.dtype)
    for name in (
        "latent_dim", "gen_features", "dis_features", "log_every_steps", "sample_every_steps",
        "checkpoint_every_steps", "keep_checkpoints", "num_sample_images", "dis_steps",
    ):  # fmt: skip
        require(getattr(c, name) >= 1, name, getattr(c, name), "at least 1")
    require(c.batch_size >= 2, "batch_size", c.batch_size, "at least 2, for batch normalisation")
    require(0 <= c.num_steps < 2**31, "num_steps", c.num_steps, "0 or more and below 2 ** 31")
    require(c.num_steps > 0 or c.num_epochs >= 1, "num_epochs", c.num_epochs, "at least 1")
    for name in ("lr_gen", "lr_dis"):
        rate = getattr(c, name)
        require(0 < rate < math.inf, name, rate, "a positive number")
    one_of(LOSSES, "loss", c.loss)
    require(0 <= c.gp_weight < math.inf, "gp_weight", c.gp_weight, "0 or more")
    if c.loss != "bce" and (c.real_label != 1 or c.label_flip):
        rules.problems.append(f"real_label and label_flip are targets of loss=bce; loss={c.loss} has none")
    one_of(UPSAMPLINGS, "upsample", c.upsample)
    if c.arch == "resnet":
        require(32 <= c.image_size <= 256, "image_size", c.image_size, "from 32 to 256 for arch=resnet")
        if c.upsample != "transposed":
            rules.problems.append(f"upsample={c.upsample} is for arch=dcgan or sngan; leave it out, resnet enlarges so")
    for name in ("r1_weight", "lecam_weight", "consistency_weight", "ema_rampup"):
        value = getattr(c, name)
        require(0 <= value < math.inf, name, value, "0 or more")
    require(c.r1_every_steps >= 1, "r1_every_steps", c.r1_every_steps, "at least 1")
    if c.r1_every_steps > 1 and not c.r1_weight:
        rules.problems.append(f"r1_every_steps={c.r1_every_steps} needs r1_weight above 0, such as 10")
    if c.ema_rampup and not c.ema_decay:
        rules.problems.append(f"ema_rampup={c.ema_rampup:g} needs ema_decay above 0, such as 0.999")
    if c.conditional and c.data.class_filter:
        rules.problems.append(
            f"conditional=True learns several classes, and data.class_filter={c.data.class_filter!r} keeps one: "
            "leave one of them out"
        )
    for name in ("adam_beta1", "adam_beta2", "ema_decay", "dis_dropout"):
        value = getattr(c, name)
        require(0 <= value < 1, name, value, "at least 0 and below 1")
    require(0 < c.real_label <= 1, "real_label", c.real_label, "above 0 and at most 1")
    require(0 <= c.label_flip <= 1, "label_flip", c.label_flip, "from 0 to 1")
    require(0 <= c.seed < 2**32, "seed", c.seed, "from 0 to 4294967295")
    require(c.evaluate_every_steps >= 0, "evaluate_every_steps", c.evaluate_every_steps, "0 or more")
    one_of(BEST_MEASURES, "best_measure", c.best_measure)
    require(0 <= c.report_every_minutes < math.inf, "report_every_minutes", c.report_every_minutes, "0 or more")
    for name in ("monitor_every_steps", "max_rollbacks"):
        require(getattr(c, name) >= 0, name, getattr(c, name), "0 or more")
    require(c.alarm_patience >= 1, "alarm_patience", c.alarm_patience, "at least 1")
    one_of(ON_ALARM, "on_alarm", c.on_alarm)
    require(0 < c.rollback_factor < 1, "rollback_factor", c.rollback_factor, "above 0 and below 1")
    if c.on_alarm != "warn" and not c.monitor_every_steps:
        rules.problems.append(f"on_alarm={c.on_alarm} needs monitor_every_steps above 0, such as 100")
    if c.evaluate_every_steps and not c.data.holdout_fraction:
        rules.problems.append(
            f"evaluate_every_steps={c.evaluate_every_steps} needs images that are not trained on: set "
            "data.holdout_fraction, such as 0.2"
        )
    return rules.problems + _augment_problems(c) + _data_problems(c.data)


def _augment_problems(c: Config) -> list[str]:
    rules, augment = _Rules({}), c.augment
    require = rules.require
    for name in ("color", "translation", "cutout", "probability"):
        value = getattr(augment, name)
        require(0 <= value <= 1, f"augment.{name}", value, "from 0 to 1")
    target = augment.adaptive_target
    require(0 <= target < 1, "augment.adaptive_target", target, "at least 0 and below 1")
    require(augment.adaptive_images >= 1, "augment.adaptive_images", augment.adaptive_images, "at least 1")
    if target and not augment.changes():
        rules.problems.append(
            f"augment.adaptive_target={target:g} steers the probability of changes, and none is on: set one of "
            "augment.flips, quarter_turns, color, translation, cutout, and a probability above 0"
        )
    if target and augment.probability not in (0, 1):
        rules.problems.append(
            f"augment.probability={augment.probability:g} is fixed, and augment.adaptive_target={target:g} steers it: "
            "leave one of them out"
        )
    if target and c.loss == "wgan-gp":
        rules.problems.append(
            "augment.adaptive_target reads the sign of logits, which has no meaning with loss=wgan-gp"
        )
    return rules.problems


def _data_problems(data: DataConfig) -> list[str]:
    rules = _Rules({})
    require, one_of = rules.require, rules.one_of
    one_of(SOURCES, "data.source", data.source)
    one_of(ON_BAD_IMAGE, "data.on_bad_image", data.on_bad_image)
    require(data.num_phantoms >= 1, "data.num_phantoms", data.num_phantoms, "at least 1")
    require(data.device_budget_mb >= 0, "data.device_budget_mb", data.device_budget_mb, "0 or more")
    require(0 <= data.holdout_fraction < 1, "data.holdout_fraction", data.holdout_fraction, "at least 0 and below 1")
    needed = {"folder": ("path",), "csv": ("path", "labels_csv"), "tfds": ("tfds_name",)}.get(data.source, ())
    for name in needed:
        if not getattr(data, name):
            rules.problems.append(f"data.{name} is needed for data.source={data.source}")
    if data.group_column and data.source != "csv":
        rules.problems.append(f"data.group_column={data.group_column!r} needs data.source=csv")
    return rules.problems
