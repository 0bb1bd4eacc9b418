"""What the step does for small data sets: each technique against its definition, and nothing at all where it is off."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medgan_jax.images import uint8_to_signed
from medgan_jax.rng import RngStream, rng_key
from medgan_jax.training import losses
from medgan_jax.training import step as step_module
from medgan_jax.training.augment import augment, mirror_at_random, translation
from medgan_jax.training.state import GANState, SteeredState, build_networks, initial_state
from medgan_jax.training.step import metric_names


def batch(config, seed=0):
    shape = (config.batch_size, config.image_size, config.image_size, config.channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def made():
    return {}


@pytest.fixture
def training(tiny_config, made):
    """A function from fields to a config, its networks, its initial state and its jitted step, compiled once."""

    def training(**fields):
        name = str(sorted(fields.items()))
        if name not in made:
            made[name] = make(**fields)
        return made[name]

    def make(**fields):
        config = tiny_config(**fields)
        networks = build_networks(config)
        state = jax.jit(lambda: initial_state(networks, config))()
        return (
            config,
            networks,
            state,
            jax.jit(functools.partial(step_module.train_step, networks=networks, config=config)),
        )

    return training


def published_step(state, reals, networks, config):
    """The published iteration, written down from the paper with the modules and nothing of `step`."""
    key = jax.random.fold_in(rng_key(config.seed, RngStream.TRAINING), state.step)
    latents = jax.random.normal(jax.random.split(key, 3)[0], (len(reals), config.latent_dim))
    reals = uint8_to_signed(reals)
    cross_entropy = optax.sigmoid_binary_cross_entropy

    def judge(params, stats, images):
        return networks.discriminator.apply({"params": params, **stats}, images, training=True, mutable=list(stats))

    def generate(params):
        return networks.generator.apply(
            {"params": params, **state.gen.stats}, latents, training=True, mutable=list(state.gen.stats)
        )

    fakes, backward, gen_stats = jax.vjp(generate, state.gen.params, has_aux=True)

    def dis_loss(params):
        logits, stats = judge(params, state.dis.stats, jnp.stack([reals, jax.lax.stop_gradient(fakes)], axis=1))
        real, fake = logits[:, 0], logits[:, 1]
        loss = jnp.mean(cross_entropy(real, jnp.ones(len(reals)))) + jnp.mean(
            cross_entropy(fake, jnp.zeros(len(reals)))
        )
        return loss, stats

    grads, dis_stats = jax.grad(dis_loss, has_aux=True)(state.dis.params)
    updates, dis_moments = networks.dis_optimizer.update(grads, state.dis.opt_state)
    dis_params = optax.apply_updates(state.dis.params, updates)

    def gen_loss(fakes):
        logits, stats = judge(dis_params, dis_stats, fakes)
        return jnp.mean(cross_entropy(logits, jnp.ones(len(reals)))), stats

    fakes_grad, dis_stats = jax.grad(gen_loss, has_aux=True)(fakes)
    updates, gen_moments = networks.gen_optimizer.update(backward(fakes_grad)[0], state.gen.opt_state)
    gen_params = optax.apply_updates(state.gen.params, updates)
    return (gen_params, gen_stats, gen_moments), (dis_params, dis_stats, dis_moments)


def test_with_everything_off_the_step_is_the_published_one_bit_for_bit(training):
    """Operation by operation: what XLA fuses, and so how it rounds, differs between any two programs."""
    config, networks, state, _ = training()
    reals = batch(config)
    after, metrics = step_module.train_step(state, reals, networks=networks, config=config)
    assert type(after) is GANState
    assert set(metrics) == set(step_module.METRICS)
    expected = published_step(state, reals, networks, config)
    found = [(network.params, network.stats, network.opt_state) for network in (after.gen, after.dis)]
    jax.tree.map(np.testing.assert_array_equal, found, list(expected))


ON = {
    "augment": {"augment_quarter_turns": True, "augment_cutout": 0.5},
    "r1": {"r1_weight": 10.0},
    "lecam": {"lecam_weight": 0.5},
    "consistency": {"consistency_weight": 10.0},
    "bilinear": {"upsample": "bilinear"},
}


@pytest.mark.parametrize("name", ON)
def test_each_technique_changes_the_step(training, name):
    """So that the test above, with all of them off, says something."""
    config, _, state, step = training(**ON[name])
    _, _, plain_state, plain_step = training()
    _, plain = plain_step(plain_state, batch(config))
    _, metrics = step(state, batch(config))
    assert all(np.isfinite(value) for value in metrics.values())
    for figure in ("loss_dis", "grad_norm_dis"):
        assert abs(float(metrics[figure] - plain[figure])) > 1e-4


def test_both_networks_learn_from_changed_images(training):
    """The gradients of both, with the changes written out; the generator's flows through them."""
    config, networks, state, step = training(augment_flips=True, augment_color=0.7, augment_translation=0.2)
    reals = batch(config)
    after, _ = step(state, reals)
    keys = jax.random.split(jax.random.fold_in(rng_key(config.seed, RngStream.AUGMENTATION), 0), 3)
    latents = jax.random.normal(
        jax.random.split(jax.random.fold_in(rng_key(config.seed, RngStream.TRAINING), 0), 3)[0], (4, config.latent_dim)
    )

    def change(images, key):
        return augment(images, key, config.augment, 1.0)

    def generate(params):
        variables = {"params": params, **state.gen.stats}
        return networks.generator.apply(variables, latents, training=True, mutable=["batch_stats"])[0]

    def judge(params, stats, images):
        return networks.discriminator.apply({"params": params, **stats}, images, training=True, mutable=list(stats))

    def dis_loss(params):
        pair = jnp.stack([change(uint8_to_signed(reals), keys[0]), change(generate(state.gen.params), keys[1])], axis=1)
        (real, fake), stats = (lambda logits, stats: (logits.T, stats))(*judge(params, state.dis.stats, pair))
        return losses.discriminator_loss(real, fake, jnp.ones(4), loss="bce"), stats

    dis_grads, stats = jax.jit(jax.grad(dis_loss, has_aux=True))(state.dis.params)

    def gen_loss(params):
        return losses.generator_loss(judge(after.dis.params, stats, change(generate(params), keys[2]))[0], loss="bce")

    gen_grads = jax.jit(jax.grad(gen_loss))(state.gen.params)
    for moments, grads in ((after.dis.opt_state[0].mu, dis_grads), (after.gen.opt_state[0].mu, gen_grads)):
        for moment, grad in zip(jax.tree.leaves(moments), jax.tree.leaves(grads), strict=True):
            assert np.linalg.norm(2 * moment - grad) <= 1e-3 * np.linalg.norm(grad) + 1e-7  # beta1 is 0.5


