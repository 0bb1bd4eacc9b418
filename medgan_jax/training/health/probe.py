"""What the health checks are based on: measurements of fakes, of the discriminator's logits and of the weights.

All of it, except drawing the fakes, is one compiled program; a health check costs about two training steps.
"""

import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh

from medgan_jax.config import Config
from medgan_jax.data.classes import Classes
from medgan_jax.images import uint8_to_signed, uint8_to_unit
from medgan_jax.metrics.distribution.features import resized
from medgan_jax.models.spectral_norm import largest_singular_value
from medgan_jax.rng import RngStream, rng_key
from medgan_jax.sharding import local_copy, replicated
from medgan_jax.training.losses import mean_over_outputs
from medgan_jax.training.state import Networks

NUM_FAKES = 64  # of a health check
_MAX_LOGITS = 64  # of each kind of image: enough for a steady mean
_MIN_HELD_OUT = 8
_SIDE = 32  # px, at which images are compared, as in metrics.distribution.memorization
_MAX_TRAINING = 1000  # training images that fakes are compared with
_MEMORIZED = 0.5  # of the distance to the second nearest training image
_NEAR = 0.1  # of the usual distance of a real to the one nearest to it: the same image to the eye


class Probe:
    """Measures a training at different steps, one line of health.jsonl each time."""

    def __init__(
        self,
        networks: Networks,
        config: Config,
        training: np.ndarray,
        held_out: np.ndarray | None,
        *,
        mesh: Mesh,
        classes: Classes | None = None,
    ) -> None:
        """Chooses the reals to compare with, and measures them.

        `training` and `held_out` are uint8, (N, H, H, C); without 8 held-out images overfitting is not measured.
        `mesh` are the devices of this process, each of which does the same work. `classes` are those of the images,
        None for an unconditional discriminator.
        """
        random = np.random.default_rng(config.seed)

        def draw(indices: np.ndarray, number: int) -> np.ndarray:
            """Some indices at random, because images of one class lie together; sorted for fast reading."""
            return np.sort(random.permutation(indices)[:number])

        compared = draw(np.arange(len(training)), _MAX_TRAINING)
        parts = (compared[i : i + NUM_FAKES] for i in range(0, len(compared), NUM_FAKES))  # all may be a gigabyte
        thumbnails = np.concatenate([_thumbnails(uint8_to_unit(training[part])) for part in parts])
        sample = thumbnails[random.permutation(len(compared))[:NUM_FAKES]]
        distances = _distances(sample, sample)
        near = _NEAR * np.median(_to_nearest_other(distances))
        self._reals = {
            "diversity_reals": float(_mean_distance(distances)),
            "near_duplicates_reals": float(np.mean(_to_nearest_other(distances) < near)),
            "memorization_reals": float(_memorized_share(thumbnails, thumbnails, themselves=True)),
        }
        reals = [(training, compared)]
        if held_out is not None and len(held_out) >= _MIN_HELD_OUT:
            reals.append((held_out, np.arange(len(held_out))))
        batch = min(config.batch_size, *(len(indices) for _, indices in reals), _MAX_LOGITS)
        shape = (_MAX_LOGITS // batch, batch)
        chosen = [np.resize(draw(indices, math.prod(shape)), shape) for _, indices in reals]
        batches = [images[indices] for (images, _), indices in zip(reals, chosen, strict=True)]
        labels = None
        if classes:
            fake_labels = np.resize(np.arange(NUM_FAKES, dtype=np.int32) % len(classes.names), shape)
            numbers = [classes.training] if classes.held_out is None else [classes.training, classes.held_out]
            real_labels = [x[indices] for x, indices in zip(numbers, chosen, strict=False)]  # held out: maybe too few
            labels = np.stack([*real_labels, fake_labels])
        constants = {
            "thumbnails": thumbnails,
            "near": np.float32(near),
            "reals": np.stack(batches),  # (kinds, batches, batch, H, H, C)
            "labels": labels,  # (kinds + 1, batches, batch), of the fakes too
            "key": jax.random.key_data(rng_key(config.seed, RngStream.DISCRIMINATOR)),
        }
        previous = np.full((NUM_FAKES, *thumbnails.shape[1:]), np.nan, np.float32)
        self._mesh, self._networks = mesh, local_copy(networks, mesh)
        self._constants, self._previous = jax.device_put((constants, previous), replicated(mesh))

    def measure(
        self, fakes: np.ndarray, generator: dict[str, Any], discriminator: dict[str, Any]
    ) -> dict[str, float | list[float]]:
        """One line of health.jsonl, without its step.

        Distances are root mean squared differences at 32 px of values in [0, 1].

        Args:
          fakes: uint8, (`NUM_FAKES`, H, H, C), of the same latents each time; their classes take turns.
          generator: the variables that they were drawn from.
          discriminator: the variables in training.

        Returns:
          `diversity`: the mean distance of two fakes.
          `drift`: the mean distance of a fake and that of the same latent the time before; absent the first time.
          `near_duplicates`: the share of fakes that are closer to another fake than a tenth of what is usual for reals.
          `memorization`: the share of fakes that are less than half as far from one training image, in any of its
          eight orientations, as from every other one.
          `..._reals`: the same of training images.
          `logit_train`, `logit_fakes` and, with held-out images, `logit_held_out`: mean logits of the discriminator in
          training mode, each kind of image in batches of its own.
          `norms_gen` and `norms_dis`: see `kernel_norms`.
        """
        variables = local_copy((generator["params"], discriminator), self._mesh)
        values, self._previous = _measure(self._networks, self._constants, self._previous, fakes, *variables)
        line = {name: np.asarray(value, np.float64).tolist() for name, value in jax.device_get(values).items()}
        if math.isnan(line["drift"]):
            del line["drift"]
        return self._reals | line


def kernel_norms(params: Any) -> list[jax.Array]:
    """The largest singular value of each kernel of a network, from input to output, before any spectral norm."""

    def place(item: tuple[str, jax.Array]) -> list[int]:
        """The numbers in a name: the place of a block in the network, then of a layer in the block."""
        return [int(number) for number in re.findall(r"\d+", item[0])]

    flat = sorted(traverse_util.flatten_dict(params, sep="/").items())
    return [largest_singular_value(leaf) for name, leaf in sorted(flat, key=place) if name.endswith("/kernel")]


@jax.jit
def _measure(
    networks: Networks,
    constants: dict[str, jax.Array],
    previous: jax.Array,
    fakes: jax.Array,
    generator: dict[str, Any],
    discriminator: dict[str, Any],
) -> tuple[dict[str, Any], jax.Array]:
    """The values of `Probe.measure`, and the thumbnails of the fakes, which the next call gets as `previous`."""
    thumbnails, reals = _thumbnails(uint8_to_unit(fakes)), constants["reals"]
    distances = _distances(thumbnails, thumbnails)
    images = jnp.concatenate([reals, jnp.resize(fakes, (1, *reals.shape[1:]))])

    def logits(batch: tuple[jax.Array, jax.Array | None]) -> jax.Array:
        images, labels = batch
        mutable = [name for name in discriminator if name != "params"]
        rngs = {"dropout": jax.random.wrap_key_data(constants["key"])}
        inputs = networks.discriminator_inputs(uint8_to_signed(images)), labels
        outputs, _ = networks.discriminator.apply(discriminator, *inputs, training=True, mutable=mutable, rngs=rngs)
        return mean_over_outputs(outputs)

    logits_of_kinds = jax.lax.map(functools.partial(jax.lax.map, logits), (images, constants["labels"]))
    kinds = ("logit_train", "logit_held_out")[: len(reals)] + ("logit_fakes",)
    values = {
        "diversity": _mean_distance(distances),
        "drift": jnp.mean(jnp.sqrt(jnp.mean(jnp.square(thumbnails - previous), axis=(1, 2, 3)))),
        "near_duplicates": jnp.mean(_to_nearest_other(distances) < constants["near"]),
        "memorization": _memorized_share(thumbnails, constants["thumbnails"]),
        **dict(zip(kinds, jnp.mean(logits_of_kinds, axis=(1, 2)), strict=True)),
        "norms_gen": kernel_norms(generator),
        "norms_dis": kernel_norms(discriminator["params"]),
    }
    return values, thumbnails


def _thumbnails(images: jax.Array) -> jax.Array:
    """(N, H, H, C) in [0, 1] to (N, S, S, C), S at most 32."""
    return resized(images, min(_SIDE, images.shape[1]))


@jax.jit
def _distances(images: jax.Array, others: jax.Array) -> jax.Array:
    """Root mean squared differences (N, M) of (N, S, S, C) and (M, S, S, C)."""
    centre = jnp.mean(others)  # keeps the products small, and with them their rounding errors
    a, b = ((x - centre).reshape(len(x), -1) for x in (images, others))
    products = jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
    squares = jnp.sum(a**2, axis=1)[:, None] + jnp.sum(b**2, axis=1)[None] - 2 * products
    return jnp.sqrt(jnp.maximum(squares, 0) / a.shape[1])


@functools.partial(jax.jit, static_argnames="themselves")
def _memorized_share(images: jax.Array, others: jax.Array, *, themselves: bool = False) -> jax.Array:
    """The share of images that are much closer to one of the others than to any second one.

    A blurred image is close to many images, a memorized one to a single image. Yoon et al. 2023 ("Diffusion
    probabilistic models generalize when they fail to memorize") ask for a third of the distance to the second; the
    images of a GAN reproduce less exactly. `themselves`: the others are the images, none is compared with itself.
    """

    def closer(symmetry: jax.Array, best: jax.Array) -> jax.Array:
        turns = [functools.partial(jnp.rot90, k=k, axes=(1, 2)) for k in range(4)]
        mirrored = jnp.where(symmetry >= 4, images[:, :, ::-1], images)
        return jnp.minimum(best, _distances(jax.lax.switch(symmetry % 4, turns, mirrored), others))

    distances = jax.lax.fori_loop(0, 8, closer, jnp.full((len(images), len(others)), jnp.inf))
    if themselves:
        distances += jnp.diag(jnp.full(len(images), jnp.inf))
    nearest, second = -jax.lax.top_k(-distances, 2)[0].T
    return jnp.mean((nearest < _MEMORIZED * second) & jnp.isfinite(second))


def _to_nearest_other(distances: jax.Array) -> jax.Array:
    return jnp.min(distances + jnp.diag(jnp.full(len(distances), jnp.inf)), axis=1)


def _mean_distance(distances: jax.Array) -> jax.Array:
    number = len(distances)
    return jnp.sum(distances) / (number * (number - 1))
