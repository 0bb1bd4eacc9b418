"""The training step: PyTorch's numbers, gradients only where they belong, and each option against its definition."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch_oracle

from medgan_jax.images import uint8_to_signed
from medgan_jax.ops import winograd
from medgan_jax.rng import RngStream, rng_key
from medgan_jax.training import losses
from medgan_jax.training.augment import augment, flips, mirror_at_random, quarter_turns
from medgan_jax.training.state import NetworkState, build_networks, initial_state
from medgan_jax.training.step import (
    METRICS,
    discriminator_update,
    generator_forward,
    generator_update,
    metric_names,
    sampling_variables,
    train_step,
    train_step_at,
)

pytestmark = pytest.mark.slow

KEY = jax.random.key(5)  # where no option draws anything


class Training(NamedTuple):
    config: object
    networks: object
    state: object
    step: object  # train_step, compiled


@pytest.fixture(scope="module")
def training(tiny_config):
    """A function from config fields to a Training; equal fields share one, compiled once."""
    plain = tiny_config()
    start = jax.jit(functools.partial(initial_state, build_networks(plain), plain))()

    @functools.cache
    def make(**fields):
        config = tiny_config(**fields)
        networks = build_networks(config)
        shapes = jax.eval_shape(functools.partial(initial_state, networks, config))
        # One initial state serves all: what some options add to it is zero, or a copy of the generator's parameters.
        known = dict(jax.tree.leaves_with_path(start))
        state = jax.tree.map_with_path(lambda path, x: known.get(path, np.zeros(x.shape, x.dtype)), shapes)
        state = state.replace(ema_params=state.gen.params if config.ema_decay else None)
        step = jax.jit(functools.partial(train_step, networks=networks, config=config))
        return Training(config, networks, state, step)

    return make


def batch(config, seed=0):
    shape = (config.batch_size, config.image_size, config.image_size, config.channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def latents_of(config, step=0):
    """The latents that `train_step` draws."""
    key = jax.random.fold_in(rng_key(config.seed, RngStream.TRAINING), step)
    return jax.random.normal(jax.random.split(key, 3)[0], (config.batch_size, config.latent_dim))


def judge(networks, params, stats, images, dropout_key=KEY):
    """Logits of a training forward, and the new statistics."""
    rngs = {"dropout": dropout_key}
    variables = {"params": params, **stats}
    return networks.discriminator.apply(variables, images, training=True, mutable=list(stats), rngs=rngs)


def generate(networks, gen, params, latents):
    """Fakes of a training forward, and the new statistics."""
    return networks.generator.apply({"params": params, **gen.stats}, latents, training=True, mutable=list(gen.stats))


def first_moments(network):
    """Adam's: (1 - beta1) times the gradient after one step, half of it here."""
    return network.opt_state.inner_state[0].mu


def at(state, step):
    return state.replace(step=jnp.int32(step))


def same(a, b):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def assert_close(a, b, **tolerance):
    jax.tree.map(functools.partial(np.testing.assert_allclose, **tolerance), a, b)


@pytest.fixture
def lowering(request):
    """Sets how all convolutions are computed; networks as small as these would all get the same lowering."""
    winograd.LOWERING = request.param
    yield
    winograd.LOWERING = "auto"


