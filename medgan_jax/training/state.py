"""GANState: both networks, their optimizers and statistics in one pytree, saved and restored as one."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Sharding

from medgan_jax.checkpoint import AnyDiscriminator, AnyGenerator
from medgan_jax.config import Config
from medgan_jax.models.dcgan import Discriminator, Generator
from medgan_jax.models.fastgan import FastGANGenerator
from medgan_jax.models.projected import ProjectedDiscriminator, load_frozen, project_images
from medgan_jax.models.resnet import ResidualDiscriminator, ResidualGenerator
from medgan_jax.rng import RngStream, rng_key


class NetworkState(struct.PyTreeNode):
    """One network: its parameters, its other variables, and its optimizer's state."""

    params: Any
    stats: dict[str, Any]  # the mutable collections: batch_stats, and spectral where there is spectral norm
    opt_state: optax.OptState

    @property
    def variables(self) -> dict[str, Any]:
        """What `Module.apply` takes."""
        return {"params": self.params, **self.stats}


class GANState(struct.PyTreeNode):
    """All that a run is resumed from. What else it needs follows from the config.

    Attributes:
      step: () int32, finished iterations.
      gen: the generator.
      dis: the discriminator.
      ema_params: exponential moving average of gen.params; None where `ema_decay` is 0.
      lecam: `real` and `fake`, () float32, moving averages of the mean logits; None where `lecam_weight` is 0.
      ada: adaptive augmentation: `probability`, and `sign_sum`, of the mean signs of the reals' logits since the last
        adaptation, () float32; None where it is off.
    """

    step: jax.Array
    gen: NetworkState
    dis: NetworkState
    ema_params: Any = None
    lecam: dict[str, jax.Array] | None = None
    ada: dict[str, jax.Array] | None = None


class Networks(struct.PyTreeNode):
    """What does not change: the modules, their optimizers, and the weights of a frozen network where there is one."""

    generator: AnyGenerator = struct.field(pytree_node=False)
    discriminator: AnyDiscriminator = struct.field(pytree_node=False)
    gen_optimizer: optax.GradientTransformation = struct.field(pytree_node=False)
    dis_optimizer: optax.GradientTransformation = struct.field(pytree_node=False)
    frozen: dict[str, Any] | None = None  # through which a projected discriminator sees images

    def discriminator_inputs(self, images: jax.Array) -> Any:
        """The discriminator's input: images (N, H, W, C) in [-1, 1] themselves, or `project_images` maps of them."""
        return images if self.frozen is None else project_images(self.frozen, images)


@functools.lru_cache(maxsize=32)
def build_networks(config: Config, num_classes: int = 0) -> Networks:
    """The networks and optimizers that `config` describes; Adam with a rate for each network.

    The same object for equal arguments, so that what is compiled for it can be found again.

    Args:
      config: the training.
      num_classes: how many classes the networks learn; 0: unconditional.
    """
    both: dict[str, Any] = {
        "image_size": config.image_size,
        "dtype": jnp.dtype(config.dtype),
        "num_classes": num_classes,
    }
    gen: dict[str, Any] = {**both, "channels": config.channels, "features": config.gen_features}
    dis: dict[str, Any] = {**both, "features": config.dis_features, "dropout": config.dis_dropout}
    generator: AnyGenerator
    discriminator: AnyDiscriminator
    match config.arch:
        case "resnet":
            generator = ResidualGenerator(**gen)
        case "fastgan":
            generator = FastGANGenerator(**gen)
        case _:
            generator = Generator(**gen, upsample=config.upsample)
    if config.dis == "projected":
        discriminator = ProjectedDiscriminator(**both)
    elif config.arch == "resnet":
        discriminator = ResidualDiscriminator(**dis)
    else:
        discriminator = Discriminator(
            **dis,
            spectral_norm=config.arch != "dcgan",
            batch_norm=config.loss != "wgan-gp",  # the penalty is on each image's own gradient
        )
    return Networks(
        frozen=load_frozen() if config.dis == "projected" else None,
        generator=generator,
        discriminator=discriminator,
        gen_optimizer=_adam(config.lr_gen, config),
        dis_optimizer=_adam(config.lr_dis, config),
    )


def _adam(learning_rate: float, config: Config) -> optax.GradientTransformation:
    """Adam whose learning rate is part of its state, so that a rollback can lower it without compiling again."""
    static = ("b1", "b2", "eps", "eps_root", "mu_dtype", "nesterov")
    adam = optax.inject_hyperparams(optax.adam, static_args=static)
    return adam(learning_rate, b1=config.adam_beta1, b2=config.adam_beta2)


def with_learning_rates(state: GANState, rates: dict[str, float], sharding: Sharding) -> GANState:
    """The state with other learning rates, `lr_gen` and `lr_dis`."""
    for name in ("gen", "dis"):
        network: NetworkState = getattr(state, name)
        rate = jax.device_put(np.float32(rates[f"lr_{name}"]), sharding)
        hyperparams = network.opt_state.hyperparams | {"learning_rate": rate}
        state = state.replace(**{name: network.replace(opt_state=network.opt_state._replace(hyperparams=hyperparams))})
    return state


def initial_state(networks: Networks, config: Config) -> GANState:
    """The state before the first step, a function of `config.seed`: random kernels, zero moments."""
    gen_key, dis_key = jax.random.split(rng_key(config.seed, RngStream.INITIAL_WEIGHTS))
    latents = jnp.zeros((1, config.latent_dim))
    images = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, config.channels), jnp.float32)
    inputs = jax.eval_shape(networks.discriminator_inputs, images)
    inputs = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), inputs)
    labels = jnp.zeros(1, jnp.int32) if networks.generator.num_classes else None
    gen = _network_state(networks.generator.init(gen_key, latents, labels, training=True), networks.gen_optimizer)
    dis = _network_state(networks.discriminator.init(dis_key, inputs, labels, training=True), networks.dis_optimizer)
    zero = jnp.float32(0)
    return GANState(
        step=jnp.int32(0),
        gen=gen,
        dis=dis,
        # Copies: the state is donated to each step, and one buffer cannot be donated twice.
        ema_params=jax.tree.map(jnp.copy, gen.params) if config.ema_decay else None,
        lecam={"real": zero, "fake": jnp.copy(zero)} if config.lecam_weight else None,
        ada={"probability": jnp.copy(zero), "sign_sum": jnp.copy(zero)} if config.augment.adaptive_target else None,
    )


def _network_state(variables: Any, optimizer: optax.GradientTransformation) -> NetworkState:
    stats = dict(variables)
    params = stats.pop("params")
    return NetworkState(params=params, stats=stats, opt_state=optimizer.init(params))
