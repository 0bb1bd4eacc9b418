"""The configuration of a training run: one schema.

Each field is written once, with its type, default, help, checks, and whether a resumed run may change it. The flags
`--config.FIELD`, their help, `configs/default.py`, the resume check and the report's list of fields derive from it.
To add a field, add it here and use it where it is needed.
"""

import dataclasses
import difflib
import functools
import logging
import math
import runpy
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from medgan_jax.errors import UserError
from medgan_jax.files import expanded, is_local


class Rule(NamedTuple):
    """A check of one field's value; `text` ends the sentence "FIELD=VALUE must be ..."."""

    holds: Callable[[Any], bool]
    text: str


def _one_of(*options: Any) -> Rule:
    return Rule(lambda value: value in options, "one of " + ", ".join(map(str, options)))


def _at_least(low: int, why: str = "") -> Rule:
    return Rule(lambda value: value >= low, f"at least {low}{why}")


_NOT_NEGATIVE = Rule(lambda value: 0 <= value < math.inf, "0 or more")
_POSITIVE = Rule(lambda value: 0 < value < math.inf, "a positive number")
_FRACTION = Rule(lambda value: 0 <= value <= 1, "from 0 to 1")
_BELOW_1 = Rule(lambda value: 0 <= value < 1, "at least 0 and below 1")
_LOCAL = Rule(is_local, "a path on this machine; copy the files here, or mount them")
_INSIDE_0_1 = Rule(lambda value: 0 < value < 1, "above 0 and below 1")


def _value_range(text: str) -> tuple[float, float] | None:
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        return None
    return (low, high) if -math.inf < low < high < math.inf else None


def _field(group: str, default: Any, help_text: str, *rules: Rule, may_change: bool = False, was: str = "") -> Any:
    """Declares a field.

    Args:
      group: title under which help and report list it.
      default: its default.
      help_text: what it does, for --help.
      *rules: its checks.
      may_change: whether a resumed run may have another value: only what does not alter a training step.
      was: its former name, which is still accepted, with a notice.
    """
    metadata = {"group": group, "help": help_text, "rules": rules, "may_change": may_change, "was": was}
    return dataclasses.field(default=default, metadata=metadata)