@pytest.mark.parametrize(
    ("case", "lowering"),
    [("dcgan16", "auto"), ("sngan16", "winograd"), ("sngan32", "auto")],
    indirect=["lowering"],
)
def test_two_golden_steps_are_pytorchs(case, lowering, tiny_config):
    before, after = torch_oracle.load(case, "before"), torch_oracle.load(case, "after")
    channels = 3 if case == "sngan32" else 1
    config = tiny_config(arch=case[:5], image_size=int(case[5:]), channels=channels, lr_dis=5e-4)
    networks = build_networks(config)
    bound = {"networks": networks, "config": config}

    def network_state(name, optimizer):
        stats = jax.tree.map(jnp.asarray, torch_oracle.variables(before, name))
        params = stats.pop("params")
        return NetworkState(params=params, stats=stats, opt_state=optimizer.init(params))

    @jax.jit
    def iterate(gen, dis, reals, latents):
        fakes, vjp, stats = generator_forward(gen, latents, networks=networks)
        dis, metrics = discriminator_update(dis, reals, fakes, jnp.full(4, 0.9), KEY, **bound)
        gen, dis_stats, more = generator_update(gen, dis, fakes, vjp, stats, KEY, **bound)
        return gen, dis.replace(stats=dis_stats), metrics | more

    gen, dis = network_state("gen", networks.gen_optimizer), network_state("dis", networks.dis_optimizer)
    for i in range(2):
        theirs = torch_oracle.load(case, f"step{i}")
        gen, dis, metrics = iterate(gen, dis, torch_oracle.images(theirs["reals"]), theirs["latents"])
        theirs["score_gen"] = theirs["score_fake_before"]
        theirs["score_dis"] = (theirs["score_real"] + 1 - theirs["score_gen"]) / 2
        for name in set(METRICS) - {"grad_norm_dis", "grad_norm_gen"}:
            np.testing.assert_allclose(metrics[name], theirs[name], rtol=1e-4, atol=1e-5, err_msg=name)
        if i == 0:
            for name, network in (("gen", gen), ("dis", dis)):
                norm = 2 * optax.tree.norm(first_moments(network))
                assert metrics[f"grad_norm_{name}"] == pytest.approx(float(norm), rel=1e-5)
    for name, network in (("gen", gen), ("dis", dis)):
        theirs, start = torch_oracle.variables(after, name), torch_oracle.variables(before, name)["params"]
        updates = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), theirs["params"], start)
        assert min(jax.tree.leaves(updates)) > 1e-4  # more than the tolerance below
        assert_close(network.variables, theirs, rtol=1e-4, atol=2e-5)


def published_step(state, reals, networks, config):
    """The published iteration, written from the paper with the modules and nothing of `step`."""
    cross_entropy = optax.sigmoid_binary_cross_entropy
    ones, zeros = jnp.ones(len(reals)), jnp.zeros(len(reals))
    reals = uint8_to_signed(reals)
    forward = functools.partial(generate, networks, state.gen, latents=latents_of(config))
    fakes, vjp, gen_stats = jax.vjp(forward, state.gen.params, has_aux=True)

    def dis_loss(params):
        real, stats = judge(networks, params, state.dis.stats, reals)
        fake, stats = judge(networks, params, stats, jax.lax.stop_gradient(fakes))
        return jnp.mean(cross_entropy(real, ones)) + jnp.mean(cross_entropy(fake, zeros)), stats

    grads, dis_stats = jax.grad(dis_loss, has_aux=True)(state.dis.params)
    updates, dis_opt_state = networks.dis_optimizer.update(grads, state.dis.opt_state)
    dis_params = optax.apply_updates(state.dis.params, updates)

    def gen_loss(fakes):
        logits, stats = judge(networks, dis_params, dis_stats, fakes)
        return jnp.mean(cross_entropy(logits, ones)), stats

    fakes_grad, dis_stats = jax.grad(gen_loss, has_aux=True)(fakes)
    updates, gen_opt_state = networks.gen_optimizer.update(vjp(fakes_grad)[0], state.gen.opt_state)
    gen_params = optax.apply_updates(state.gen.params, updates)
    return (gen_params, gen_stats, gen_opt_state), (dis_params, dis_stats, dis_opt_state)


@pytest.mark.parametrize("lowering", ["native"], indirect=True)
def test_with_all_options_off_the_step_is_the_published_one_bit_for_bit(training, lowering):
    """In one program, where equal operations are one: what XLA fuses, and so how it rounds, differs between any two.

    With native convolutions, which are one operation each.
    """
    config, networks, state, _ = training()

    @jax.jit
    def both(state, reals):
        step = train_step(state, reals, networks=networks, config=config)
        return step, published_step(state, reals, networks, config)

    (after, metrics), expected = both(state, batch(config))
    assert (after.ema_params, after.lecam, after.ada) == (None, None, None)
    assert set(metrics) == set(METRICS)
    found = tuple((network.params, network.stats, network.opt_state) for network in (after.gen, after.dis))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_each_update_trains_every_layer_of_its_own_network_only(training):
    config, networks, state, step = training()

    @jax.jit
    @jax.grad
    def through_fakes(gen_params):
        fakes, _, _ = generator_forward(state.gen.replace(params=gen_params), latents_of(config), networks=networks)
        reals = uint8_to_signed(batch(config))
        bound = {"networks": networks, "config": config}
        return discriminator_update(state.dis, reals, fakes, jnp.ones(4), KEY, **bound)[1]["loss_dis"]

    assert not any(np.any(leaf) for leaf in jax.tree.leaves(through_fakes(state.gen.params)))
    after, _ = step(state, batch(config))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    for old, new in ((state.gen, after.gen), (state.dis, after.dis)):
        assert all(jax.tree.leaves(jax.tree.map(lambda a, b: np.any(a != b), old.params, new.params)))


