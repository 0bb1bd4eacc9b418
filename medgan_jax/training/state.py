"""GANState: everything a training consists of, both networks in one pytree, saved and restored as one."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from medgan_jax.config import Config
from medgan_jax.models.dcgan import Discriminator, Generator
from medgan_jax.models.resnet import ResidualDiscriminator, ResidualGenerator
from medgan_jax.rng import RngStream, rng_key


@struct.dataclass
class NetworkState:
    """One network: its parameters, what it keeps beside them, and its optimizer's moments."""

    params: Any
    stats: dict[str, Any]  # the mutable collections: batch_stats, and spectral where there is spectral norm
    opt_state: optax.OptState

    @property
    def variables(self) -> dict[str, Any]:
        """What `Module.apply` takes."""
        return {"params": self.params, **self.stats}


@struct.dataclass
class GANState:
    """A training at rest. `step` counts finished iterations; all else follows from it and the seed."""

    step: jax.Array  # () int32
    gen: NetworkState
    dis: NetworkState
    ema_params: Any  # exponential moving average of gen.params; None when ema_decay is 0


@struct.dataclass
class SteeredState(GANState):
    """A training that also goes by what its discriminator said before: LeCam's penalty, adaptive augmentation.

    A class of its own, so that checkpoints without are those of `GANState`.

    Attributes:
      memory: by name, () float32: `past_real` and `past_fake`, moving averages of the logits (LeCam);
        `augment_probability`, and `sign_sum`, of the means of the signs of reals' logits since it was last adapted.
    """

    memory: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Networks:
    """The static half of a training: the modules and their optimizers."""

    generator: Generator | ResidualGenerator
    discriminator: Discriminator | ResidualDiscriminator
    gen_optimizer: optax.GradientTransformation
    dis_optimizer: optax.GradientTransformation


def build_networks(config: Config, num_classes: int = 0) -> Networks:
    """The networks and optimizers that `config` describes; Adam with a rate for each network.

    Args:
      config: the training.
      num_classes: how many classes it tells apart; 0: none.
    """
    gen = {"image_size": config.image_size, "channels": config.channels, "features": config.gen_features}
    dis = {"image_size": config.image_size, "features": config.dis_features, "dropout": config.dis_dropout}
    both = {"dtype": jnp.dtype(config.dtype), "num_classes": num_classes}
    if config.arch == "resnet":
        generator, discriminator = ResidualGenerator(**gen, **both), ResidualDiscriminator(**dis, **both)
    else:
        generator = Generator(**gen, **both, upsample=config.upsample)
        discriminator = Discriminator(
            **dis,
            **both,
            spectral_norm=config.arch == "sngan",
            batch_norm=config.loss != "wgan-gp",  # the penalty is on each image's own gradient
        )
    return Networks(
        generator=generator,
        discriminator=discriminator,
        gen_optimizer=optax.adam(config.lr_gen, config.adam_beta1, config.adam_beta2),
        dis_optimizer=optax.adam(config.lr_dis, config.adam_beta1, config.adam_beta2),
    )


def initial_state(networks: Networks, config: Config, *, seed: jax.Array | int | None = None) -> GANState:
    """The state before the first step, a function of `config.seed`, or `seed`: random kernels, zero moments."""
    seed = config.seed if seed is None else seed
    gen_key, dis_key = jax.random.split(rng_key(seed, RngStream.INITIAL_WEIGHTS))
    latents = jnp.zeros((1, config.latent_dim))
    images = jnp.zeros((1, config.image_size, config.image_size, config.channels))
    labels = jnp.zeros(1, jnp.int32) if networks.generator.num_classes else None
    gen = _network_state(networks.generator.init(gen_key, latents, labels, training=True), networks.gen_optimizer)
    dis = _network_state(networks.discriminator.init(dis_key, images, labels, training=True), networks.dis_optimizer)
    # A copy: the state is donated to each step, and one buffer cannot be donated twice.
    average = jax.tree.map(jnp.copy, gen.params) if config.ema_decay else None
    rest = {"step": jnp.int32(0), "gen": gen, "dis": dis, "ema_params": average}
    names = ["past_real", "past_fake"] if config.lecam_weight else []
    names += ["augment_probability", "sign_sum"] if config.augment.adaptive_target else []
    return SteeredState(**rest, memory={name: jnp.float32(0) for name in names}) if names else GANState(**rest)


def _network_state(variables: dict[str, Any], optimizer: optax.GradientTransformation) -> NetworkState:
    stats = dict(variables)
    params = stats.pop("params")
    return NetworkState(params=params, stats=stats, opt_state=optimizer.init(params))