_network = functools.partial(_field, "Networks")
_length = functools.partial(_field, "Batches and duration")
_optimisation = functools.partial(_field, "Optimisation")
_output = functools.partial(_field, "Output", may_change=True)
_health = functools.partial(_field, "Health checks", may_change=True)
_augment = functools.partial(_field, "Augmentation")
_data = functools.partial(_field, "Data")


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Differentiable augmentation (Zhao et al. 2020, arXiv:2006.10738) of what the discriminator sees."""

    # fmt: off
    flips: bool = _augment(False, "mirror left-right and top-bottom, each with probability 1/2")
    quarter_turns: bool = _augment(False, "rotate by 0, 90, 180 or 270 degrees; dermoscopy has no up")
    color: float = _augment(0.0, "strength of changes in brightness, saturation and contrast; 1 is published",
        _FRACTION)
    translation: float = _augment(0.0,
        "shift by up to this share of the side, grey beyond the edge; 0.125 is published", _FRACTION)
    cutout: float = _augment(0.0, "side of a grey square that hides part of the image; 0.5 is published", _FRACTION)
    probability: float = _augment(1.0, "probability that each of these is applied to an image", _FRACTION)
    adaptive_target: float = _augment(0.0,
        "adapt the probability, from 0, to the discriminator's overfitting; 0.6 is published; 0: off", _BELOW_1)
    adaptive_images: int = _augment(500_000, "adaptive: reals over which it can go from 0 to 1", _at_least(1))
    # fmt: on

    def is_enabled(self) -> bool:
        """Whether anything is augmented at all."""
        return bool(
            self.probability and (self.flips or self.quarter_turns or self.color or self.translation or self.cutout)
        )


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which images. An empty string means "not given"."""

    # fmt: off
    source: str = _data("folder", "folder | csv | tfds | phantom: procedural dermoscopy, needs no files",
        _one_of("folder", "csv", "tfds", "phantom"))
    path: str = _data("", 'folder, csv: the image folder; tfds: its data_dir, "" is the usual one', may_change=True)
    labels_csv: str = _data("", "csv: the table, image,label with or without a header, or as in docs/data.md",
        _LOCAL, may_change=True, was="labels")
    image_column: str = _data("image",
        "csv with a header: the column of image names; image stands for image_id, isic_id, filename and the like too")
    label_column: str = _data("label",
        "csv with a header: the column of labels; label stands for dx, diagnosis and the like too, and for a column "
        "for each class, with a 1 in the rows of its images and 0 elsewhere")
    group_column: str = _data("",
        "csv with a header: the column of patients or lesions, which are held out whole; an image without one is "
        "alone; of DICOM files without such a column, Patient ID")
    on_missing: str = _data("refuse",
        "refuse | skip: csv: what to do about rows without an image, and images without a row or label",
        _one_of("refuse", "skip"), may_change=True)
    class_filter: str = _data("", 'keep only the images of this class; "" keeps all', was="label")
    tfds_name: str = _data("", "tfds: the data set's name")
    split: str = _data("train",
        "folders called train, test, val or such are splits: the one to read, or several joined by +; tfds: the split, "
        "slices such as train[:80%] included")
    include: str = _data("", "folder, csv: only images whose path below data.path matches one of these patterns, "
        "separated by commas; * is any text, / too: *_left.png,healthy/*", may_change=True)
    exclude: str = _data("", "the same: no images that match one: *_mask.png,masks/*", may_change=True)
    allow_synthetic: bool = _data(False, "whether images that are marked as synthetic may count as reals",
        may_change=True)
    frames: str = _data("", "of TIFF, GIF, WebP, PNG and DICOM files of several pages or frames: first | all, each an "
        'image; "" refuses them', _one_of("", "first", "all"))
    window: str = _data("auto", "which values become black and white: auto: of samples of more than 8 bits, the range "
        "of as many bits as the file declares, or else the data set uses, of DICOM the window of the file | full: that "
        "of all bits | LOW,HIGH: these two, of DICOM after the modality LUT",
        Rule(lambda value: value in ("auto", "full") or _value_range(value) is not None,
            "auto, full, or LOW,HIGH, two numbers of which the first is smaller"))
    fit: str = _data("crop", "how images become square: crop: the centre | pad: all, on black | stretch: all, out of "
        "proportion", _one_of("crop", "pad", "stretch"))
    num_phantoms: int = _data(512, "phantom: how many images", _at_least(1))
    horizontal_flip: bool = _data(False, "mirror each image with probability 1/2, anew at each step")
    any_orientation: bool = _data(False,
        "mirror and turn each image at random, by quarters, anew at each step; dermoscopy and histology have no up")
    holdout_fraction: float = _data(0.0, "share of each class kept from training, to evaluate on", _BELOW_1)
    folds: int = _data(0, "divide the images into so many folds, of which one is held out; 0: see holdout_fraction",
        _NOT_NEGATIVE)
    fold: int = _data(1, "which fold is held out, from 1 to folds", _at_least(1))
    on_bad_image: str = _data("refuse", "refuse | skip: what to do about files that cannot be read",
        _one_of("refuse", "skip"), may_change=True)
    cache_dir: str = _data("", 'where decoded images are kept; "" is the user\'s cache folder', _LOCAL, may_change=True)
    device_budget_mb: int = _data(2048,
        "MiB of decoded images kept on each device; more are streamed; 0: always stream",
        _NOT_NEGATIVE,
        may_change=True)
    # fmt: on

    def holds_out(self) -> bool:
        """Whether images are kept from training."""
        return bool(self.holdout_fraction or self.folds)

    def value_range(self) -> tuple[float, float] | None:
        """LOW and HIGH of `window`; None where it is auto or full."""
        return _value_range(self.window)


