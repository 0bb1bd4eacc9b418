"""A look at a training from outside its step: what its pictures, its judgements and its weights tell of its health.

All of it but the fakes, which are those of the fixed latents, is one compiled program: a look costs about two steps.
"""

import functools
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh, Sharding

from medgan_jax.config import Config
from medgan_jax.data.classes import Classes
from medgan_jax.images import uint8_to_signed, uint8_to_unit
from medgan_jax.metrics.distribution.features import resized
from medgan_jax.models.spectral_norm import largest_singular_value
from medgan_jax.rng import RngStream, rng_key
from medgan_jax.sharding import local_copy, replicated
from medgan_jax.training.state import Networks

FAKES = 64  # of a look
_JUDGED = 64  # of each kind, at most: enough that the mean of the logits is steady
_MIN_HELD_OUT = 8
_SIDE = 32  # px, at which images are compared, as in `measures.copies`
_MAX_TRAINING = 1000  # images that copies are sought among
_COPY = 0.5  # of the distance to the second nearest training image
_NEAR = 0.1  # of the usual distance of a real to the one nearest to it: what the eye takes for the same image


class Probe:
    """Takes the figures of health.jsonl."""

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
        """Measures the reals, to which fakes will be compared.

        Args:
          networks: modules.
          config: the training.
          training: uint8, (N, H, H, C).
          held_out: uint8, (M, H, H, C); without, or with less than 8, overfitting is not looked for.
          mesh: this process's devices; all of them do the same.
          classes: of the images; None where the discriminator judges without.
        """
        random = np.random.default_rng(config.seed)  # classes lie together

        def some(indices: np.ndarray, number: int) -> np.ndarray:
            return np.sort(random.permutation(indices)[:number])

        self._mesh = mesh
        sought = some(np.arange(len(training)), _MAX_TRAINING)  # read by parts, as all may be a gigabyte
        parts = (sought[i : i + FAKES] for i in range(0, len(sought), FAKES))
        thumbnails = np.concatenate([_thumbnails(uint8_to_unit(training[part])) for part in parts])
        within = np.array(_distances(*2 * [thumbnails[random.permutation(len(sought))[:FAKES]]]))
        own = np.median(_to_nearest_other(within))
        kinds = [(training, sought, classes and classes.training)]
        if held_out is not None and len(held_out) >= _MIN_HELD_OUT:
            kinds.append((held_out, np.arange(len(held_out)), classes and classes.held_out))
        batch = min(config.batch_size, *(len(indices) for _, indices, _ in kinds), _JUDGED)
        batches = _JUDGED // batch
        judged = [np.resize(some(those, batch * batches), (batches, batch)) for _, those, _ in kinds]
        reals = np.stack([images[those] for (images, _, _), those in zip(kinds, judged, strict=True)])
        labels = None
        if classes:  # of the fakes too, the last kind
            labels = [numbers[those] for (_, _, numbers), those in zip(kinds, judged, strict=True)]
            labels.append(np.resize(np.arange(FAKES, dtype=np.int32) % len(classes.names), (batches, batch)))
            labels = np.stack(labels, axis=2)
        self._reals = {
            "diversity_reals": float(_mean_distance(within)),
            "near_duplicates_reals": float(np.mean(_to_nearest_other(within) < _NEAR * own)),
            "copies_reals": float(_copied_share(thumbnails, thumbnails, themselves=True)),
        }
        shared = replicated(mesh)
        self._constants = jax.device_put(
            {
                "thumbnails": thumbnails,
                "near": np.float32(_NEAR * own),
                "reals": np.moveaxis(reals, 0, 2),  # (batches, batch, kinds, H, W, C): rows in turns, see Discriminator
                "labels": labels,
                "key": jax.random.key_data(rng_key(config.seed, RngStream.DISCRIMINATOR)),
            },
            shared,
        )
        side = thumbnails.shape[1]
        before = np.full((FAKES, side, side, config.channels), np.nan, np.float32)
        self._before = jax.device_put(before, shared)
        self._look = _jitted_look(networks, shared)

    def figures(
        self, fakes: np.ndarray, generator: dict[str, Any], discriminator: dict[str, Any]
    ) -> dict[str, float | list[float]]:
        """One line of health.jsonl, without its step.

        Args:
          fakes: uint8, (`FAKES`, H, H, C), of the same latents at each look, and of all classes in turn.
          generator: the variables that they were drawn from.
          discriminator: the variables in training.

        Returns:
          `diversity`, the mean root mean squared difference of two of 64 fakes at 32 px, values in [0, 1];
          `drift`, the same of a fake and what its latent gave at the look before, absent at the first look;
          `near_duplicates`, the share of them that another one resembles to a tenth of what is usual among reals;
          `copies`, the share of them less than half as far from one training image, turned or mirrored as may be, as
          from any other; the same of reals as `..._reals`; `logit_train`, `logit_fakes` and, where images are held out,
          `logit_held_out`, mean logits of the discriminator, each kind in batches of its own as in training;
          `norms_gen` and `norms_dis`, the largest singular value of each kernel, from input to output, before any
          spectral norm.
        """
        variables = local_copy((generator["params"], discriminator), self._mesh)
        found, self._before = self._look(fakes, *variables, self._before, **self._constants)
        found = {name: np.asarray(value, np.float64).tolist() for name, value in jax.device_get(found).items()}
        if math.isnan(found["drift"]):
            del found["drift"]
        return self._reals | found


