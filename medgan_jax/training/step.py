"""The training step: pure functions of a state, a batch and a key.

One iteration is the published one: the discriminator sees the reals, then the fakes, and is updated once; then the
generator is updated against the updated discriminator, or, where `dis_steps` says so, not in every iteration. The
generator runs forward once, for both.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from medgan_jax import losses
from medgan_jax.config import Config
from medgan_jax.images import uint8_to_signed
from medgan_jax.models.batch_norm import MOMENTUM
from medgan_jax.streams import Stream, stream_key
from medgan_jax.training.state import GANState, Networks, NetworkState

Metrics = dict[str, jax.Array]
METRICS = (
    "loss_dis", "loss_gen", "score_real", "score_fake_before", "score_fake_after", "score_dis", "score_gen",
    "grad_norm_dis", "grad_norm_gen",
)  # fmt: skip


def discriminator_update(
    dis: NetworkState,
    reals: jax.Array,
    fakes: jax.Array,
    real_targets: jax.Array,
    key: jax.Array,
    *,
    labels: jax.Array | None = None,
    networks: Networks,
    config: Config,
) -> tuple[NetworkState, Metrics]:
    """One update of the discriminator.

    Args:
      dis: the discriminator.
      reals: (N, H, W, C) float in [-1, 1].
      fakes: the same shape; treated as constants.
      real_targets: (N,) what to answer for each real image, see `losses.real_targets`.
      key: decides dropout, and where the gradient penalty is taken.
      labels: (N,) int32 classes of the reals, and of the fakes; None where there are none.
      networks: modules and optimizers.
      config: the loss.

    Returns:
      The updated discriminator, and `loss_dis`, `score_real`, `score_fake_before`, `score_dis`, `score_gen`,
      `grad_norm_dis`, scalars.
    """
    dropout_key, penalty_key = jax.random.split(key)
    fakes = jax.lax.stop_gradient(fakes)
    images = jnp.stack([reals, fakes], axis=1)
    both = None if labels is None else jnp.stack([labels, labels], axis=1)

    def loss_fn(params: Any) -> tuple[jax.Array, Any]:
        variables = {"params": params, **dis.stats}
        logits, stats = _apply_training(networks.discriminator, variables, images, both, dropout_key)
        real_logits, fake_logits = logits.T
        loss = losses.discriminator_loss(real_logits, fake_logits, real_targets, loss=config.loss)
        if config.loss == "wgan-gp":
            critic = functools.partial(networks.discriminator.apply, variables, labels=labels, training=False)
            loss += config.gp_weight * losses.gradient_penalty(critic, reals, fakes, penalty_key)
        return loss, (stats, real_logits, fake_logits)

    (loss, (stats, real_logits, fake_logits)), grads = jax.value_and_grad(loss_fn, has_aux=True)(dis.params)
    dis = _optimise(dis, grads, stats, networks.dis_optimizer)
    real, fake = _score(real_logits), _score(fake_logits)
    scores = {"score_real": real, "score_fake_before": fake, "score_dis": (real + 1 - fake) / 2, "score_gen": fake}
    return dis, {"loss_dis": loss, **scores, "grad_norm_dis": optax.tree.norm(grads)}


def generator_forward(
    gen: NetworkState, latents: jax.Array, *, labels: jax.Array | None = None, networks: Networks
) -> tuple[jax.Array, Callable[[jax.Array], tuple[Any]], dict[str, Any]]:
    """Generates a training batch and keeps the way back.

    Returns:
      The fakes (N, H, W, C) in [-1, 1]; a function from the loss's gradient with respect to them to a tuple of its
      gradient with respect to the generator's parameters; the generator's new statistics.
    """

    def forward(params: Any) -> tuple[jax.Array, Any]:
        return _apply_training(networks.generator, {"params": params, **gen.stats}, latents, labels)

    return jax.vjp(forward, gen.params, has_aux=True)


def generator_update(
    gen: NetworkState,
    dis: NetworkState,
    fakes: jax.Array,
    backward: Callable[[jax.Array], tuple[Any]],
    stats: dict[str, Any],
    key: jax.Array,
    *,
    labels: jax.Array | None = None,
    networks: Networks,
    config: Config,
) -> tuple[NetworkState, dict[str, Any], Metrics]:
    """One update of the generator against `dis`, whose parameters get no gradient and are not touched.

    Args:
      gen: the generator.
      dis: the discriminator to deceive.
      fakes: with `backward` and `stats`, what `generator_forward` returned.
      backward: see there.
      stats: see there.
      key: decides dropout.
      labels: (N,) int32 classes of the fakes; None where there are none.
      networks: modules and optimizers.
      config: the loss.

    Returns:
      The updated generator; the discriminator's statistics after this training forward (batch statistics and spectral
      vectors move in it too, as in PyTorch); `loss_gen`, `score_fake_after` and `grad_norm_gen`, scalars.
    """
    deceive = functools.partial(_deceive, dis, labels=labels, key=key, networks=networks, config=config)
    (_, (dis_stats, metrics)), fakes_grad = jax.value_and_grad(deceive, has_aux=True)(fakes)
    (grads,) = backward(fakes_grad)
    metrics["grad_norm_gen"] = optax.tree.norm(grads)
    return _optimise(gen, grads, stats, networks.gen_optimizer), dis_stats, metrics


def _deceive(
    dis: NetworkState,
    fakes: jax.Array,
    *,
    labels: jax.Array | None,
    key: jax.Array,
    networks: Networks,
    config: Config,
) -> tuple[jax.Array, tuple[dict[str, Any], Metrics]]:
    """The generator's loss, the discriminator's statistics after this forward, and the generator's metrics."""
    logits, dis_stats = _apply_training(networks.discriminator, dis.variables, fakes, labels, key)
    loss = losses.generator_loss(logits, loss=config.loss)
    return loss, (dis_stats, {"loss_gen": loss, "score_fake_after": _score(logits)})


