"""Control files of MedImageGAN, the PyTorch system re-created here: YAML with its keys, for our configs.

`load` reads one, for a training or, with arch: 'Generator', for sampling; `plan_sampling` joins the latter with the
flags of sample.py. All messages name the keys of the file.
"""

import contextlib
import dataclasses
import difflib
import functools
import math
import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from ml_collections import ConfigDict

from medgan_jax.config import config_problems
from medgan_jax.errors import UserError, reason_of

_MAX_BYTES = 65_536
_GENERATOR = "Generator"
_ARCHITECTURES = {"DCGAN": "dcgan", "SNGAN": "sngan", "WGAN": "dcgan"}
_BASE_RATE = 2e-4  # which a learning_rate of 1 or more multiplies
_TOO_LARGE = 2**63  # whole numbers of thousands of digits, which Python may refuse to write in a message

_FIELDS = {  # what each key of a training is called here
    "path": "data.path",
    "seed": "seed",
    "num_epochs": "num_epochs",
    "beta_adam": "adam_beta1",
    "batch_size": "batch_size",
    "latent_vector": "latent_dim",
    "image_size": "image_size",
    "number_channels": "channels",
    "gen_feature_maps": "gen_features",
    "dis_feature_maps": "dis_features",
    "critic_its": "dis_steps",
    "gp_lambda": "gp_weight",
}
_KINDS = {key: int for key in (*_FIELDS, "n_gpu", "loader_workers", "quantity")} | {
    **dict.fromkeys(("arch", "path", "out", "run"), str),
    **dict.fromkeys(("learning_rate", "beta_adam", "gp_lambda"), float),
}
_EXPECTED = {str: "text", int: "a whole number", float: "a number"}
_MEANINGLESS = ("n_gpu", "loader_workers")
_WASSERSTEIN = ("critic_its", "gp_lambda")
_TRAINING = ("arch", "out", "run", "learning_rate", *_FIELDS, *_MEANINGLESS)
_SAMPLING = ("arch", "path", "out", "run", "quantity", "image_size", "seed", *_MEANINGLESS)

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_UNCLOSED = re.compile(r"""[^'"#]*:\s+(['"])(?:(?!\1).)*""")


def load(path: Path, training: ConfigDict) -> ConfigDict:
    """Reads a control file.

    Args:
      path: the YAML file.
      training: a training's config, which gives what the file has no key for. It is not changed.

    Returns:
      That config with the file's values; or, of a file for sampling, its keys path, out, run, quantity, image_size and
      seed.

    Raises:
      UserError: the file cannot be read, is not YAML, has unknown, missing, repeated, ill-typed or impossible keys.
    """
    problems: list[str] = []
    nodes = _read_nodes(path, problems)
    arch = str(nodes["arch"].value) if "arch" in nodes else None
    samples = arch == _GENERATOR or (arch not in _ARCHITECTURES and "quantity" in nodes)
    known = _SAMPLING if samples else _TRAINING
    wasserstein = arch == "WGAN" or not nodes.keys().isdisjoint(_WASSERSTEIN)
    problems += _key_problems(nodes, known, optional=("seed", *_MEANINGLESS, *(() if wasserstein else _WASSERSTEIN)))
    values = {key: _read_value(key, nodes[key], problems) for key in known if key in nodes}
    values = {"seed": 0} | {key: value for key, value in values.items() if value is not None}
    if "arch" in values:
        problems += _arch_problems(values["arch"])
    if places := _place_problems(values):
        problems += places
        values.pop("out", None)  # which may be no path at all
    if samples:
        problems += _sampling_problems(values)
        config = ConfigDict({key: values.get(key) for key in _SAMPLING if key not in ("arch", *_MEANINGLESS)})
    else:
        config = _translate(values, training.copy_and_resolve_references(), problems)
        problems += config_problems(config, {field: key for key, field in _FIELDS.items()})
    if problems:
        raise UserError(f"{path}: {'; '.join(problems)}")
    _report_meaningless(path, tuple(key for key in _MEANINGLESS if key in nodes))
    return config


@dataclasses.dataclass(frozen=True)
class SamplingPlan:
    """What sample.py is to do.

    Attributes:
      checkpoint: of the generator.
      out: the folder for the images; None where a movie is wanted instead of them.
      num_images: how many; None where nobody said.
      seed: decides the latents.
      prefix: what the names of the files begin with; "" for nothing.
      image_size: what the control file says that the images have, in px; None without one.
    """

    checkpoint: Path
    out: Path | None
    num_images: int | None
    seed: int
    prefix: str = ""
    image_size: int | None = None

    def check_size(self, image_size: int) -> None:
        """Compares the size of the generator's images, in px. Raises UserError when the control file has another."""
        if self.image_size not in (None, image_size):
            raise UserError(
                f"image_size={self.image_size} in the control file, but the images of {self.checkpoint} have "
                f"{image_size} px: correct image_size, or give another path"
            )


