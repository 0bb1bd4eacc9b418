"""Control files of MedImageGAN, the PyTorch system re-created here: YAML with its keys, for our configs.

`load` reads one, for a training or, with arch: 'Generator', for sampling. Messages name the keys of the file.
"""

import contextlib
import difflib
import functools
import math
import os
import reprlib
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from ml_collections import ConfigDict

from medgan_jax.config import config_problems
from medgan_jax.errors import UserError
from medgan_jax.files import expanded

_MAX_BYTES = 2**16  # PyYAML takes 10 s for a megabyte
_GENERATOR = "Generator"
_ARCHITECTURES = {"DCGAN": "dcgan", "SNGAN": "sngan", "WGAN": "dcgan"}
_BASE_RATE = 2e-4  # which a learning_rate of 1 or more multiplies

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
_UNUSED = ("n_gpu", "loader_workers")
_WASSERSTEIN = ("critic_its", "gp_lambda")
_TRAINING = ("arch", "out", "run", "learning_rate", *_FIELDS, *_UNUSED)
_SAMPLING = ("arch", "path", "out", "run", "quantity", "image_size", "seed", *_UNUSED)
_TYPES = {key: int for key in (*_TRAINING, *_SAMPLING)} | {
    **dict.fromkeys(("arch", "path", "out", "run"), str),
    **dict.fromkeys(("learning_rate", "beta_adam", "gp_lambda"), float),
}
_EXPECTED = {str: "text", int: "a whole number", float: "a number"}


def load(path: Path, training: ConfigDict) -> ConfigDict:
    """Reads a control file.

    Returns a copy of `training` with the file's values; of a file for sampling, its keys path, out, run, quantity,
    image_size and seed. Raises UserError when the file is not there, is not YAML, or has unknown, missing, repeated,
    ill-typed or impossible keys.
    """
    given = _read(path)
    arch = given["arch"] if isinstance(given.get("arch"), str) else None
    samples = arch == _GENERATOR or (arch not in _ARCHITECTURES and "quantity" in given)
    wasserstein = arch == "WGAN" or not given.keys().isdisjoint(_WASSERSTEIN)
    known = _SAMPLING if samples else _TRAINING
    problems = _key_problems(given, known, optional=("seed", *_UNUSED, *(() if wasserstein else _WASSERSTEIN)))
    values = {"seed": 0} | {key: _typed(key, given[key], problems) for key in known if key in given}
    if arch is not None and arch not in (options := (*_ARCHITECTURES, _GENERATOR)):
        near = _nearest(arch, options)
        hint = f" (did you mean {near}?)" if near else ""
        problems.append(f"arch={arch} must be one of {', '.join(options)}{hint}")
    problems += _place_problems(values)
    config = ConfigDict({key: values.get(key) for key in _SAMPLING if key not in ("arch", *_UNUSED)})
    if samples:
        problems += _sampling_problems(values)
    elif not problems:
        config = _training_config(values, training.copy_and_resolve_references(), wasserstein=wasserstein)
        names = {field: key for key, field in _FIELDS.items()} | dict.fromkeys(("lr_gen", "lr_dis"), "learning_rate")
        problems = list(dict.fromkeys(config_problems(config, names)))
    if problems:
        raise UserError(f"{path}: {'; '.join(problems)}")
    _report_unused(path, tuple(key for key in _UNUSED if key in given))
    return config


def check_sampling(config: ConfigDict, *, checkpoint: str | None, out: str | None) -> ConfigDict:
    """Returns `config`, made by `load`, once flags may have changed what is to be sampled.

    Raises UserError when the file is for training, a field was set to something impossible, or one of the flags
    --checkpoint and --out was given (not None), which say the same as the file.
    """
    if "quantity" not in config:
        raise UserError("--config: is for training; run train.py, or medgan train, with it")
    for name, value in (("checkpoint", checkpoint), ("out", out)):
        if value is not None:
            raise UserError(f"--{name}={value}: the control file says that; leave out --{name} or --config")
    if problems := _place_problems(config) + _sampling_problems(config):
        raise UserError("; ".join(problems))
    return config