@dataclasses.dataclass(frozen=True)
class Config:
    """A training run. The defaults are those of DCGAN (Radford et al. 2016, arXiv:1511.06434)."""

    # fmt: off
    arch: str = _network("dcgan",
        "dcgan | sngan: spectral norm on every convolution of the discriminator | resnet: residual SNGAN | fastgan: "
        "FastGAN's generator, and the discriminator of sngan",
        _one_of("dcgan", "sngan", "resnet", "fastgan"))
    dis: str = _network("patch",
        "patch: the discriminator of arch, which takes pixels | projected: Projected GAN's, which takes what a "
        "pretrained EfficientNet-Lite0 makes of them",
        _one_of("patch", "projected"))
    image_size: int = _network(64, "px, a power of two from 16 to 512",
        Rule(lambda value: value in [2**n for n in range(4, 10)], "a power of two from 16 to 512"))
    channels: int = _network(3, "3: RGB, 1: grey", _one_of(1, 3))
    latent_dim: int = _network(100, "length of the generator's input", _at_least(1))
    gen_features: int = _network(64,
        "feature maps of the layer nearest to the image; they double as the resolution halves", _at_least(1))
    dis_features: int = _network(64, "the same for the discriminator of dis=patch", _at_least(1))
    upsample: str = _network("transposed",
        "dcgan, sngan: transposed | nearest | bilinear; the last two leave no checkerboard",
        _one_of("transposed", "nearest", "bilinear"))
    conditional: bool = _network(False, "learn each class of the data, so that sample.py --label can draw one")
    dis_dropout: float = _network(0.0, "dropout on the discriminator's input", _BELOW_1)
    dtype: str = _network("float32", "float32 | bfloat16: what convolutions compute in; parameters stay float32",
        _one_of("float32", "bfloat16"))

    batch_size: int = _length(16, "images per step, over all devices; must be a multiple of their number",
        _at_least(2, ", for batch normalisation"))
    num_epochs: int = _length(200, "an epoch is data set // batch_size steps; a last partial batch is dropped",
        may_change=True)
    num_steps: int = _length(0, "above 0: overrides num_epochs",
        Rule(lambda value: 0 <= value < 2**31, "0 or more and below 2 ** 31"), may_change=True)
    balance_classes: bool = _length(True, "conditional: as many images of each class in a batch, however rare it is")

    loss: str = _optimisation("bce", "bce | hinge | wgan-gp, whose discriminator has no batch normalisation",
        _one_of("bce", "hinge", "wgan-gp"))
    gp_weight: float = _optimisation(10.0, "wgan-gp: weight of the gradient penalty", _NOT_NEGATIVE)
    r1_weight: float = _optimisation(0.0, "R1 penalty, the paper's gamma; 10 is common; 0: off", _NOT_NEGATIVE)
    r1_every_steps: int = _optimisation(1,
        "lazy regularization: R1 every so many steps, that much stronger; 16 is common", _at_least(1))
    lecam_weight: float = _optimisation(0.0,
        "LeCam penalty: distance of logits to the past mean of the other kind; 0.3 is published", _NOT_NEGATIVE)
    checkerboard_weight: float = _optimisation(0.0,
        "penalty on grids of 2 and 4 px in the fakes; 1 in small64; 0: off", _NOT_NEGATIVE)
    dis_steps: int = _optimisation(1,
        "discriminator updates for one of the generator; a step is one discriminator update", _at_least(1))
    simultaneous: bool = _optimisation(False, "update both networks against each other as they were before the step")
    lr_gen: float = _optimisation(2e-4, "Adam's learning rate for the generator", _POSITIVE)
    lr_dis: float = _optimisation(2e-4, 'and for the discriminator; "10x" in the published experiments is 2e-3 here',
        _POSITIVE)
    adam_beta1: float = _optimisation(0.5, "Adam's beta 1", _BELOW_1)
    adam_beta2: float = _optimisation(0.999, "Adam's beta 2", _BELOW_1)
    real_label: float = _optimisation(1.0, "bce: target for reals; 0.9 is one-sided label smoothing",
        Rule(lambda value: 0 < value <= 1, "above 0 and at most 1"))
    label_flip: float = _optimisation(0.0, "bce: share of the reals in a batch whose target is 0 instead", _FRACTION)
    ema_decay: float = _optimisation(0.0,
        "decay of the generator's moving average, which is then sampled from; 0: off; 0.999 is common", _BELOW_1)
    ema_rampup: float = _optimisation(0.0,
        "upper bound of the average's half-life, as a share of the generator's steps so far; 0: off; 0.05 is common",
        _NOT_NEGATIVE)
    init_from: str = _optimisation("",
        "first weights: a workdir, a folder of generator/ and discriminator/, or a PyTorch file",
        _LOCAL)
    seed: int = _optimisation(0, "decides weights, order of the data, latents, flips",
        Rule(lambda value: 0 <= value < 2**32, "from 0 to 4294967295"))

    log_every_steps: int = _output(50, "steps between two lines of metrics.jsonl", _at_least(1))
    sample_every_steps: int = _output(500, "steps between two pictures in samples/", _at_least(1))
    checkpoint_every_steps: int = _output(500, "steps between two checkpoints, which a crash costs at most",
        _at_least(1))
    keep_checkpoints: int = _output(3, "how many of the last ones are kept", _at_least(1))
    num_sample_images: int = _output(64, "images in a picture", _at_least(1))
    evaluate_every_steps: int = _output(0, "steps between two evaluations; needs data.holdout_fraction; 0: never",
        _NOT_NEGATIVE)
    best_measure: str = _output("kid", "swd | kid: by which the best generator is kept, in best/",
        _one_of("swd", "kid"))
    tensorboard: bool = _output(True, "also log for TensorBoard, in tensorboard/")
    report: bool = _output(True, "write report.html and plots/")
    guard: bool = _output(True,
        "at the end write guard.npz, by which sample.py redraws copies of training images; it tells who was trained "
        "on, and blurred pictures of them: docs/privacy.md")
    report_every_minutes: float = _output(10.0, "write the report anew while training; 0: only at the end",
        _NOT_NEGATIVE)
    output_prefix: str = _output("",
        "at the end also PREFIX_loss_plot.png, _real_fake_grid.png, _metrics_report.out, and images", _LOCAL)

    monitor_every_steps: int = _health(100,
        "steps between two health checks (diversity, memorization, ...); 0: no alarms", _NOT_NEGATIVE)
    alarm_patience: int = _health(500, "steps that a bad sign must last to become an alarm", _at_least(1))
    on_alarm: str = _health("warn",
        "warn | stop | rollback: to the last healthy checkpoint, with a lower learning rate",
        _one_of("warn", "stop", "rollback"))
    rollback_factor: float = _health(0.5, "factor of the learning rate, of the network at fault, at a rollback",
        _INSIDE_0_1)
    max_rollbacks: int = _health(3, "after so many, alarms only warn", _NOT_NEGATIVE)
    # fmt: on

    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)

    def total_steps(self, steps_per_epoch: int) -> int:
        """The number of steps of the run."""
        return self.num_steps or self.num_epochs * steps_per_epoch

    def of_steps(self) -> "Config":
        """What compiled steps depend on, but for the seed, which they take as an argument; the rest at its default."""
        unused: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(self) if f.metadata.get("may_change")}
        data = DataConfig(horizontal_flip=self.data.horizontal_flip, any_orientation=self.data.any_orientation)
        return dataclasses.replace(self, **unused, seed=Config.seed, data=data)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, for JSON; `parse_config` reads them back."""
        return dataclasses.asdict(self)


def _schema(cls: Any = Config, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field]]:
    """All fields by dotted name, those of a group after its name and a point."""
    for field in dataclasses.fields(cls):
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            yield from _schema(field.type, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, field


FIELDS = dict(_schema())
_FORMER_NAMES = {
    name.rpartition(".")[0] + "." * ("." in name) + field.metadata["was"]: name
    for name, field in FIELDS.items()
    if field.metadata["was"]
}


def default_config() -> ConfigDict:
    """Every field at its default, to be changed by a file in configs/ and by flags."""
    return ConfigDict(Config().to_dict())


def config_path(name: str) -> Path:
    """The file of a packaged config, such as "small64"; a path is returned as it is.

    Raises:
      UserError: there is no such config.
    """
    if "/" in name or Path(name).is_file():
        path = Path(expanded(name))
        known = sorted(map(str, path.parent.glob("*.py")))
    else:
        # In an installed package the folder lies within it; in a checkout, beside it.
        here = Path(__file__).parent
        folder = next(f for f in (here / "configs", here.parent / "configs") if f.is_dir() or f.parent != here)
        path = folder / f"{name.removesuffix('.py')}.py"
        known = sorted(file.stem for file in folder.glob("*.py"))
    if not path.is_file():
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"give one of {', '.join(known)}" if known else "check the path"
        raise UserError(f"config={name}: no such config; {hint}")
    return path


def named_config(given: str) -> ConfigDict:
    """What a config sets, all fields under their present names.

    Args:
      given: the name of a packaged config, such as "sngan64", or the path of one; ":ARGUMENT" may follow.

    Raises:
      UserError: there is no such config, or the file does not work.
    """
    name, colon, argument = given.partition(":")
    path = config_path(name)
    try:
        config = runpy.run_path(str(path))["get_config"](*[argument] * bool(colon))
        _rename_former_fields(config)
    except UserError:
        raise
    except Exception as error:  # whatever the file raised
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"config={given}: is not a working config file ({reason})") from error
    return config


def help_text() -> str:
    """All fields with their defaults and help, by group, for --help."""
    lines = []
    for title, names in field_groups().items():
        lines.append(f"\n{title}:")
        for name in names:
            field = FIELDS[name]
            lines.append(f"  --config.{name}={field.default!r}")
            lines += textwrap.wrap(field.metadata["help"], 100, initial_indent=6 * " ", subsequent_indent=6 * " ")
    return "\n".join(lines)


def field_groups() -> dict[str, tuple[str, ...]]:
    """Titles and the fields below each, dotted names in the order of the schema."""
    groups: dict[str, tuple[str, ...]] = {}
    for name, field in FIELDS.items():
        title = field.metadata["group"]
        groups[title] = (*groups.get(title, ()), name)
    return groups


def _rename_former_fields(values: ConfigDict) -> None:
    """Gives the fields that a config file set by their former names their present ones, in place."""
    for former in _FORMER_NAMES:
        group, _, leaf = former.rpartition(".")
        fields = values.get(group, {}) if group else values
        if leaf in fields:
            fields[current_name(former).rpartition(".")[2]] = fields[leaf]
            del fields[leaf]


def current_name(name: str) -> str:
    """The present name of a field that may be given by its former one; says so where it was."""
    if name not in _FORMER_NAMES:
        return name
    logging.getLogger(__name__).warning("config.%s is now called config.%s", name, _FORMER_NAMES[name])
    return _FORMER_NAMES[name]


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


def parse_data(values: ConfigDict | Mapping[str, Any]) -> DataConfig:
    """Checks and freezes the fields of a data set alone. Raises UserError as `parse_config`."""
    problems: list[str] = []
    data = _read_fields(DataConfig, _plain(values), "data.", problems)
    if not problems:
        problems = [*_rule_problems(data, "data.", {}), *_data_conflicts(data)]
    if problems:
        raise UserError("; ".join(problems))
    return data


def changed_fields(old: Mapping[str, Any], new: Config) -> list[str]:
    """What differs between a saved `Config.to_dict()` and a config of a resumed run, as "field: old -> new".

    Fields that a resumed run may change are left out; so are those that only one of the two has.
    """
    before = {_FORMER_NAMES.get(name, name): value for name, value in _flatten(old)}
    return [
        f"{name}: {before[name]!r} -> {value!r}"
        for name, value in _flatten(new.to_dict())
        if name in before and not FIELDS[name].metadata["may_change"] and before[name] != value
    ]


def _plain(values: ConfigDict | Mapping[str, Any]) -> Mapping[str, Any]:
    return values.to_dict() if isinstance(values, ConfigDict) else values


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _read_config(values: ConfigDict | Mapping[str, Any], names: Mapping[str, str]) -> tuple[Config, list[str]]:
    problems: list[str] = []
    config = _read_fields(Config, _plain(values), "", problems)
    return config, problems or [*_rule_problems(config, "", names), *_conflicts(config)]


def _read_fields(cls: Any, values: Mapping[str, Any], prefix: str, problems: list[str]) -> Any:
    fields: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(cls)}
    given = {}
    for name, value in sorted(values.items(), key=lambda item: prefix + item[0] in _FORMER_NAMES):
        # Former names come last: a config file that sets one does so beside the default of the present one.
        if (present := current_name(prefix + name).removeprefix(prefix)) in fields:
            given[present] = value
            continue
        near = difflib.get_close_matches(name, fields, n=1)
        hint = f", did you mean {prefix}{near[0]}?" if near else ""
        problems.append(f"{prefix}{name} is not a field{hint}")
    read: dict[str, Any] = {}
    for name, kind in fields.items():
        if name not in given:
            problems.append(f"{prefix}{name} is missing")
            continue
        value = given[name]
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


def _rule_problems(config: Any, prefix: str, names: Mapping[str, str]) -> Iterator[str]:
    """What breaks a field's own checks."""
    for name, field in _schema(type(config), prefix):
        value = functools.reduce(getattr, name.removeprefix(prefix).split("."), config)
        for rule in field.metadata["rules"]:
            if not rule.holds(value):
                yield f"{names.get(name, name)}={value!r} must be {rule.text}"