def train_step(
    state: GANState,
    reals: jax.Array,
    labels: jax.Array | None = None,
    *,
    networks: Networks,
    config: Config,
    seed: jax.Array | int | None = None,
) -> tuple[GANState, Metrics]:
    """One iteration. Its randomness is a function of (seed, state.step).

    Args:
      state: the training so far.
      reals: (N, H, W, C) uint8 images.
      labels: (N,) int32, the class of each; None where classes do not matter. The fakes are of the same classes.
      networks: modules and optimizers.
      config: the hyperparameters.
      seed: in place of config.seed, () uint32; it may be traced, so that one program trains several seeds.

    Returns:
      The next state and METRICS, the scalars of metrics.jsonl: losses, scores as mean probabilities, and the norm of
      each network's gradient. `score_dis` is (mean D(x) + mean(1 - D(G(z)))) / 2 and `score_gen` mean D(G(z)), as
      MATLAB's example plots them.
    """
    seed = config.seed if seed is None else seed
    key = jax.random.fold_in(stream_key(seed, Stream.TRAINING), state.step)
    latent_key, target_key, augment_key = jax.random.split(key, 3)
    dis_key, gen_key = jax.random.split(jax.random.fold_in(stream_key(seed, Stream.DISCRIMINATOR), state.step))
    latents = jax.random.normal(latent_key, (reals.shape[0], config.latent_dim))
    targets = losses.real_targets(
        target_key, reals.shape[0], real_label=config.real_label, label_flip=config.label_flip
    )
    reals = augment(uint8_to_signed(reals), augment_key, horizontal_flip=config.data.horizontal_flip)

    bound = {"labels": labels, "networks": networks, "config": config}
    fakes, backward, gen_stats = generator_forward(state.gen, latents, labels=labels, networks=networks)
    dis, dis_metrics = discriminator_update(state.dis, reals, fakes, targets, dis_key, **bound)
    opponent = state.dis if config.simultaneous else dis

    def learn() -> tuple[NetworkState, Any, dict[str, Any], Metrics]:
        gen, dis_stats, metrics = generator_update(state.gen, opponent, fakes, backward, gen_stats, gen_key, **bound)
        average = state.gen_average
        if config.ema_decay:
            average = optax.incremental_update(gen.params, average, 1 - config.ema_decay)
        return gen, average, dis.stats if config.simultaneous else dis_stats, metrics

    def wait() -> tuple[NetworkState, Any, dict[str, Any], Metrics]:
        _, (_, metrics) = _deceive(opponent, fakes, key=gen_key, **bound)
        metrics["grad_norm_gen"] = jnp.float32(0)  # it has none in this step
        return state.gen.replace(stats=gen_stats), state.gen_average, dis.stats, metrics

    if config.dis_steps == 1:
        gen, average, dis_stats, gen_metrics = learn()
    else:
        turn = (state.step + 1) % config.dis_steps == 0
        gen, average, dis_stats, gen_metrics = jax.lax.cond(turn, learn, wait)
    state = GANState(step=state.step + 1, gen=gen, dis=dis.replace(stats=dis_stats), gen_average=average)
    return state, dis_metrics | gen_metrics