@functools.lru_cache(maxsize=1)  # of several seeds with the same networks, the program is compiled once
def _jitted_look(networks: Networks, sharding: Sharding) -> Callable[..., Any]:
    return jax.jit(functools.partial(_look, networks=networks), out_shardings=sharding)


def _look(
    fakes: jax.Array,
    generator: dict[str, Any],
    discriminator: dict[str, Any],
    before: jax.Array,
    *,
    thumbnails: jax.Array,
    near: jax.Array,
    reals: jax.Array,
    labels: jax.Array | None,
    key: jax.Array,
    networks: Networks,
) -> tuple[dict[str, Any], jax.Array]:
    """The figures, and thumbnails of the fakes; `before` are those of the look before."""
    small = _thumbnails(uint8_to_unit(fakes))
    within = _distances(small, small)
    judged = jnp.resize(fakes, (*reals.shape[:2], *fakes.shape[1:]))
    images = uint8_to_signed(jnp.concatenate([reals, judged[:, :, None]], axis=2))

    def logits(batch: tuple[jax.Array, jax.Array | None]) -> jax.Array:
        mutable = [name for name in discriminator if name != "params"]
        rngs = {"dropout": jax.random.wrap_key_data(key)}
        return networks.discriminator.apply(discriminator, *batch, training=True, mutable=mutable, rngs=rngs)[0]

    means = jnp.mean(jax.lax.map(logits, (images, labels)), axis=(0, 1))
    kinds = ("logit_train", "logit_held_out")[: reals.shape[2]] + ("logit_fakes",)
    figures = {
        "diversity": _mean_distance(within),
        "drift": jnp.mean(jnp.sqrt(jnp.mean(jnp.square(small - before), axis=(1, 2, 3)))),
        "near_duplicates": jnp.mean(_to_nearest_other(within) < near),
        "copies": _copied_share(small, thumbnails),
        **dict(zip(kinds, means, strict=True)),
        "norms_gen": _norms(generator),
        "norms_dis": _norms(discriminator["params"]),
    }
    return figures, small


def _thumbnails(images: jax.Array) -> jax.Array:
    """(N, H, H, C) in [0, 1] to (N, S, S, C), S at most 32."""
    return resized(images, min(_SIDE, images.shape[1]))


@jax.jit
def _distances(images: jax.Array, others: jax.Array) -> jax.Array:
    """(N, S, S, C) and (M, S, S, C) to root mean squared differences (N, M)."""
    centre = jnp.mean(others)  # keeps the products small, and with them their rounding
    a, b = ((x - centre).reshape(len(x), -1) for x in (images, others))
    products = jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
    squares = jnp.sum(a**2, axis=1)[:, None] + jnp.sum(b**2, axis=1)[None] - 2 * products
    return jnp.sqrt(jnp.maximum(squares, 0) / a.shape[1])


@functools.partial(jax.jit, static_argnames="themselves")
def _copied_share(images: jax.Array, others: jax.Array, *, themselves: bool = False) -> jax.Array:
    """The share of images that are one of the others, much rather than any second one of them.

    Blurred images are near to all; a copy is near to one (Yoon et al. 2023, "Diffusion probabilistic models generalize
    when they fail to memorize", ask for a third of the distance to the second; generators copy less exactly).

    Args:
      images: (N, S, S, C).
      others: (M, S, S, C).
      themselves: the others are the images, and none is compared with itself.
    """

    def closer(symmetry: jax.Array, best: jax.Array) -> jax.Array:
        turns = [functools.partial(jnp.rot90, k=k, axes=(1, 2)) for k in range(4)]
        mirrored = jnp.where(symmetry >= 4, images[:, :, ::-1], images)
        return jnp.minimum(best, _distances(jax.lax.switch(symmetry % 4, turns, mirrored), others))

    distances = jax.lax.fori_loop(0, 8, closer, jnp.full((len(images), len(others)), jnp.inf))
    if themselves:
        distances += jnp.diag(jnp.full(len(images), jnp.inf))
    nearest, second = -jax.lax.top_k(-distances, 2)[0].T
    return jnp.mean((nearest < _COPY * second) & jnp.isfinite(second))


def _to_nearest_other(distances: jax.Array) -> jax.Array:
    return jnp.min(distances + jnp.diag(jnp.full(len(distances), jnp.inf)), axis=1)


def _mean_distance(distances: jax.Array) -> jax.Array:
    number = len(distances)
    return jnp.sum(distances) / (number * (number - 1))


def _norms(params: Any) -> list[jax.Array]:
    def place(item: tuple[str, jax.Array]) -> tuple[list[int], str]:
        """Names end in the place of a layer within its block, and of that within the network."""
        return [int(number) for number in re.findall(r"\d+", item[0])], item[0]

    flat = traverse_util.flatten_dict(params, sep="/")
    return [largest_singular_value(leaf) for path, leaf in sorted(flat.items(), key=place) if path.endswith("/kernel")]