def plan_sampling(
    config: ConfigDict | None,
    *,
    checkpoint: str | None,
    out: str | None,
    num_images: int | None,
    seed: int | None,
    movie: bool = False,
) -> SamplingPlan:
    """Joins a control file for sampling with the flags of sample.py.

    Args:
      config: from `load`, or None.
      checkpoint: the flag in place of the file's path; None where it was not given, as for the others.
      out: the flag in place of the file's out.
      num_images: comes before the file's quantity.
      seed: comes before the file's seed; 0 where nobody says.
      movie: what is wanted is no folder of images, so neither `out` nor the file's out and quantity mean anything.

    Raises:
      UserError: checkpoint and out are missing, or are given beside a control file or a movie; or what the file says
        was overridden by something impossible.
    """
    if movie and out is not None:
        raise UserError(f"--out={out}: --interpolate writes its movie only; leave out one of them")
    places = {"checkpoint": checkpoint, "out": out}
    if config is None:
        for name, value in places.items():
            if not value and not (movie and name == "out"):
                raise UserError(f"give --{name}=..., or --config=configs/control_file.py:FILE.yaml")
        folder = None if movie else Path(out).expanduser()
        return SamplingPlan(Path(checkpoint).expanduser(), folder, num_images, seed or 0)
    for name, value in places.items():
        if value is not None:
            raise UserError(f"--{name}={value}: the control file says that; leave out --{name} or --config")
    problems = _place_problems(config) + _sampling_problems(config)
    if problems:
        raise UserError("; ".join(problems))
    return SamplingPlan(
        checkpoint=Path(config.path).expanduser(),
        out=None if movie else Path(config.out).expanduser(),
        num_images=config.quantity if num_images is None and not movie else num_images,
        seed=config.seed if seed is None else seed,
        prefix=config.run,
        image_size=config.image_size,
    )


def _read_nodes(path: Path, problems: list[str]) -> dict[str, yaml.Node]:
    """The keys and their values as YAML's nodes, of which no object was made yet."""
    if not path.is_file():
        raise UserError(f"{path}: no such control file; give configs/control_file.py:FILE.yaml")
    try:
        with open(path, "rb") as file:
            text = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: {reason_of(error)}; give a readable control file") from error
    if len(text) > _MAX_BYTES:
        raise UserError(f"{path}: has more than {_MAX_BYTES} bytes; a control file is a page of keys")
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except RecursionError:
        raise UserError(f"{path}: is nested too deeply; a control file is a list of `key: value`") from None
    except yaml.MarkedYAMLError as error:
        raise UserError(f"{path}: {_syntax_problem(text, error)}") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the latter two for numbers of characters
        raise UserError(f"{path}: is not text ({str(error).splitlines()[0]}); give a YAML file") from error
    if root is not None and not _is_plain(root):
        raise UserError(f"{path}: {_tag_problem(root)}")
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{path}: {'is empty' if root is None else 'holds no keys'}; write `key: value` lines")
    nodes: dict[str, yaml.Node] = {}
    for key, value in root.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            problems.append(f"line {line} has a key that is not a word")
        elif key.value in nodes:
            problems.append(f"{_shown(key.value)} is there twice, again in line {line}")
        else:
            nodes[key.value] = value
    return nodes