DRAWN = {"real_label": 0.8, "label_flip": 0.5, "data_horizontal_flip": True, "ema_decay": 0.75}
DRAWN |= {"augment_color": 0.7, "dis_dropout": 0.5, "checkerboard_weight": 3.0}


@pytest.mark.parametrize(
    "fields", [DRAWN, {"simultaneous": True, "data_any_orientation": True, "checkerboard_weight": 3.0}]
)
def test_gradients_are_those_of_the_losses_written_in_one_piece(training, fields):
    """With the targets, mirroring, latents, augmentation and dropout that the config asks for."""
    config, networks, state, step = training(**fields)
    after, metrics = step(at(state, 11), batch(config))
    _, target_key, mirror_key = jax.random.split(jax.random.fold_in(rng_key(config.seed, RngStream.TRAINING), 11), 3)
    keys = jax.random.split(jax.random.fold_in(rng_key(config.seed, RngStream.AUGMENTATION), 11), 3)
    dis_key, gen_key = jax.random.split(jax.random.fold_in(rng_key(config.seed, RngStream.DISCRIMINATOR), 11))
    real_key, fake_key = jax.random.split(jax.random.split(dis_key)[0])
    targets = losses.real_targets(target_key, 4, real_label=config.real_label, label_flip=config.label_flip)
    reals = uint8_to_signed(batch(config))
    if config.data.horizontal_flip:
        reals = mirror_at_random(reals, mirror_key)
    if config.data.any_orientation:
        flip_key, turn_key = jax.random.split(mirror_key)
        reals = quarter_turns(flips(reals, flip_key), turn_key)

    def augmented(images, i):
        return augment(images, keys[i], config.augment, 1.0)

    def fakes_of(params):
        return generate(networks, state.gen, params, latents_of(config, 11))[0]

    def dis_loss(params):
        real, stats = judge(networks, params, state.dis.stats, augmented(reals, 0), real_key)
        fake, stats = judge(networks, params, stats, augmented(fakes_of(state.gen.params), 1), fake_key)
        return losses.discriminator_loss(real, fake, targets, loss="bce"), stats

    def gen_loss(params, dis_params, dis_stats):
        fakes = fakes_of(params)
        logits, stats = judge(networks, dis_params, dis_stats, augmented(fakes, 2), gen_key)
        penalty = config.checkerboard_weight * losses.checkerboard_penalty(fakes)
        return losses.generator_loss(logits, loss="bce") + penalty, stats

    (loss, dis_stats), dis_grads = jax.jit(jax.value_and_grad(dis_loss, has_aux=True))(state.dis.params)
    opponent = state.dis.params, state.dis.stats
    if not config.simultaneous:
        opponent = after.dis.params, dis_stats
    gen_grads, last_stats = jax.jit(jax.grad(gen_loss, has_aux=True))(state.gen.params, *opponent)
    for network, grads in ((after.dis, dis_grads), (after.gen, gen_grads)):
        for moment, grad in zip(*map(jax.tree.leaves, (first_moments(network), grads)), strict=True):
            assert np.linalg.norm(2 * moment - grad) <= 1e-3 * np.linalg.norm(grad) + 1e-7
    assert float(metrics["loss_dis"]) == pytest.approx(float(loss), rel=1e-5)
    assert metric_names(config) == (*METRICS, "checkerboard")
    penalty = losses.checkerboard_penalty(fakes_of(state.gen.params))
    assert float(metrics["checkerboard"]) == pytest.approx(float(penalty), rel=1e-4) != 0
    assert_close(after.dis.stats, dis_stats if config.simultaneous else last_stats, rtol=1e-3, atol=1e-6)


