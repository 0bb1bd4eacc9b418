"""The training step: pure functions of a state, a batch and a key.

One iteration is the published one: the discriminator sees the reals, then the fakes, and is updated once; then the
generator is updated against the updated discriminator, or skipped where `dis_steps` says so. The generator runs forward
once, for both. Penalties, augmentation and the moving average are traced only where the config turns them on.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from medgan_jax.config import Config
from medgan_jax.images import uint8_to_signed
from medgan_jax.models.batch_norm import estimate_statistics
from medgan_jax.rng import RngStream, rng_key
from medgan_jax.sharding import divided
from medgan_jax.training import losses
from medgan_jax.training.augment import augment, flips, mirror_at_random, quarter_turns
from medgan_jax.training.state import GANState, Networks, NetworkState

Metrics = dict[str, jax.Array]
METRICS = (
    "loss_dis", "loss_gen", "score_real", "score_fake_before", "score_fake_after", "score_dis", "score_gen",
    "grad_norm_dis", "grad_norm_gen",
)  # fmt: skip
_LECAM_DECAY = 0.99  # arXiv:2104.03310
_ADA_EVERY = 4  # steps; arXiv:2006.06676
_EMA_BATCHES = 32  # on which the averaged generator's batch statistics are estimated


def metric_names(config: Config) -> tuple[str, ...]:
    """METRICS, and those of penalties and adaptive augmentation where they are on."""
    checkerboard = ("checkerboard",) if config.checkerboard_weight else ()
    lecam = ("logit_real", "logit_fake") if config.lecam_weight else ()
    ada = ("sign_real", "augment_probability") if config.augment.adaptive_target else ()
    return METRICS + checkerboard + lecam + ada


def train_step_at(
    state: GANState,
    images: jax.Array,
    indices: jax.Array,
    k: jax.Array,
    labels: jax.Array | None = None,
    *,
    networks: Networks,
    config: Config,
) -> tuple[GANState, jax.Array]:
    """The iteration of batch `k` of those at hand.

    The host calls it in a loop, and does not wait for what it returns. A loop on the device would save the host's work,
    but on CPU FastGAN at 128 px would take 1.6 times as long.

    Args:
      state: the state so far; donate it.
      images: uint8; resident, (M, H, W, C), the whole data set; or streamed, (L, N, H, W, C), L batches.
      indices: int32; resident, (K, N), row k the images of batch k; or streamed, (K,), its place among the L.
      k: () int32, below K.
      labels: (K, N) int32, row k the classes of the images of batch k; None where classes do not matter.
      networks: modules and optimizers.
      config: the hyperparameters.

    Returns:
      The next state; and the metrics of `metric_names`, in that order, as one array (it is read faster than many).
    """
    classes = None if labels is None else labels[k]
    state, metrics = train_step(state, images[indices[k]], classes, networks=networks, config=config)
    return state, jnp.stack([metrics[name] for name in metric_names(config)])


def train_step(
    state: GANState, reals: jax.Array, labels: jax.Array | None = None, *, networks: Networks, config: Config
) -> tuple[GANState, Metrics]:
    """One iteration. Its randomness is a function of (config.seed, state.step).

    Args:
      state: the state so far.
      reals: (N, H, W, C) uint8 images.
      labels: (N,) int32, the class of each; None where classes do not matter. The fakes are of the same classes.
      networks: modules and optimizers.
      config: the hyperparameters.

    Returns:
      The next state and `metric_names`, the scalars of metrics.jsonl: losses, scores as mean probabilities, and the
      norm of each network's gradient. `score_fake_before` and `score_fake_after` are mean D(G(z)) before and after the
      discriminator's update; `score_dis` is (mean D(x) + mean(1 - D(G(z)))) / 2 and `score_gen` mean D(G(z)),
      as MATLAB's example plots them. `checkerboard` is that penalty, unweighted; it is not in `loss_gen`, but its
      gradient is in `grad_norm_gen`.
    """
    key = jax.random.fold_in(rng_key(config.seed, RngStream.TRAINING), state.step)
    latent_key, target_key, mirror_key = jax.random.split(key, 3)
    dis_key, gen_key = jax.random.split(jax.random.fold_in(rng_key(config.seed, RngStream.DISCRIMINATOR), state.step))
    batch_size = reals.shape[0]
    latents = divided(jax.random.normal(latent_key, (batch_size, config.latent_dim)))
    targets = losses.real_targets(target_key, batch_size, real_label=config.real_label, label_flip=config.label_flip)
    reals = uint8_to_signed(reals)
    if config.data.horizontal_flip:
        reals = mirror_at_random(reals, mirror_key)
    if config.data.any_orientation:
        flip_key, turn_key = jax.random.split(mirror_key)
        reals = quarter_turns(flips(reals, flip_key), turn_key)

    fakes, gen_vjp, gen_stats = generator_forward(state.gen, latents, labels=labels, networks=networks)
    keys = jax.random.split(jax.random.fold_in(rng_key(config.seed, RngStream.AUGMENTATION), state.step), 3)

    def shown(images: jax.Array, key: jax.Array) -> Any:
        """What the discriminator sees."""
        if config.augment.is_enabled():
            probability = state.ada["probability"] if state.ada else config.augment.probability
            images = augment(images, key, config.augment, probability)
        return networks.discriminator_inputs(images)

    # Through a frozen network fakes go once, for both updates, so their augmentation is the same.
    key_for_gen = keys[2] if networks.frozen is None else keys[1]
    fakes_for_gen, shown_vjp = jax.vjp(functools.partial(shown, key=key_for_gen), fakes)
    fakes_for_dis = shown(fakes, keys[1]) if networks.frozen is None else fakes_for_gen
    reals = shown(reals, keys[0])
    if config.checkerboard_weight:
        checkerboard, checkerboard_gradient = jax.value_and_grad(losses.checkerboard_penalty)(fakes)

    def gen_gradient(gradient: Any) -> tuple[Any]:
        """From d loss / d `fakes_for_gen` to (d loss / d params,), with that of the penalty on the fakes themselves."""
        (gradient,) = shown_vjp(gradient)
        if config.checkerboard_weight:
            gradient += config.checkerboard_weight * checkerboard_gradient
        return gen_vjp(gradient)

    bound: dict[str, Any] = {"labels": labels, "networks": networks, "config": config}
    dis, metrics = discriminator_update(
        state.dis, reals, fakes_for_dis, targets, dis_key, step=state.step, lecam=state.lecam, **bound
    )
    opponent = state.dis if config.simultaneous else dis

    def update_generator() -> tuple[NetworkState, Any, dict[str, Any], Metrics]:
        gen, dis_stats, metrics = generator_update(
            state.gen, opponent, fakes_for_gen, gen_gradient, gen_stats, gen_key, **bound
        )
        ema_params = state.ema_params
        if config.ema_decay:
            ema_params = optax.incremental_update(gen.params, ema_params, 1 - _ema_decay(state.step, config))
        # In a simultaneous step `dis_stats` are of the discriminator before its update.
        return gen, ema_params, dis.stats if config.simultaneous else dis_stats, metrics

    def skip_generator() -> tuple[NetworkState, Any, dict[str, Any], Metrics]:
        _, (_, metrics) = _generator_loss(opponent, fakes_for_gen, key=gen_key, **bound)
        metrics["grad_norm_gen"] = jnp.float32(0)
        return state.gen.replace(stats=gen_stats), state.ema_params, dis.stats, metrics

    if config.dis_steps == 1:
        gen, ema_params, dis_stats, gen_metrics = update_generator()
    else:
        is_due = (state.step + 1) % config.dis_steps == 0
        gen, ema_params, dis_stats, gen_metrics = jax.lax.cond(is_due, update_generator, skip_generator)
    metrics |= gen_metrics
    if config.checkerboard_weight:
        metrics["checkerboard"] = checkerboard
    ada = state.ada and _ada_update(state.ada, metrics["sign_real"], state.step, batch_size, config)
    if ada:
        metrics["augment_probability"] = ada["probability"]
    state = GANState(
        step=state.step + 1,
        gen=gen,
        dis=dis.replace(stats=dis_stats),
        ema_params=ema_params,
        lecam=state.lecam and _lecam_update(state.lecam, metrics),
        ada=ada,
    )
    return state, {name: metrics[name] for name in metric_names(config)}


def discriminator_update(
    dis: NetworkState,
    reals: Any,
    fakes: Any,
    real_targets: jax.Array,
    key: jax.Array,
    *,
    labels: jax.Array | None = None,
    step: jax.Array | int = 0,
    lecam: dict[str, jax.Array] | None = None,
    networks: Networks,
    config: Config,
) -> tuple[NetworkState, Metrics]:
    """One update of the discriminator.

    Args:
      dis: the discriminator.
      reals: N images as the discriminator sees them, see `Networks.discriminator_inputs`.
      fakes: likewise; treated as constants.
      real_targets: (N,) the target of each real image, see `losses.real_targets`.
      key: decides dropout, and where the gradient penalty is taken.
      labels: (N,) int32 classes of the reals, and of the fakes; None where there are none.
      step: of the training, for lazy regularization.
      lecam: moving averages of the logits, see `GANState`; None where LeCam's penalty is off.
      networks: modules and optimizers.
      config: the loss.

    Returns:
      The updated discriminator, and scalars: `loss_dis`, `score_real`, `score_fake_before`, `score_dis`, `score_gen`,
      `grad_norm_dis`; `logit_real` and `logit_fake`, mean logits; `sign_real`, the mean sign of the reals' logits.
    """
    dropout_key, penalty_key = jax.random.split(key)
    real_key, fake_key = jax.random.split(dropout_key)
    fakes = jax.lax.stop_gradient(fakes)

    def loss_fn(params: Any) -> tuple[jax.Array, Any]:
        variables = {"params": params, **dis.stats}
        real_logits, stats = _apply_training(networks.discriminator, variables, reals, labels, real_key)
        fake_logits, stats = _apply_training(
            networks.discriminator, {"params": params, **stats}, fakes, labels, fake_key
        )
        loss = losses.discriminator_loss(real_logits, fake_logits, real_targets, loss=config.loss)
        # Penalties on the gradient use running statistics: with those of the batch, the gradient of one image's logit
        # would depend on all images.
        critic: Any = functools.partial(networks.discriminator.apply, variables, labels=labels, training=False)
        if config.loss == "wgan-gp":
            loss += config.gp_weight * losses.gradient_penalty(critic, reals, fakes, penalty_key)
        if config.r1_weight:
            loss += config.r1_weight * _lazy(config.r1_every_steps, step, lambda: losses.r1_penalty(critic, reals))
        if lecam:
            means = losses.mean_over_outputs(real_logits), losses.mean_over_outputs(fake_logits)
            loss += config.lecam_weight * losses.lecam_penalty(*means, lecam["real"], lecam["fake"])
        return loss, (stats, real_logits, fake_logits)

    (loss, (stats, real_logits, fake_logits)), grads = jax.value_and_grad(loss_fn, has_aux=True)(dis.params)
    real, fake = _score(real_logits), _score(fake_logits)
    metrics = {
        "loss_dis": loss,
        "score_real": real,
        "score_fake_before": fake,
        "score_dis": (real + 1 - fake) / 2,
        "score_gen": fake,
        "grad_norm_dis": optax.tree.norm(grads),
        "logit_real": _mean(real_logits),
        "logit_fake": _mean(fake_logits),
        "sign_real": _mean(jax.tree.map(jnp.sign, real_logits)),
    }
    return _optimise(dis, grads, stats, networks.dis_optimizer), metrics


def generator_forward(
    gen: NetworkState, latents: jax.Array, *, labels: jax.Array | None = None, networks: Networks
) -> tuple[jax.Array, Callable[[jax.Array], tuple[Any]], dict[str, Any]]:
    """Runs the generator once in training mode.

    Returns:
      The fakes (N, H, W, C) in [-1, 1]; the vector-Jacobian product, a function from d loss / d fakes to
      (d loss / d params,); the generator's new statistics.
    """

    def forward(params: Any) -> tuple[jax.Array, Any]:
        return _apply_training(networks.generator, {"params": params, **gen.stats}, latents, labels)

    return jax.vjp(forward, gen.params, has_aux=True)


def generator_update(
    gen: NetworkState,
    dis: NetworkState,
    fakes: Any,
    gen_gradient: Callable[[Any], tuple[Any]],
    stats: dict[str, Any],
    key: jax.Array,
    *,
    labels: jax.Array | None = None,
    networks: Networks,
    config: Config,
) -> tuple[NetworkState, dict[str, Any], Metrics]:
    """One update of the generator against `dis`, whose parameters get no gradient and are not changed.

    Args:
      gen: the generator.
      dis: the discriminator.
      fakes: as the discriminator sees them.
      gen_gradient: from d loss / d `fakes` to (d loss / d params,).
      stats: of the generator, as `generator_forward` returned them.
      key: decides dropout.
      labels: (N,) int32 classes of the fakes; None where there are none.
      networks: modules and optimizers.
      config: the loss.

    Returns:
      The updated generator; the discriminator's statistics after this training forward (batch statistics and spectral
      vectors are updated in it too, as in PyTorch); `loss_gen`, `score_fake_after` and `grad_norm_gen`, scalars.
    """
    loss_fn = functools.partial(_generator_loss, dis, labels=labels, key=key, networks=networks, config=config)
    (_, (dis_stats, metrics)), fakes_grad = jax.value_and_grad(loss_fn, has_aux=True)(fakes)
    (grads,) = gen_gradient(fakes_grad)
    metrics["grad_norm_gen"] = optax.tree.norm(grads)
    return _optimise(gen, grads, stats, networks.gen_optimizer), dis_stats, metrics


def sampling_variables(state: GANState, *, networks: Networks, config: Config) -> dict[str, Any]:
    """The variables that images are sampled with: the moving average of the generator where there is one.

    The running statistics belong to the trained weights. Averaged weights have other activations, so their statistics
    are estimated anew from training forwards on a fixed set of latents, of all classes in turn.
    """
    if state.ema_params is None:
        return state.gen.variables
    keys = jax.random.split(rng_key(config.seed, RngStream.STATISTICS), _EMA_BATCHES)
    latents = jax.vmap(lambda key: jax.random.normal(key, (config.batch_size, config.latent_dim)))(keys)
    classes = networks.generator.num_classes
    labels = jnp.arange(len(keys) * config.batch_size).reshape(len(keys), -1) % classes if classes else None
    variables = {"params": state.ema_params, **state.gen.stats}
    return estimate_statistics(networks.generator, variables, latents, labels)


def _generator_loss(
    dis: NetworkState,
    fakes: Any,
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


def _lazy(every: int, step: jax.Array | int, penalty: Callable[[], jax.Array]) -> jax.Array:
    """Lazy regularization: `every` times the penalty at every `every`-th step, and 0 at the others; () float32."""
    if every == 1:
        return penalty()
    return jax.lax.cond(step % every == 0, lambda: every * penalty(), lambda: jnp.float32(0))


def _ema_decay(step: jax.Array, config: Config) -> jax.Array | float:
    """The decay of the moving average at `step`, lower at first so that early weights are forgotten."""
    if not config.ema_rampup:
        return config.ema_decay
    half_life = config.ema_rampup * ((step + 1) // config.dis_steps)  # in updates of the generator, as the decay is
    return jnp.minimum(config.ema_decay, 0.5 ** (1 / half_life))


def _lecam_update(lecam: dict[str, jax.Array], metrics: Metrics) -> dict[str, jax.Array]:
    """Moving averages of the mean logits."""
    return {name: _LECAM_DECAY * past + (1 - _LECAM_DECAY) * metrics[f"logit_{name}"] for name, past in lecam.items()}


def _ada_update(
    ada: dict[str, jax.Array], sign_real: jax.Array, step: jax.Array, batch_size: int, config: Config
) -> dict[str, jax.Array]:
    """Adaptive augmentation (Karras et al. 2020, arXiv:2006.06676, section 3.1).

    The probability rises while the mean sign of the reals' logits, a measure of overfitting, is above
    `augment.adaptive_target`, and falls otherwise.
    """
    sign_sum = ada["sign_sum"] + sign_real
    is_due = (step + 1) % _ADA_EVERY == 0
    change = jnp.sign(sign_sum / _ADA_EVERY - config.augment.adaptive_target)
    change *= _ADA_EVERY * batch_size / config.augment.adaptive_images
    probability = jnp.clip(ada["probability"] + change, 0, 1)
    return {
        "probability": jnp.where(is_due, probability, ada["probability"]),
        "sign_sum": jnp.where(is_due, 0, sign_sum),
    }


def _apply_training(
    module: Any,
    variables: dict[str, Any],
    inputs: Any,
    labels: jax.Array | None,
    dropout_key: jax.Array | None = None,
) -> tuple[Any, dict[str, Any]]:
    """Applies a network in training mode: its outputs and its new statistics."""
    mutable = [name for name in variables if name != "params"]
    rngs = {} if dropout_key is None else {"dropout": dropout_key}
    return module.apply(variables, inputs, labels, training=True, mutable=mutable, rngs=rngs)


def _optimise(
    network: NetworkState, grads: Any, stats: dict[str, Any], optimizer: optax.GradientTransformation
) -> NetworkState:
    updates, opt_state = optimizer.update(grads, network.opt_state, network.params)
    return NetworkState(params=optax.apply_updates(network.params, updates), stats=stats, opt_state=opt_state)


def _score(logits: losses.Logits) -> jax.Array:
    return _mean(jax.tree.map(jax.nn.sigmoid, logits))


def _mean(values: losses.Logits) -> jax.Array:
    return jnp.mean(losses.mean_over_outputs(values))