def test_r1_is_added_at_every_so_many_steps_and_as_much_stronger(training):
    """At the first step of a lazy penalty four times the gradient of a steady one is added; then none."""
    plain, every, lazy = training(), training(r1_weight=10.0), training(r1_weight=10.0, r1_every_steps=4)
    reals = batch(plain[0])

    def added(which, step):
        losses_of = [
            float(run(state.replace(step=jnp.int32(step)), reals)[1]["loss_dis"]) for _, _, state, run in (which, plain)
        ]
        return losses_of[0] - losses_of[1]

    _, networks, state, _ = every
    critic = functools.partial(networks.discriminator.apply, state.dis.variables, training=False)
    slope = float(jax.jit(lambda: losses.r1_penalty(critic, uint8_to_signed(reals)))())
    assert slope > 1e-3
    assert added(every, 0) == pytest.approx(10 * slope, rel=1e-3)
    assert added(lazy, 0) == pytest.approx(4 * added(every, 0), rel=1e-3)
    assert added(lazy, 1) == 0
    assert added(lazy, 4) == pytest.approx(4 * added(every, 4), rel=1e-3)


def test_penalties_are_on_the_logits_of_reals_and_fakes(training):
    """The whole loss, and what is remembered; consistency under mirroring and small shifts, each kind by itself."""
    config, networks, state, _ = training(consistency_weight=3.0, lecam_weight=0.5)
    reals, fakes = jax.random.uniform(jax.random.key(1), (2, 4, 16, 16, 3), minval=-1)
    key, memory = jax.random.key(2), {"past_real": 2.0, "past_fake": -3.0}
    update = functools.partial(step_module.discriminator_update, networks=networks, config=config, memory=memory)
    metrics = jax.jit(lambda: update(state.dis, reals, fakes, jnp.ones(4), key)[1])()

    def moved(images, i):
        flip_key, shift_key = jax.random.split(jax.random.fold_in(jax.random.split(key, 3)[2], i))
        return translation(mirror_at_random(images, flip_key), shift_key, 1 / 16)

    @jax.jit
    def logits():
        kinds = jnp.stack([reals, fakes, moved(reals, 0), moved(fakes, 1)], axis=1)
        return networks.discriminator.apply(state.dis.variables, kinds, training=True, mutable=list(state.dis.stats))[0]

    real, fake, moved_real, moved_fake = np.asarray(logits(), np.float64).T
    consistency = np.mean((real - moved_real) ** 2) + np.mean((fake - moved_fake) ** 2)
    assert consistency > 1e-3
    lecam = np.mean((real + 3) ** 2) + np.mean((fake - 2) ** 2)
    cross_entropy = np.mean(np.logaddexp(0, -real)) + np.mean(np.logaddexp(0, fake))
    assert float(metrics["loss_dis"]) == pytest.approx(cross_entropy + 3 * consistency + lecam / 2, rel=1e-5)
    assert np.sign(real).mean() != np.sign(fake).mean()
    found = [float(metrics[name]) for name in ("logit_real", "logit_fake", "sign_real")]
    assert found == pytest.approx([real.mean(), fake.mean(), np.sign(real).mean()], abs=1e-5)