def test_a_step_takes_its_batch_from_those_at_hand(training, monkeypatch):
    """All images, of which each row of indices is a batch; or batches in a row."""
    config, networks, state, _ = training()
    images = np.stack([batch(config, i)[0] for i in range(6)])
    indices, labels = np.array([[0, 1, 2, 3], [5, 4, 3, 2]], np.int32), np.arange(8).reshape(2, 4)

    def step(given, reals, classes, **bound):
        assert (given, bound) == (state, {"networks": networks, "config": config})
        np.testing.assert_array_equal(reals, images[indices[1]])
        np.testing.assert_array_equal(classes, labels[1])
        return "the next state", {name: jnp.float32(i) for i, name in enumerate(reversed(METRICS))}

    monkeypatch.setattr("medgan_jax.training.step.train_step", step)
    for pixels, places in ((images, indices), (images[indices], np.arange(2, dtype=np.int32))):  # resident, streamed
        after, values = train_step_at(state, pixels, places, np.int32(1), labels, networks=networks, config=config)
        assert after == "the next state"
        np.testing.assert_array_equal(values, np.arange(len(METRICS))[::-1])


def test_randomness_follows_seed_and_step(training):
    config, _, state, step = training(**DRAWN)

    def loss_at(number):
        return float(step(at(state, number), batch(config))[1]["loss_gen"])

    assert loss_at(3) == loss_at(3) != loss_at(4)
    keys = {jax.random.key_data(rng_key(seed, stream)).tobytes() for seed in (0, 1) for stream in RngStream}
    assert len(keys) == 2 * len(RngStream)


RAMPED_UP = {"dis_steps": 3, "ema_decay": 0.9, "ema_rampup": 0.05}


def test_the_generator_is_updated_once_in_dis_steps(training):
    config, _, state, step = training(**RAMPED_UP)
    start, losses_gen = at(state, 57), []
    states = [start]
    for i in range(4):
        after, metrics = step(states[-1], batch(config, i))
        states.append(after)
        losses_gen.append(float(metrics["loss_gen"]))
    for before, after, is_updated in zip(states, states[1:], (False, False, True, False), strict=False):
        for part in (lambda s: s.gen.params, lambda s: s.gen.opt_state, lambda s: s.ema_params):
            assert same(part(before), part(after)) is not is_updated
        for part in (lambda s: s.dis.params, lambda s: s.dis.stats, lambda s: s.gen.stats):
            assert not same(part(before), part(after))
    # Where the generator is skipped, its loss is that of the step in which it is not.
    every = training().step(start.replace(ema_params=None), batch(config))[1]
    assert float(every["loss_gen"]) == pytest.approx(losses_gen[0], rel=1e-5)


def written_out(training, reals, fakes):
    """A discriminator update's parts: the function (lecam, step) -> (discriminator, metrics), logits, and critic."""
    config, networks, state, _ = training
    critic = functools.partial(networks.discriminator.apply, state.dis.variables, training=False)

    @jax.jit
    def update(lecam=None, step=0):
        bound = {"lecam": lecam, "step": step, "networks": networks, "config": config}
        return discriminator_update(state.dis, reals, fakes, jnp.ones(4), KEY, **bound)

    @jax.jit
    def logits():
        real, stats = judge(networks, state.dis.params, state.dis.stats, reals)
        return real, *judge(networks, state.dis.params, stats, fakes)

    return update, *logits(), critic


@pytest.fixture(scope="module")
def pair():
    """Reals and fakes."""
    return jax.random.uniform(jax.random.key(1), (2, 4, 16, 16, 3), minval=-1)


def test_wgan_gp_adds_the_weighted_gradient_penalty(training, pair):
    """With spectral norm, whose vectors the penalty uses and does not change."""
    update, real, fake, stats, critic = written_out(training(loss="wgan-gp", gp_weight=3.0), *pair)
    dis, metrics = update()
    penalty = float(jax.jit(lambda: losses.gradient_penalty(critic, *pair, jax.random.split(KEY)[1]))())
    assert penalty > 0.01
    added = float(metrics["loss_dis"] - (jnp.mean(fake) - jnp.mean(real)))
    assert added == pytest.approx(3 * penalty, rel=1e-4)
    assert_close(dis.stats, stats, rtol=1e-5, atol=1e-7)


