"""The training step: pure functions of a state, a batch and a key.

One iteration is the published one: the discriminator sees the reals, then the fakes, and is updated once; then the
generator is updated against the updated discriminator, or, where `dis_steps` says so, not in every iteration. The
generator runs forward once, for both. What helps with small data sets is added to it where the config asks for it, and
is not even traced elsewhere.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from medgan_jax.config import Config
from medgan_jax.images import uint8_to_signed
from medgan_jax.models.batch_norm import MOMENTUM
from medgan_jax.rng import RngStream, rng_key
from medgan_jax.training import losses
from medgan_jax.training.augment import augment, mirror_at_random, translation
from medgan_jax.training.state import GANState, Networks, NetworkState, SteeredState

Metrics = dict[str, jax.Array]
METRICS = (
    "loss_dis", "loss_gen", "score_real", "score_fake_before", "score_fake_after", "score_dis", "score_gen",
    "grad_norm_dis", "grad_norm_gen",
)  # fmt: skip
_LECAM_DECAY = 0.99  # arXiv:2104.03310
_CONSISTENCY_SHIFT = 1 / 16  # of the side: 4 pixels of 64, as in arXiv:2002.04724
_ADAPTED_EVERY = 4  # steps; arXiv:2006.06676


def metric_names(config: Config) -> tuple[str, ...]:
    """METRICS, and what a training goes by that is steered by its own logits."""
    lecam = ("logit_real", "logit_fake") if config.lecam_weight else ()
    adaptive = ("sign_real", "augment_probability") if config.augment.adaptive_target else ()
    return METRICS + lecam + adaptive


def discriminator_update(
    dis: NetworkState,
    reals: jax.Array,
    fakes: jax.Array,
    real_targets: jax.Array,
    key: jax.Array,
    *,
    labels: jax.Array | None = None,
    step: jax.Array | int = 0,
    memory: dict[str, jax.Array] | None = None,
    networks: Networks,
    config: Config,
) -> tuple[NetworkState, Metrics]:
    """One update of the discriminator.

    Args:
      dis: the discriminator.
      reals: (N, H, W, C) float in [-1, 1].
      fakes: the same shape; treated as constants.
      real_targets: (N,) what to answer for each real image, see `losses.real_targets`.
      key: decides dropout, where the gradient penalty is taken, and what a logit is to be consistent under.
      labels: (N,) int32 classes of the reals, and of the fakes; None where there are none.
      step: of the training; R1 may not be taken at each.
      memory: of a `SteeredState`.
      networks: modules and optimizers.
      config: the loss.

    Returns:
      The updated discriminator, and `loss_dis`, `score_real`, `score_fake_before`, `score_dis`, `score_gen`,
      `grad_norm_dis`, scalars; with a memory also `logit_real`, `logit_fake`, mean logits, and `sign_real`, the mean of
      the signs of the reals' logits.
    """
    dropout_key, penalty_key = jax.random.split(key)
    fakes = jax.lax.stop_gradient(fakes)
    kinds = [reals, fakes]
    if config.consistency_weight:
        moving_key = jax.random.split(key, 3)[2]  # the one after those two
        kinds += [_moved(images, jax.random.fold_in(moving_key, i)) for i, images in enumerate(kinds)]
    images = jnp.stack(kinds, axis=1)
    classes = None if labels is None else jnp.stack([labels] * len(kinds), axis=1)

    def loss_fn(params: Any) -> tuple[jax.Array, Any]:
        variables = {"params": params, **dis.stats}
        logits, stats = _apply_training(networks.discriminator, variables, images, classes, dropout_key)
        real_logits, fake_logits = logits[:, 0], logits[:, 1]
        loss = losses.discriminator_loss(real_logits, fake_logits, real_targets, loss=config.loss)
        # By running statistics: those of the batch would make a logit's slope at one image the work of all.
        critic = functools.partial(networks.discriminator.apply, variables, labels=labels, training=False)
        if config.loss == "wgan-gp":
            loss += config.gp_weight * losses.gradient_penalty(critic, reals, fakes, penalty_key)
        if config.r1_weight:
            loss += _now_and_then(config.r1_every_steps, step, lambda: losses.r1_penalty(critic, reals)) * (
                config.r1_weight
            )
        if config.lecam_weight:
            past = memory["past_real"], memory["past_fake"]
            loss += config.lecam_weight * losses.lecam_penalty(real_logits, fake_logits, *past)
        if config.consistency_weight:
            loss += config.consistency_weight * losses.consistency_penalty(logits[:, :2], logits[:, 2:])
        return loss, (stats, real_logits, fake_logits)

    (loss, (stats, real_logits, fake_logits)), grads = jax.value_and_grad(loss_fn, has_aux=True)(dis.params)
    dis = _optimise(dis, grads, stats, networks.dis_optimizer)
    real, fake = _score(real_logits), _score(fake_logits)
    scores = {"score_real": real, "score_fake_before": fake, "score_dis": (real + 1 - fake) / 2, "score_gen": fake}
    metrics = {"loss_dis": loss, **scores, "grad_norm_dis": optax.tree.norm(grads)}
    if memory:
        means = {"logit_real": jnp.mean(real_logits), "logit_fake": jnp.mean(fake_logits)}
        metrics |= means | {"sign_real": jnp.mean(jnp.sign(real_logits))}
    return dis, metrics


def _now_and_then(every: int, step: jax.Array | int, term: Callable[[], jax.Array]) -> jax.Array:
    """A term of a loss, () float32; or at every so many steps alone, and as much greater, which costs less."""
    if every == 1:
        return term()
    return jax.lax.cond(step % every == 0, lambda: every * term(), lambda: jnp.float32(0))


def _moved(images: jax.Array, key: jax.Array) -> jax.Array:
    """Mirrors left-right and shifts each image a little; most data sets have an up, which is to stay visible."""
    flip_key, shift_key = jax.random.split(key)
    return translation(mirror_at_random(images, flip_key), shift_key, _CONSISTENCY_SHIFT)


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
      The next state and `metric_names`, the scalars of metrics.jsonl: losses, scores as mean probabilities, and the
      norm of each network's gradient. `score_dis` is (mean D(x) + mean(1 - D(G(z)))) / 2 and `score_gen` mean D(G(z)),
      as MATLAB's example plots them.
    """
    seed = config.seed if seed is None else seed
    key = jax.random.fold_in(rng_key(seed, RngStream.TRAINING), state.step)
    latent_key, target_key, mirror_key = jax.random.split(key, 3)
    dis_key, gen_key = jax.random.split(jax.random.fold_in(rng_key(seed, RngStream.DISCRIMINATOR), state.step))
    latents = jax.random.normal(latent_key, (reals.shape[0], config.latent_dim))
    targets = losses.real_targets(
        target_key, reals.shape[0], real_label=config.real_label, label_flip=config.label_flip
    )
    reals = uint8_to_signed(reals)
    if config.data.horizontal_flip:
        reals = mirror_at_random(reals, mirror_key)

    bound = {"labels": labels, "networks": networks, "config": config}
    memory = state.memory if isinstance(state, SteeredState) else {}
    fakes, backward, gen_stats = generator_forward(state.gen, latents, labels=labels, networks=networks)
    seen = fakes
    if config.augment.changes():
        keys = jax.random.split(jax.random.fold_in(rng_key(seed, RngStream.AUGMENTATION), state.step), 3)
        probability = memory.get("augment_probability", config.augment.probability)
        change = functools.partial(augment, settings=config.augment, probability=probability)
        reals, seen = change(reals, keys[0]), change(fakes, keys[1])
        fakes, backward = _changed(fakes, backward, functools.partial(change, key=keys[2]))
    dis, dis_metrics = discriminator_update(
        state.dis, reals, seen, targets, dis_key, step=state.step, memory=memory, **bound
    )
    opponent = state.dis if config.simultaneous else dis

    def learn() -> tuple[NetworkState, Any, dict[str, Any], Metrics]:
        gen, dis_stats, metrics = generator_update(state.gen, opponent, fakes, backward, gen_stats, gen_key, **bound)
        average = state.ema_params
        if config.ema_decay:
            average = optax.incremental_update(gen.params, average, 1 - _average_decay(state.step, config))
        return gen, average, dis.stats if config.simultaneous else dis_stats, metrics

    def wait() -> tuple[NetworkState, Any, dict[str, Any], Metrics]:
        _, (_, metrics) = _deceive(opponent, fakes, key=gen_key, **bound)
        metrics["grad_norm_gen"] = jnp.float32(0)  # it has none in this step
        return state.gen.replace(stats=gen_stats), state.ema_params, dis.stats, metrics

    if config.dis_steps == 1:
        gen, average, dis_stats, gen_metrics = learn()
    else:
        turn = (state.step + 1) % config.dis_steps == 0
        gen, average, dis_stats, gen_metrics = jax.lax.cond(turn, learn, wait)
    metrics = dis_metrics | gen_metrics
    if memory:
        memory = _remember(memory, metrics, state.step, reals.shape[0], config)
        metrics |= {"augment_probability": memory.get("augment_probability")}
        state = state.replace(memory=memory)
    state = state.replace(step=state.step + 1, gen=gen, dis=dis.replace(stats=dis_stats), ema_params=average)
    return state, {name: metrics[name] for name in metric_names(config)}