def test_lecam_goes_by_moving_averages_of_logits(training):
    config, _, state, step = training(lecam_weight=0.5)
    _, _, plain_state, plain_step = training()
    assert type(state) is SteeredState
    assert metric_names(config)[-2:] == ("logit_real", "logit_fake")
    after, metrics = step(state, batch(config))
    for kind in ("real", "fake"):
        assert float(after.memory[f"past_{kind}"]) == pytest.approx(0.01 * float(metrics[f"logit_{kind}"]), rel=1e-5)
    memory = {"past_real": jnp.float32(2.0), "past_fake": jnp.float32(-3.0)}
    _, metrics = step(state.replace(memory=memory), batch(config))
    plain = plain_step(plain_state, batch(config))[1]
    real, fake = float(metrics["logit_real"]), float(metrics["logit_fake"])
    least = 0.5 * ((real + 3) ** 2 + (fake - 2) ** 2)  # the squares of the means; variances come on top
    assert least < float(metrics["loss_dis"] - plain["loss_dis"]) < 1.5 * least + 1


def test_adaptive_probability_follows_the_signs_of_the_reals_logits(training):
    on = {"augment_flips": True, "augment_adaptive_target": 0.6, "augment_adaptive_images": 160}
    config, _, state, step = training(**on)
    assert float(state.memory["augment_probability"]) == 0
    assert metric_names(config)[-2:] == ("sign_real", "augment_probability")
    signs = []
    for i in range(12):
        before = float(state.memory["augment_probability"])
        state, metrics = step(state, batch(config, seed=i))
        signs.append(float(metrics["sign_real"]))
        moved = float(state.memory["augment_probability"]) - before
        assert float(metrics["augment_probability"]) == float(state.memory["augment_probability"])
        if (i + 1) % 4:
            assert moved == 0
        else:  # four batches of four, of 160 images
            direction = np.sign(np.mean(signs[-4:]) - 0.6)
            assert before + moved == pytest.approx(max(0, before + 0.1 * direction))
    assert max(signs) > min(signs)


def test_adaptive_probability_rises_and_stays_within_one(tiny_config):
    """With hand-made signs: the discriminator is sure of every real, then of none."""
    config = tiny_config(augment_flips=True, augment_adaptive_target=0.6, augment_adaptive_images=40)
    memory, seen = {"augment_probability": jnp.float32(0), "sign_sum": jnp.float32(0)}, []
    for step in range(32):
        sign = 1.0 if step < 20 else -1.0
        memory = step_module._remember(memory, {"sign_real": sign}, jnp.int32(step), 4, config)
        seen.append(round(float(memory["augment_probability"]), 4))
    assert seen[3::4] == [0.4, 0.8, 1.0, 1.0, 1.0, 0.6, 0.2, 0.0]


def test_the_probability_decides_which_images_are_changed(training):
    """At probability 0 an adaptive training's step is that of one without changes."""
    config, _, state, step = training(augment_color=1.0, augment_adaptive_target=0.6)
    _, _, plain_state, plain_step = training()
    plain = plain_step(plain_state, batch(config))[1]
    metrics = step(state, batch(config))[1]
    assert float(metrics["loss_dis"]) == pytest.approx(float(plain["loss_dis"]), rel=1e-5)
    sure = state.replace(memory=state.memory | {"augment_probability": jnp.float32(1)})
    assert abs(float(step(sure, batch(config))[1]["loss_dis"] - plain["loss_dis"])) > 1e-3


def test_the_average_forgets_its_beginnings_while_it_ramps_up(training):
    """Half-life: 5 % of the steps so far, until that is longer than the decay's own."""
    config, _, state, step = training(ema_decay=0.9, ema_rampup=0.05)
    decays = [float(step_module._average_decay(jnp.int32(t), config)) for t in (0, 19, 99, 10_000)]
    assert decays == pytest.approx([0.5**20, 0.5, 0.5**0.2, 0.9], rel=1e-5)
    waiting = dataclasses.replace(config, dis_steps=5)  # the twentieth update of the generator
    assert float(step_module._average_decay(jnp.int32(99), waiting)) == pytest.approx(0.5)
    after, _ = step(state, batch(config))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), after.ema_params, after.gen.params)
    late, _ = step(state.replace(step=jnp.int32(10_000)), batch(config))
    expected = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, state.gen.params, late.gen.params)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), late.ema_params, expected)


def test_a_traced_seed_is_the_seed(training):
    """What several seeds in one program stand on."""
    config, networks, state, step = training(augment_flips=True, seed=7)
    as_argument = jax.jit(
        functools.partial(step_module.train_step, networks=networks, config=dataclasses.replace(config, seed=0))
    )
    one, other = step(state, batch(config)), as_argument(state, batch(config), seed=np.uint32(7))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-7), one, other)
    begun = jax.jit(lambda seed: initial_state(networks, config, seed=seed))(np.uint32(7))
    jax.tree.map(np.testing.assert_array_equal, begun, state)
    assert float(as_argument(state, batch(config), seed=np.uint32(8))[1]["loss_gen"]) != float(one[1]["loss_gen"])