def test_r1_is_added_every_so_many_steps_and_that_much_greater(training, pair):
    update, real, fake, _, critic = written_out(training(r1_weight=10.0, r1_every_steps=4), *pair)
    cross_entropy = losses.discriminator_loss(real, fake, jnp.ones(4), loss="bce")
    penalty = float(jax.jit(lambda: losses.r1_penalty(critic, pair[0]))())
    assert penalty > 1e-3
    added = [float(update(step=step)[1]["loss_dis"] - cross_entropy) for step in (0, 1, 4)]
    assert added == pytest.approx([40 * penalty, 0, 40 * penalty], rel=1e-3, abs=1e-6)


def test_lecam_adds_distances_to_the_averages_of_the_other_logits(training, pair):
    """Besides R1's penalty, at every step."""
    update, real, fake, _, critic = written_out(training(lecam_weight=0.5, r1_weight=10.0, r1_every_steps=1), *pair)
    metrics = update({"real": jnp.float32(2), "fake": jnp.float32(-3)}, step=1)[1]
    real, fake = np.float64(real), np.float64(fake)
    cross_entropy = np.mean(np.logaddexp(0, -real)) + np.mean(np.logaddexp(0, fake))
    lecam = np.mean((real + 3) ** 2) + np.mean((fake - 2) ** 2)
    penalty = float(jax.jit(lambda: losses.r1_penalty(critic, pair[0]))())
    assert float(metrics["loss_dis"]) == pytest.approx(cross_entropy + lecam / 2 + 10 * penalty, rel=1e-5)
    found = [float(metrics[name]) for name in ("logit_real", "logit_fake", "sign_real")]
    assert found == pytest.approx([real.mean(), fake.mean(), np.sign(real).mean()], abs=1e-5)


AVERAGED = {"lecam_weight": 0.5, "augment_color": 1.0, "augment_adaptive_target": 0.6, "augment_adaptive_images": 160}


def test_lecam_averages_follow_the_logits(training):
    config, _, state, step = training(**AVERAGED)
    assert metric_names(config) == (*METRICS, "logit_real", "logit_fake", "sign_real", "augment_probability")
    past = {"real": jnp.float32(2), "fake": jnp.float32(-3)}
    after, metrics = step(state.replace(lecam=past), batch(config))
    for kind, value in past.items():
        average = 0.99 * float(value) + 0.01 * float(metrics[f"logit_{kind}"])
        assert float(after.lecam[kind]) == pytest.approx(average, rel=1e-5)
    assert float(metrics["loss_dis"] - step(state, batch(config))[1]["loss_dis"]) > 1  # it goes by them


@pytest.mark.parametrize(
    ("step", "probability", "sign_sum", "expected"),
    [
        (3, 0.5, 3.9, 0.6),  # four batches of four, of 160 images
        (3, 0.5, -3.9, 0.4),
        (3, 0.95, 3.9, 1.0),
        (3, 0.05, -3.9, 0.0),
        (2, 0.5, 3.9, 0.5),  # not due
    ],
)
def test_adaptive_probability_follows_the_signs_of_the_reals_logits(training, step, probability, sign_sum, expected):
    config, _, state, run = training(**AVERAGED)
    ada = {"probability": jnp.float32(probability), "sign_sum": jnp.float32(sign_sum)}
    after, metrics = run(at(state, step).replace(ada=ada), batch(config))
    assert float(after.ada["probability"]) == float(metrics["augment_probability"]) == pytest.approx(expected)
    summed = 0 if step == 3 else sign_sum + float(metrics["sign_real"])
    assert float(after.ada["sign_sum"]) == pytest.approx(summed)


def test_adaptive_probability_decides_whether_images_are_augmented(training):
    config, _, state, step = training(**AVERAGED)
    assert float(state.ada["probability"]) == 0
    always = state.replace(ada=state.ada | {"probability": jnp.float32(1)})
    found = [training().step(training().state, batch(config)), step(state, batch(config)), step(always, batch(config))]
    plain, never, always = (np.array([metrics["score_real"], metrics["score_fake_before"]]) for _, metrics in found)
    np.testing.assert_allclose(never, plain, rtol=1e-5)
    assert np.abs(always - plain).min() > 1e-4