def _changed(
    images: jax.Array, backward: Callable[[jax.Array], tuple[Any]], change: Callable[[jax.Array], jax.Array]
) -> tuple[jax.Array, Callable[[jax.Array], tuple[Any]]]:
    """Changed images, and the way back from their gradient; `backward` is that of the images as they were."""
    changed, unchange = jax.vjp(change, images)
    return changed, lambda gradient: backward(*unchange(gradient))


def _average_decay(step: jax.Array, config: Config) -> jax.Array | float:
    """Of the generator's average: at first it forgets faster, or it would be of weights that had learnt nothing."""
    if not config.ema_rampup:
        return config.ema_decay
    half_life = config.ema_rampup * ((step + 1) // config.dis_steps)  # in updates of the generator, as the decay is
    return jnp.minimum(config.ema_decay, 0.5 ** (1 / half_life))


def _remember(
    memory: dict[str, jax.Array], metrics: Metrics, step: jax.Array, batch_size: int, config: Config
) -> dict[str, jax.Array]:
    """What a steered training goes by in the next step.

    The probability of augmentation rises while more of the reals' logits are positive than `adaptive_target` has it, a
    sign of overfitting, and falls otherwise (Karras et al. 2020, arXiv:2006.06676, section 3.1).
    """
    memory = dict(memory)
    if config.lecam_weight:
        for name in ("real", "fake"):
            past = memory[f"past_{name}"]
            memory[f"past_{name}"] = _LECAM_DECAY * past + (1 - _LECAM_DECAY) * metrics[f"logit_{name}"]
    if config.augment.adaptive_target:
        signs = memory["sign_sum"] + metrics["sign_real"]
        due = (step + 1) % _ADAPTED_EVERY == 0
        change = jnp.sign(signs / _ADAPTED_EVERY - config.augment.adaptive_target)
        change *= _ADAPTED_EVERY * batch_size / config.augment.adaptive_images
        probability = memory["augment_probability"]
        memory["augment_probability"] = jnp.where(due, jnp.clip(probability + change, 0, 1), probability)
        memory["sign_sum"] = jnp.where(due, 0, signs)
    return memory


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

    history = {name: jnp.zeros(indices.shape[:1]) for name in metric_names(config)}
    return jax.lax.fori_loop(0, count, body, (state, history))


def generator_to_sample(
    state: GANState, *, networks: Networks, config: Config, seed: jax.Array | int | None = None
) -> dict[str, Any]:
    """The variables that pictures are drawn from: the averaged generator when there is one.

    The running statistics belong to the network that was trained. Averaged weights have activations of their own, so
    their statistics are estimated afresh from training forwards on a fixed set of latents, of all classes in turn.
    """
    if state.ema_params is None:
        return state.gen.variables
    keys = jax.random.split(rng_key(config.seed if seed is None else seed, RngStream.STATISTICS), 32)

    classes = networks.generator.num_classes
    labels = jnp.arange(len(keys) * config.batch_size).reshape(len(keys), -1) % classes if classes else None

    def forward(stats: dict[str, Any], drawn: tuple[jax.Array, jax.Array | None]) -> tuple[dict[str, Any], None]:
        key, labels = drawn
        latents = jax.random.normal(key, (config.batch_size, config.latent_dim))
        return _apply_training(networks.generator, {"params": state.ema_params, **stats}, latents, labels)[1], None

    stats, _ = jax.lax.scan(forward, jax.tree.map(jnp.zeros_like, state.gen.stats), (keys, labels))
    seen = 1 - MOMENTUM ** len(keys)  # a running average that starts from zero falls short by this factor
    return {"params": state.ema_params, **jax.tree.map(lambda x: x / seen, stats)}


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
