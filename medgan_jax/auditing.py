"""Membership inference: whether those who have a generator, or its discriminator, can tell what it was trained on.

An attacker is given photographs, and gives each a score that is high where it looks trained on. With the generator: how
near the nearest of many fakes is, by pixels at 32 px (GAN-Leaks, Chen et al. 2020, arXiv:1909.03935, the full black-box
attack). With the discriminator: its logit, as it has learned to take training images for real (LOGAN, Hayes et al.
2019, arXiv:1705.07663, the white-box attack). Training images are scored, and held-out ones of the same kind.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medgan_jax.checkpoint import TrainedDiscriminator, TrainedGenerator, load_networks
from medgan_jax.data.cache import CachedImages
from medgan_jax.data.classes import number_classes
from medgan_jax.errors import UserError
from medgan_jax.evaluation.image_sets import data_of_training, load_training, sampled, title_of
from medgan_jax.images import uint8_to_signed
from medgan_jax.metrics.distribution.bootstrap import Estimate, bootstrap
from medgan_jax.metrics.distribution.memorization import nearest
from medgan_jax.models.projected import ProjectedDiscriminator, load_frozen, project_images
from medgan_jax.sharding import data_mesh, replicated
from medgan_jax.training.losses import mean_over_outputs

_LEAST_GROUPS = 10  # on each side: of fewer, intervals say nothing
_LOW_RATE = 0.01 + 1e-9  # of false alarms; sums of weights are rounded
_LEAST_FOR_LOW_RATE = 100  # held-out images: of fewer, none may be a false alarm
_REPLICATES = 1000
_BATCH = 32


@dataclasses.dataclass(frozen=True)
class Attack:
    """How well an attack works.

    Attributes:
      advantage: of a training and a held-out image drawn at random, how much more often the attacker takes the right
        one for the training image than the wrong one: 2 AUC - 1. 0 is guessing, 1 certainty.
      at_low_rate: the share of training images that are found where 1 % of held-out images are taken for such; None
        where fewer than 100 were held out.
    """

    advantage: Estimate
    at_low_rate: Estimate | None

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.advantage.low > 0:
            return f"found: it tells a training from a held-out image in {(1 + self.advantage.value) / 2:.0%} of pairs"
        return f"no advantage shown; one of up to {max(self.advantage.high, 0):.2f} could hide"


@dataclasses.dataclass(frozen=True)
class Audit:
    """What `audit` finds.

    Attributes:
      title: the generator, for people.
      training: how many images it was trained on.
      held_out: how many it has not seen.
      num_fakes: how many fakes the first attack has.
      generator: the attack of those who have the generator.
      discriminator: of those who have the discriminator; None where the run has none.
    """

    title: str
    training: int
    held_out: int
    num_fakes: int
    generator: Attack
    discriminator: Attack | None


def audit(path: Path, data: Mapping[str, Any], *, num_fakes: int = 2000, seed: int = 0) -> Audit:
    """Attacks a generator, and its discriminator where there is one.

    Args:
      path: a workdir, or a generator folder.
      data: fields of a data set: where the images of the training are now.
      num_fakes: of the first attack.
      seed: of the fakes and of resampling.

    Raises:
      UserError: there is no generator of a training, its images are not there, or it held out too few.
    """
    mesh = data_mesh()
    networks = load_networks(path, replicated(mesh))
    generator = next((network for network in networks if isinstance(network, TrainedGenerator)), None)
    discriminator = next((network for network in networks if isinstance(network, TrainedDiscriminator)), None)
    if generator is None or "config" not in generator.about:
        raise UserError(f"{path}: holds no generator of a training of ours; give the workdir of a run")
    then = data_of_training(generator, data)
    training, held_out = load_training(generator, then)
    groups = _groups(training), _groups(held_out) if held_out else np.empty(0, int)
    for number, what in zip((len(np.unique(side)) for side in groups), ("was trained on", "held out"), strict=True):
        if number < _LEAST_GROUPS:
            raise UserError(
                f"{path}: its training {what} images of {number} groups, and an audit needs {_LEAST_GROUPS} on each "
                "side; train with data.holdout_fraction, such as 0.2, on more images"
            )
    assert held_out is not None  # it has groups
    fakes = sampled(generator, num_fakes, seed=seed, mesh=mesh, title="").images
    sides = np.asarray(training.images), np.asarray(held_out.images)
    nearness = [-nearest(images, fakes)[1] for images in sides]
    by_generator = attack(nearness[0], nearness[1], *groups, seed=seed)
    by_discriminator = None
    if discriminator:
        classes = None
        if discriminator.module.num_classes:
            classes = number_classes(training.labels, held_out.labels, title_of(then))
        labels = (classes.training, classes.held_out) if classes else (None, None)
        logits = [discriminator_scores(discriminator, *side) for side in zip(sides, labels, strict=True)]
        by_discriminator = attack(logits[0], logits[1], *groups, seed=seed)
    title = f"{path} at step {generator.step}"
    return Audit(title, len(sides[0]), len(sides[1]), num_fakes, by_generator, by_discriminator)


def attack(
    training: np.ndarray, held_out: np.ndarray, training_groups: np.ndarray, held_out_groups: np.ndarray, *, seed: int
) -> Attack:
    """The success of an attack, with 95 % intervals by the bootstrap over groups.

    Args:
      training: scores of training images, (M,).
      held_out: scores of held-out images, (L,).
      training_groups: int, (M,), the same number for images of one patient or lesion.
      held_out_groups: int, (L,), likewise.
      seed: of the bootstrap.
    """
    members = [np.unique(side, return_inverse=True)[1] for side in (training_groups, held_out_groups)]
    signs = np.sign(training[:, None] - held_out)
    order = np.argsort(-held_out)

    def statistic(*weights_of_groups: np.ndarray) -> dict[str, float]:
        weights = [of_group[member] for of_group, member in zip(weights_of_groups, members, strict=True)]
        ours, theirs = (side / side.sum() for side in weights)
        false_alarms = np.cumsum(theirs[order])
        threshold = held_out[order[np.searchsorted(false_alarms, _LOW_RATE, "right")]]
        return {"advantage": float(ours @ signs @ theirs), "at_low_rate": float(ours @ (training > threshold))}

    sizes = [int(member.max()) + 1 for member in members]
    found = bootstrap(statistic, sizes, seed=seed, replicates=_REPLICATES, bounds=(-1, 1))
    return Attack(found["advantage"], found["at_low_rate"] if len(held_out) >= _LEAST_FOR_LOW_RATE else None)


def discriminator_scores(trained: TrainedDiscriminator, images: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    """Logits, float32 (N,), of images, uint8 (N, H, W, C), as in use: not one depends on the others.

    Args:
      trained: the discriminator.
      images: as it was trained on.
      labels: (N,) int32, their classes; None of an unconditional one.
    """
    frozen = load_frozen() if isinstance(trained.module, ProjectedDiscriminator) else None

    @jax.jit
    def score(variables: Any, frozen: Any, images: jax.Array, labels: jax.Array | None) -> jax.Array:
        shown: Any = uint8_to_signed(images)
        if frozen is not None:
            shown = project_images(frozen, shown)
        logits: Any = trained.module.apply(variables, shown, labels, training=False)
        return mean_over_outputs(logits)

    scores = []
    for start in range(0, len(images), _BATCH):
        batch = np.minimum(np.arange(start, start + _BATCH), len(images) - 1)  # one shape, one compilation
        of_batch = None if labels is None else jnp.asarray(labels[batch])
        scores.append(np.asarray(score(trained.variables, frozen, jnp.asarray(images[batch]), of_batch)))
    return np.concatenate(scores)[: len(images)]


def _groups(images: CachedImages) -> np.ndarray:
    return np.unique(images.groups or images.names, return_inverse=True)[1]