def _conflicts(c: Config) -> Iterator[str]:
    """Fields that do not go together."""
    if c.num_steps == 0 and c.num_epochs < 1:
        yield f"num_epochs={c.num_epochs} must be at least 1"
    if c.loss != "bce" and (c.real_label != 1 or c.label_flip):
        yield f"real_label and label_flip are targets of loss=bce; loss={c.loss} has none"
    largest = {"resnet": 256, "fastgan": 512}.get(c.arch)
    if largest and not 32 <= c.image_size <= largest:
        yield f"image_size={c.image_size} must be from 32 to {largest} for arch={c.arch}"
    if largest and c.upsample != "transposed":
        yield f"upsample={c.upsample} is for arch=dcgan or sngan; leave it out, {c.arch} always upsamples by nearest"
    if c.dis == "projected" and c.dis_dropout:
        yield f"dis_dropout={c.dis_dropout:g} is for dis=patch; leave it out"
    if c.dis == "projected" and c.dis_features != Config.dis_features:
        yield f"dis_features={c.dis_features} is for dis=patch; leave it out"
    if c.dis == "projected" and c.loss == "wgan-gp":
        yield "loss=wgan-gp penalises gradients to pixels, for dis=patch; dis=projected goes with hinge or bce"
    if c.r1_every_steps > 1 and not c.r1_weight:
        yield f"r1_every_steps={c.r1_every_steps} needs r1_weight above 0, such as 10"
    if c.ema_rampup and not c.ema_decay:
        yield f"ema_rampup={c.ema_rampup:g} needs ema_decay above 0, such as 0.999"
    if c.data.any_orientation and (c.augment.flips or c.augment.quarter_turns or c.data.horizontal_flip):
        yield (
            "data.any_orientation=True mirrors and turns the reals already: leave out augment.flips, "
            "augment.quarter_turns and data.horizontal_flip"
        )
    if c.conditional and c.data.class_filter:
        yield (
            f"conditional=True learns several classes, and data.class_filter={c.data.class_filter!r} keeps one: "
            "leave one of them out"
        )
    if c.on_alarm != "warn" and not c.monitor_every_steps:
        yield f"on_alarm={c.on_alarm} needs monitor_every_steps above 0, such as 100"
    if c.evaluate_every_steps and not c.data.holds_out():
        yield (
            f"evaluate_every_steps={c.evaluate_every_steps} needs images that are not trained on: set "
            "data.holdout_fraction, such as 0.2"
        )
    target, augment = c.augment.adaptive_target, c.augment
    if target and not augment.is_enabled():
        yield (
            f"augment.adaptive_target={target:g} adapts the probability of changes, and none is on: set one of "
            "augment.flips, quarter_turns, color, translation, cutout, and a probability above 0"
        )
    if target and augment.probability not in (0, 1):
        yield (
            f"augment.probability={augment.probability:g} is fixed, and augment.adaptive_target={target:g} adapts it: "
            "leave one of them out"
        )
    if target and c.loss not in ("bce", "hinge"):
        yield f"augment.adaptive_target reads the sign of logits, which has no meaning with loss={c.loss}"
    yield from _data_conflicts(c.data)


def _data_conflicts(data: DataConfig) -> Iterator[str]:
    if data.source != "tfds" and not is_local(data.path):  # TFDS knows other places too
        yield f"data.path={data.path!r} must be {_LOCAL.text}"
    needed = {"folder": ("path",), "csv": ("path", "labels_csv"), "tfds": ("tfds_name",)}.get(data.source, ())
    for name in needed:
        if not getattr(data, name):
            yield f"data.{name} is needed for data.source={data.source}"
    if data.folds == 1 or (data.folds and data.fold > data.folds):
        yield f"data.fold={data.fold} must be one of data.folds={data.folds}, which are 2 or more"
    if data.folds and data.holdout_fraction:
        yield (
            f"data.folds={data.folds} and data.holdout_fraction={data.holdout_fraction:g} both hold images out: leave "
            "one of them out"
        )
    if data.group_column and data.source != "csv":
        yield f"data.group_column={data.group_column!r} needs data.source=csv"
    if data.frames == "all" and data.source == "tfds":
        yield "data.frames=all is for files; data.source=tfds reads the first frame of a record, with data.frames=first"