@pytest.mark.parametrize(
    ("fields", "step", "decay"),
    [(DRAWN, 0, 0.75), (RAMPED_UP, 2, 0.5**20), (RAMPED_UP, 59, 0.5), (RAMPED_UP, 30_002, 0.9)],
)
def test_the_average_follows_the_generator(training, fields, step, decay):
    """While it ramps up its half-life is 5 % of the generator's updates so far: 1, 20, 10,001."""
    config, _, state, run = training(**fields)
    after, _ = run(at(state, step), batch(config))
    expected = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.gen.params, after.gen.params)
    assert_close(after.ema_params, expected, rtol=1e-5, atol=1e-7)


def test_the_averaged_generator_gets_batch_statistics_of_its_own(training):
    """Those of many of its images, from which the trained generator's differ."""
    config, networks, state, _ = training(**DRAWN)
    state = state.replace(ema_params=jax.tree.map(lambda x: 2 * x, state.gen.params))
    variables = jax.jit(functools.partial(sampling_variables, networks=networks, config=config))(state)
    assert same(variables["params"], state.ema_params)
    zero = state.gen.replace(stats=jax.tree.map(jnp.zeros_like, state.gen.stats))
    latents = jax.random.normal(jax.random.key(9), (2048, config.latent_dim))
    once = jax.jit(lambda: generate(networks, zero, state.ema_params, latents)[1]["batch_stats"])()
    for layer in ("norm_0", "norm_1"):
        expected = 10 * once[layer]["var"]  # the momentum is 0.9
        np.testing.assert_allclose(variables["batch_stats"][layer]["var"], expected, rtol=0.3)
        assert np.abs(np.log(state.gen.stats["batch_stats"][layer]["var"] / expected)).min() > 0.5
    plain = training()
    sampled = sampling_variables(plain.state, networks=plain.networks, config=plain.config)
    assert same(sampled, plain.state.gen.variables)


def test_classes_are_learned(tiny_config):
    """The discriminator finds out that one class is black and the other white."""
    config = tiny_config(loss="hinge", lr_dis=2e-3, lr_gen=1e-6)
    networks = build_networks(config, 2)
    state = jax.jit(functools.partial(initial_state, networks, config))()
    step = jax.jit(functools.partial(train_step, networks=networks, config=config))
    labels = np.array([0, 1, 0, 1], np.int32)
    reals = np.zeros_like(batch(config)) + np.uint8(255) * labels[:, None, None, None].astype(np.uint8)
    images, history = uint8_to_signed(reals), []
    for _ in range(25):
        state, metrics = step(state, reals, labels)
        history.append(float(metrics["loss_dis"]))
        assert all(np.isfinite(value) for value in metrics.values())
    assert np.mean(history[-5:]) < np.mean(history[:5]) - 0.1
    logit = jax.jit(lambda y: networks.discriminator.apply(state.dis.variables, images, y, training=False))
    assert np.mean(logit(labels) - logit(1 - labels)) > 0


def test_gradients_in_bfloat16_are_those_in_float32_as_far_as_its_8_bits_reach(training):
    """Of the discriminator, which is shown the same fakes."""
    config, networks, state, step = training()
    exact = first_moments(step(state, batch(config))[0].dis)
    fakes, _ = jax.jit(lambda latents: generate(networks, state.gen, state.gen.params, latents))(latents_of(config))
    update, *_ = written_out(training(dtype="bfloat16"), uint8_to_signed(batch(config)), fakes)
    rough = first_moments(update()[0])
    distances = jax.tree.map(lambda a, b: float(np.linalg.norm(a - b) / np.linalg.norm(b)), rough, exact)
    assert 0 < max(jax.tree.leaves(distances)) < 0.1
    # A layer divided by its singular value does not depend on its kernel's length: no gradient along the kernel.
    for name in ("conv_0", "conv_1", "conv_2"):
        kernel, grad = (np.ravel(tree[name]["kernel"]) for tree in (state.dis.params, rough))
        assert abs(float(kernel @ grad / np.linalg.norm(kernel) / np.linalg.norm(grad))) < 2e-3