class _Loader(yaml.SafeLoader):
    """YAML's plain values, dates left as text; refuses repeated keys, of which PyYAML silently takes the last."""

    yaml_implicit_resolvers = {
        first: [resolver for resolver in resolvers if resolver[0] != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """Makes a dict. Raises ConstructorError where a key is there twice."""
        seen: list[Any] = []
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is there twice", key.start_mark)
            seen.append(key.value)
        return super().construct_mapping(node, deep)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path}: no such control file; give configs/control_file.py:FILE.yaml")
    try:
        data = path.read_bytes()
        if len(data) > _MAX_BYTES:
            raise UserError(f"{path}: {len(data):,} bytes are no control file; give a YAML file of keys and values")
        values = yaml.load(data, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        raise UserError(f"{path}: {line}{error.problem or error.context}; correct the file") from error
    except (RecursionError, ValueError) as error:
        reason = "lists within lists within lists" if isinstance(error, RecursionError) else "a number too long to read"
        raise UserError(f"{path}: holds {reason}; write `key: value` lines") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not text ({str(error).splitlines()[0]}); give a YAML file") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds no keys; write `key: value` lines")
    return values


def _nearest(word: str, options: Iterable[str]) -> str | None:
    lowered = {option.lower(): option for option in options}
    near = difflib.get_close_matches(word.lower(), lowered, n=1)
    return lowered[near[0]] if near else None


def _key_problems(given: Mapping[str, Any], known: tuple[str, ...], optional: tuple[str, ...]) -> list[str]:
    problems, misspelt = [], set()
    for key in given:
        if key not in known:
            near = _nearest(str(key), [name for name in known if name not in given])
            misspelt.add(near)
            problems.append(f"{key} is not a key" + (f", did you mean {near}?" if near else ""))
    missing = [key for key in known if key not in given and key not in optional and key not in misspelt]
    return problems + [f"{key} is missing" for key in missing]


def _typed(key: str, value: Any, problems: list[str]) -> Any:
    """The value of a known key; None, and a problem, when it is of another type."""
    expected = _TYPES[key]
    if expected is float and isinstance(value, int | str) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            value = float(value)  # to YAML 1.1, 2e-4 without a point is text
    if type(value) is expected:
        return value
    hint = " (put it in quotes)" if expected is str and isinstance(value, int | float) else ""
    problems.append(
        f"{key} must be {_EXPECTED[expected]}, not {'empty' if value is None else reprlib.repr(value)}{hint}"
    )
    return None


def _place_problems(values: Mapping[str, Any]) -> list[str]:
    problems = [f"{key} is empty" for key in ("path", "out") if values.get(key) == ""]
    run = values.get("run")
    if run is not None and (run in ("", ".", "..") or set(run) & set("/\\")):
        problems.append(f"run={run!r} must be a plain name, which the names of the outputs begin with")
    return problems


def _sampling_problems(values: Mapping[str, Any]) -> list[str]:
    limits = {"quantity": (1, math.inf), "image_size": (1, math.inf), "seed": (0, 2**32 - 1)}
    return [
        f"{key}={values[key]} must be at least {least}" + (f" and at most {most}" if most < math.inf else "")
        for key, (least, most) in limits.items()
        if values.get(key) is not None and not least <= values[key] <= most
    ]


def _training_config(values: Mapping[str, Any], config: ConfigDict, *, wasserstein: bool) -> ConfigDict:
    """Puts the values into `config`, and returns it."""
    config.data.source = "folder"
    config.num_sample_images = 64
    config.log_every_steps = 10  # the original plots every step
    config.arch = _ARCHITECTURES[values["arch"]]
    config.update_from_flattened_dict({field: values[key] for key, field in _FIELDS.items() if key in values})
    if wasserstein:
        config.loss = "wgan-gp"
    rate = values["learning_rate"]
    config.lr_gen, config.lr_dis = (_BASE_RATE, _BASE_RATE * rate) if rate >= 1 else (rate, rate)
    config.output_prefix = os.path.join(expanded(values["out"]), values["run"])
    return config


@functools.cache
def _report_unused(path: Path, keys: tuple[str, ...]) -> None:
    """Prints which keys do nothing here: once, though a config may be loaded more than once."""
    if keys:
        verb = "has" if len(keys) == 1 else "have"
        print(f"{path}: {' and '.join(keys)} {verb} no meaning here: every device and core is used", file=sys.stderr)