def train_steps(
    state: GANState,
    images: jax.Array,
    indices: jax.Array,
    count: jax.Array,
    labels: jax.Array | None = None,
    *,
    networks: Networks,
    config: Config,
    seed: jax.Array | int | None = None,
) -> tuple[GANState, Metrics]:
    """`count` iterations in one call, so that the host is out of the way.

    `count` is a traced value: one compiled program serves any number of steps, so where a training is interrupted,
    logged or saved never changes its arithmetic.

    Args:
      state: the training so far; donate it.
      images: uint8; (M, H, W, C), the whole data set, or (L, N, H, W, C), some batches of it.
      indices: int32; (K, N), row k the images of the k-th step from here; or (K,), element k its batch.
      count: () int32, at most K.
      labels: (K, N) int32, row k the classes of the images of the k-th step; None where classes do not matter.
      networks: modules and optimizers.
      config: the hyperparameters.
      seed: see `train_step`.

    Returns:
      The state after `count` steps, and each metric as (K,), of which the first `count` are filled.
    """

    def body(k: jax.Array, carry: tuple[GANState, Metrics]) -> tuple[GANState, Metrics]:
        state, history = carry
        classes = None if labels is None else labels[k]
        state, metrics = train_step(state, images[indices[k]], classes, networks=networks, config=config, seed=seed)
        return state, jax.tree.map(lambda h, m: h.at[k].set(m), history, metrics)

    history = {name: jnp.zeros(indices.shape[:1]) for name in METRICS}
    return jax.lax.fori_loop(0, count, body, (state, history))


def augment(images: jax.Array, key: jax.Array, *, horizontal_flip: bool) -> jax.Array:
    """Random changes that keep an image a plausible member of its data set, drawn anew for each image.

    Args:
      images: (N, H, W, C).
      key: decides.
      horizontal_flip: mirror each image with probability 1/2.

    Returns:
      (N, H, W, C).
    """
    if horizontal_flip:
        mirrored = jax.random.bernoulli(key, 0.5, (images.shape[0], 1, 1, 1))
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    return images


def generator_to_sample(
    state: GANState, *, networks: Networks, config: Config, seed: jax.Array | int | None = None
) -> dict[str, Any]:
    """The variables that pictures are drawn from: the averaged generator when there is one.

    The running statistics belong to the network that was trained. Averaged weights have activations of their own, so
    their statistics are estimated afresh from training forwards on a fixed set of latents, of all classes in turn.
    """
    if state.gen_average is None:
        return state.gen.variables
    keys = jax.random.split(stream_key(config.seed if seed is None else seed, Stream.STATISTICS), 32)

    classes = networks.generator.num_classes
    labels = jnp.arange(len(keys) * config.batch_size).reshape(len(keys), -1) % classes if classes else None

    def forward(stats: dict[str, Any], drawn: tuple[jax.Array, jax.Array | None]) -> tuple[dict[str, Any], None]:
        key, labels = drawn
        latents = jax.random.normal(key, (config.batch_size, config.latent_dim))
        return _apply_training(networks.generator, {"params": state.gen_average, **stats}, latents, labels)[1], None

    stats, _ = jax.lax.scan(forward, jax.tree.map(jnp.zeros_like, state.gen.stats), (keys, labels))
    seen = 1 - MOMENTUM ** len(keys)  # a running average that starts from zero falls short by this factor
    return {"params": state.gen_average, **jax.tree.map(lambda x: x / seen, stats)}


def _apply_training(
    module: Any,
    variables: dict[str, Any],
    inputs: jax.Array,
    labels: jax.Array | None,
    dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, Any]]:
    mutable = [name for name in variables if name != "params"]
    rngs = {} if dropout_key is None else {"dropout": dropout_key}
    return module.apply(variables, inputs, labels, training=True, mutable=mutable, rngs=rngs)


def _optimise(
    network: NetworkState, grads: Any, stats: dict[str, Any], optimizer: optax.GradientTransformation
) -> NetworkState:
    updates, opt_state = optimizer.update(grads, network.opt_state, network.params)
    return NetworkState(params=optax.apply_updates(network.params, updates), stats=stats, opt_state=opt_state)


def _score(logits: jax.Array) -> jax.Array:
    return jnp.mean(jax.nn.sigmoid(logits))