def _syntax_problem(text: bytes, error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    lines = text.decode(errors="replace").splitlines()
    # An open quote lets YAML complain about later lines only.
    for number, line in enumerate(lines[: mark.line + 1], 1):
        if _UNCLOSED.fullmatch(line):
            return f"line {number} opens a quote and does not close it"
    return f"line {mark.line + 1} is not YAML ({error.problem or error.context})"


def _is_plain(node: yaml.Node) -> bool:
    return node.tag.startswith("tag:yaml.org,2002:") and "python/" not in node.tag


def _tag_problem(node: yaml.Node) -> str:
    return f"line {node.start_mark.line + 1} has the tag {_shown(node.tag)}, but a control file holds plain values only"


def _shown(text: str) -> str:
    """What a file says, to quote in a message."""
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= 60 else text[:57] + "..."


def _nearest(word: str, options: Iterable[str]) -> str | None:
    lowered = {option.lower(): option for option in options}
    near = difflib.get_close_matches(word.lower(), lowered, n=1)
    return lowered[near[0]] if near else None


def _key_problems(nodes: Mapping[str, yaml.Node], known: tuple[str, ...], optional: tuple[str, ...]) -> list[str]:
    problems, misspelt = [], set()
    for key in nodes:
        if key not in known:
            near = _nearest(key, [name for name in known if name not in nodes])
            misspelt.add(near)
            problems.append(f"{_shown(key)} is not a key" + (f", did you mean {near}?" if near else ""))
    missing = [key for key in known if key not in nodes and key not in optional and key not in misspelt]
    return problems + [f"{key} is missing" for key in missing]


def _read_value(key: str, node: yaml.Node, problems: list[str]) -> str | int | float | None:
    """The value of a known key; None, and a problem, when it is of another type."""
    kind = _KINDS[key]
    if not _is_plain(node):
        problems.append(f"{key}: {_tag_problem(node)}")
        return None
    if not isinstance(node, yaml.ScalarNode):
        problems.append(f"{key} must be {_EXPECTED[kind]}, not a {node.id}")
        return None
    value, type_name = None, node.tag.rpartition(":")[2]
    if type_name in ("str", "int", "float"):
        with contextlib.suppress(ValueError, LookupError):  # such as a number of 5,000 digits, or !!int of text
            value = yaml.SafeLoader("").construct_object(node)
    if kind is float and isinstance(value, str) and _NUMBER.fullmatch(value):
        return float(value)  # to YAML 1.1, 2e-4 without a point is text
    if kind is float and type(value) is int:
        return float(value) if abs(value) < 10**300 else math.inf
    if kind is int and type(value) is int and abs(value) >= _TOO_LARGE:
        problems.append(f"{key}={_shown(node.value)} is far too large")
        return None
    if type(value) is kind:
        return value
    quote = node.style or ""
    hint = " (put it in quotes)" if kind is str and type_name != "null" else ""
    shown = "empty" if type_name == "null" else quote + _shown(node.value) + quote
    problems.append(f"{key} must be {_EXPECTED[kind]}, not {shown}{hint}")
    return None


def _arch_problems(arch: str) -> list[str]:
    options = (*_ARCHITECTURES, _GENERATOR)
    if arch in options:
        return []
    near = _nearest(arch, options)
    hint = f" (did you mean {near}?)" if near else ""
    return [f"arch={_shown(arch)} must be one of {', '.join(options)}{hint}"]


def _place_problems(values: Mapping[str, Any]) -> list[str]:
    problems = []
    if values.get("path") == "":
        problems.append("path is empty")
    run = values.get("run")
    if run is not None and (run in ("", ".", "..") or set(run) & set("/\\") or not run.isprintable()):
        problems.append(f"run={run!r} must be a plain name, which the names of the outputs begin with")
    for key in ("path", "out"):
        if re.search(r"[\0\ud800-\udfff]", values.get(key) or ""):
            problems.append(f"{key}={values[key]!r} has a character that no file name can have")
    return problems


def _sampling_problems(values: Mapping[str, Any]) -> list[str]:
    limits = {"quantity": (1, math.inf), "image_size": (1, math.inf), "seed": (0, 2**32 - 1)}
    problems = []
    for key, (least, most) in limits.items():
        value = values.get(key)
        if value is not None and not least <= value <= most:
            rule = f"at least {least}" if most == math.inf else f"from {least} to {most}"
            problems.append(f"{key}={_shown(str(value))} must be {rule}")
    return problems


def _translate(values: dict[str, Any], config: ConfigDict, problems: list[str]) -> ConfigDict:
    """Puts the values that are there into `config`."""
    config.data.source = "folder"
    config.data.path = "missing"  # is among the problems already, where nothing replaces it
    config.num_sample_images = 64
    config.log_every_steps = 10  # the original plots every step
    config.arch = _ARCHITECTURES.get(values.get("arch"), config.arch)
    for key, field in _FIELDS.items():
        if values.get(key) not in (None, ""):
            config.update_from_flattened_dict({field: values[key]})
    if values.get("arch") == "WGAN" or set(_WASSERSTEIN) & set(values):
        config.loss = "wgan-gp"
    rate = values.get("learning_rate")
    if rate is not None and not 0 < rate < math.inf:
        problems.append(f"learning_rate={rate!r} must be a positive number")
    elif rate is not None:
        config.lr_gen, config.lr_dis = (_BASE_RATE, _BASE_RATE * rate) if rate >= 1 else (rate, rate)
    if "out" in values and "run" in values:
        config.output_prefix = os.path.join(os.path.expanduser(values["out"]), values["run"])
    return config


@functools.cache
def _report_meaningless(path: Path, keys: tuple[str, ...]) -> None:
    """Once, though a config may be loaded more than once."""
    if keys:
        verb = "has" if len(keys) == 1 else "have"
        print(f"{path}: {' and '.join(keys)} {verb} no meaning here: every device and core is used", file=sys.stderr)
