"""What `import medgan_jax` offers to Python code: load, sample and interpolate; train; evaluate; metrics.

Nothing here prints, parses flags or exits. What a training says is logged by `logging`, as "medgan_jax.training". What
the caller can correct raises `UserError`, whose message is one line.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

import medgan_jax.metrics as metrics
from medgan_jax.checkpoint import TrainedGenerator, load_generator
from medgan_jax.config import Config, named_config, parse_config
from medgan_jax.errors import UserError
from medgan_jax.evaluation import image_sets, protocol
from medgan_jax.evaluation.report import Report
from medgan_jax.files import local_path
from medgan_jax.interpolation import walk_frames
from medgan_jax.metrics.distribution.features import Features
from medgan_jax.sampling import open_guard
from medgan_jax.sharding import data_mesh, replicated
from medgan_jax.training import trainer
from medgan_jax.training.callback import Callback

__all__ = ["Generator", "Report", "UserError", "evaluate", "load", "metrics", "train"]

_SIGNALLED = 128  # exit codes beyond are of signals
_BATCH = 64  # images at once, as sample.py has it


@dataclasses.dataclass(frozen=True)
class Generator:
    """A trained generator.

    Attributes:
      image_size: H, the height and width of its images, px.
      channels: C, 3 for RGB, 1 for grey.
      classes: the names that `label` may have; none where it has learned no classes.
      step: of its training.
      digest: of its weights; image files that it drew have it too.
    """

    image_size: int
    channels: int
    classes: tuple[str, ...]
    step: int
    digest: str
    _trained: TrainedGenerator = dataclasses.field(repr=False, compare=False)

    def sample(self, n: int, *, seed: int = 0, label: str | None = None, guard: bool | None = None) -> np.ndarray:
        """Images 0 to `n` - 1 of a seed, the same as `medgan sample` writes.

        Args:
          n: how many.
          seed: image i depends on the generator, the seed, the class and i alone.
          label: the class of all; None for the classes in turn, if it has learned any.
          guard: whether to draw images again that are too close to a training image, see docs/privacy.md; by default
            where guard.npz is in the workdir, or in the generator's folder.

        Returns:
          uint8, (n, H, H, C).

        Raises:
          UserError: it has not learned the class; `n` or `seed` is out of range; or there is no guard that was asked
            for, or it lets no draw of an image pass.
        """
        _check_numbers(n, seed)
        opened = open_guard(guard, self._trained, None)
        return image_sets.sampled(
            self._trained, n, seed=seed, mesh=data_mesh(), title="", label=label, guard=opened
        ).images

    def interpolate(self, n: int = 8, *, seed: int = 0, label: str | None = None, frames: int = 30) -> np.ndarray:
        """A walk through images 0 to `n` - 1 of a seed and back to the first, as `medgan sample --interpolate` has it.

        Args:
          n: through how many images, 2 or more.
          seed: of the images.
          label: their class; None for the first that it has learned, as there is nothing between two classes.
          frames: from one image to the next.

        Returns:
          uint8, (n * frames, H, H, C).

        Raises:
          UserError: as `sample`.
        """
        for number in (n, frames):
            _check_numbers(number, seed)
        walk = walk_frames(
            self._trained, num_images=n, seed=seed, batch_size=_BATCH, mesh=data_mesh(), label=label,
            frames_per_leg=frames,
        )  # fmt: skip
        return np.stack(list(walk))


def load(path: str | os.PathLike[str]) -> Generator:
    """Loads the newest generator of a workdir or generator folder, or a PyTorch file (.pth, .safetensors).

    Raises:
      UserError: nothing is there, or it is damaged.
    """
    trained = load_generator(local_path("path", path), replicated(data_mesh()))
    module = trained.module
    return Generator(module.image_size, module.channels, trained.classes, trained.step, trained.digest, trained)


def train(
    config: str | Config | ConfigDict | Mapping[str, Any],
    workdir: str | os.PathLike[str],
    *,
    callbacks: Sequence[Callback] = (),
    **fields: Any,
) -> Generator:
    """Trains in `workdir`, or goes on with the training that is there; the same as `medgan train`.

    Args:
      config: the name of a packaged config, such as "small64"; the path of a config file; or a config, such as
        `medgan_jax.config.named_config` returns.
      workdir: the folder of the run; made when missing.
      callbacks: see `medgan_jax.training.callback.Callback`; called after those of every run.
      **fields: of the config, in place of its own: num_steps=500, data={"path": "lesions", "holdout_fraction": 0.2}.

    Returns:
      The generator in the end, or where a callback stopped the training.

    Raises:
      UserError: the data, the config or the workdir do not allow it; or the training diverged.
      KeyboardInterrupt: it was interrupted, and saved; the same call goes on from there.
    """
    parsed = parse_config(_with_fields(config, fields))
    place = local_path("workdir", workdir)
    code = trainer.train(parsed, place, callbacks=[*extra_callbacks(parsed), *callbacks])
    if code > _SIGNALLED:
        raise KeyboardInterrupt(code - _SIGNALLED)
    return load(place)


def evaluate(
    fakes: np.ndarray,
    reals: np.ndarray,
    *,
    train: np.ndarray | None = None,
    features: str | Features = image_sets.FEATURES[0],
    pairing: str = "nearest",
    seed: int = 0,
) -> Report:
    """Compares generated images with real ones, every metric beside the same metric between reals; see docs/metrics.md.

    Args:
      fakes: uint8, (N, H, H, 1 or 3), H at least 16.
      reals: uint8, (M, H, H, 1 or 3), real images that the generator was not trained on; M at least 4, or 2 with
        `train`. Without `train` they are halved, to compare reals with reals.
      train: uint8, (K, H, H, 1 or 3), what it was trained on; needed to look for copies.
      features: for KID, FID, precision, recall, density and coverage: a name of `evaluate.py --features`, or
        `medgan_jax.metrics.distribution.Features`.
      pairing: which real each fake is paired with, for the paired metrics: nearest, random or medimagegan.
      seed: decides halves, pairs and resampling.

    Returns:
      The figures, with 95 % intervals; `print` and notebooks show them as tables.

    Raises:
      UserError: these are no sets to compare, or there are no such features or pairs.
    """
    if pairing not in protocol.PAIRINGS:
        raise UserError(f"pairing={pairing}: must be one of {', '.join(protocol.PAIRINGS)}")
    sets = image_sets.from_arrays(fakes, reals, train)
    _check_numbers(1, seed)
    chosen = features if isinstance(features, Features) else image_sets.choose_features(features, None)
    return protocol.evaluate(*sets, pairing=pairing, features=chosen, seed=seed)


def extra_callbacks(config: Config) -> list[Callback]:
    """Those that a config asks for besides the ones of every run."""
    if not config.output_prefix:
        return []
    from medgan_jax.compat.medimagegan.outputs import MedImageGANOutputs

    return [MedImageGANOutputs()]


def _with_fields(config: str | Config | ConfigDict | Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config as nested plain values, some of them replaced."""
    if isinstance(config, str):
        config = named_config(config)
    elif not isinstance(config, Config | ConfigDict | Mapping):
        raise UserError(f"config: must be the name of a config, or a config, and is a {type(config).__name__}")
    values = dict(config if isinstance(config, Mapping) else config.to_dict())
    for name, value in fields.items():
        is_group = isinstance(values.get(name), dict)
        if is_group and not isinstance(value, Mapping):
            raise UserError(f"{name}: is a group of fields; give a dict, such as {name}={{...}}")
        values[name] = {**values[name], **value} if is_group else value
    return values


def _check_numbers(number: int, seed: int) -> None:
    for value in (number, seed):
        if not isinstance(value, int | np.integer):
            raise UserError(f"{value!r}: must be a whole number")
    if number < 1:
        raise UserError(f"{number} images: give 1 or more")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed} must be from 0 to {2**32 - 1}")
