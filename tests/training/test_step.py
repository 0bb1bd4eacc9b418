"""The training step: PyTorch's numbers, gradients only where they belong, randomness from the step's number."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_oracle

from medgan_jax.images import uint8_to_signed
from medgan_jax.models.dcgan import Discriminator
from medgan_jax.ops import winograd
from medgan_jax.rng import RngStream, rng_key
from medgan_jax.training import losses
from medgan_jax.training import step as step_module
from medgan_jax.training.augment import mirror_at_random
from medgan_jax.training.state import NetworkState, build_networks, initial_state

KEY = jax.random.key(5)  # of what these trainings leave off


def batch(config, seed=0):
    shape = (config.batch_size, config.image_size, config.image_size, config.channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def fresh(config):
    networks = build_networks(config)
    return networks, jax.jit(lambda: initial_state(networks, config))()


def same(a, b):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


@pytest.mark.parametrize(
    ("case", "lowering"), [*((case, "auto") for case in torch_oracle.CASES), ("sngan16", "winograd")]
)
def test_two_golden_steps_are_pytorchs(case, lowering, tiny_config, monkeypatch):
    """Also through the fast lowering, which is not chosen for networks as small as these."""
    monkeypatch.setattr(winograd, "LOWERING", lowering)
    before, after = torch_oracle.load(case, "before"), torch_oracle.load(case, "after")
    config = tiny_config(
        arch=case[:5], image_size=int(case[5:]), channels=3 if case == "sngan32" else 1, lr_dis=5e-4, ema_decay=0.0
    )
    networks = build_networks(config)
    bound = {"networks": networks, "config": config}

    def network_state(name, optimizer):
        stats = torch_oracle.variables(before, name)
        params = jax.tree.map(jnp.asarray, stats.pop("params"))
        return NetworkState(params=params, stats=jax.tree.map(jnp.asarray, stats), opt_state=optimizer.init(params))

    @jax.jit
    def iterate(gen, dis, reals, latents):
        fakes, backward, stats = step_module.generator_forward(gen, latents, networks=networks)
        dis, metrics = step_module.discriminator_update(dis, reals, fakes, jnp.full((4,), 0.9), KEY, **bound)
        gen, dis_stats, more = step_module.generator_update(gen, dis, fakes, backward, stats, KEY, **bound)
        return gen, dis.replace(stats=dis_stats), metrics | more

    gen, dis = network_state("gen", networks.gen_optimizer), network_state("dis", networks.dis_optimizer)
    for i in range(2):
        expected = torch_oracle.load(case, f"step{i}")
        gen, dis, metrics = iterate(gen, dis, torch_oracle.images(expected["reals"]), expected["latents"])
        real, fake = expected["score_real"], expected["score_fake_before"]
        expected |= {"score_dis": (real + (1 - fake)) / 2, "score_gen": fake}
        norms = {name: metrics.pop(f"grad_norm_{name}") for name in ("gen", "dis")}
        if i == 0:  # Adam's first moment is then half of the gradient, and its parameters are compared below
            moments = {"gen": gen.opt_state.inner_state[0].mu, "dis": dis.opt_state.inner_state[0].mu}
            for name, moment in moments.items():
                squares = sum(np.square(np.asarray(leaf, np.float64)).sum() for leaf in jax.tree.leaves(moment))
                assert norms[name] == pytest.approx(2 * squares**0.5, rel=1e-5)
        for name, value in metrics.items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)
    for ours, name in ((gen, "gen"), (dis, "dis")):
        theirs = torch_oracle.variables(after, name)
        start = torch_oracle.variables(before, name)["params"]
        moved = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), theirs["params"], start)
        assert min(jax.tree.leaves(moved)) > 1e-4  # the comparison below sees the update, not only the start
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5), ours.variables, theirs)


def test_winograd_trains_as_native_convolutions_do(tiny_config, monkeypatch):
    """In bfloat16 as far as its 8 bits reach."""
    make = functools.partial(tiny_config, batch_size=32, gen_features=8, dis_features=8)
    _, state = fresh(make())

    def stepped(dtype):
        config = make(dtype=dtype)
        step = functools.partial(step_module.train_step, networks=build_networks(config), config=config)
        return jax.jit(step)(state, batch(config))

    def gradients(network):
        return network.opt_state.inner_state[0].mu  # Adam's first moment: (1 - beta1) times the gradient

    def distances(ours, theirs):
        return jax.tree.leaves(
            jax.tree.map(lambda a, b: np.linalg.norm(a - b) / np.linalg.norm(b), *jax.device_get((ours, theirs)))
        )

    monkeypatch.setattr(winograd, "LOWERING", "winograd")
    tiled, metrics = stepped("float32")
    rough, _ = stepped("bfloat16")
    monkeypatch.setattr(winograd, "LOWERING", "native")
    native, expected = stepped("float32")
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), metrics, expected)
    for network in ("gen", "dis"):
        assert max(distances(*(gradients(getattr(state, network)) for state in (tiled, native)))) < 1e-5
    assert max(distances(gradients(rough.dis), gradients(native.dis))) < 0.1
    # A layer divided by its singular value does not see its kernel's length, so the gradient has no part along it.
    for name in ("conv_0", "conv_1", "conv_2"):
        kernel, gradient = (np.asarray(tree[name]["kernel"]) for tree in (state.dis.params, gradients(rough.dis)))
        cosine = np.vdot(kernel, gradient) / np.linalg.norm(kernel) / np.linalg.norm(gradient)
        assert abs(float(cosine)) < 2e-3


@pytest.mark.parametrize("lowering", ["auto", "winograd"])
def test_the_gradient_penalty_is_pytorchs(lowering, monkeypatch):
    """Its value, and its gradient, which is a gradient of a gradient; also through the fast lowering."""
    monkeypatch.setattr(winograd, "LOWERING", lowering)
    expected = torch_oracle.load("critic32", "penalty")
    variables = torch_oracle.variables(torch_oracle.load("critic32", "before"), "dis")
    assert set(variables) == {"params"}
    images = jnp.asarray(torch_oracle.images(expected["images"]))
    critic = Discriminator(32, 4, batch_norm=False)

    @jax.jit
    @jax.value_and_grad
    def penalty(params):  # between an image and itself, whatever is drawn
        apply = functools.partial(critic.apply, {"params": params}, training=False)
        return losses.gradient_penalty(apply, images, images, KEY)

    value, grads = penalty(variables["params"])
    assert value == pytest.approx(float(expected["value"]), rel=1e-5)
    theirs = torch_oracle.variables(expected, "dis")["params"]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), grads, theirs)


def test_the_discriminators_loss_includes_the_weighted_penalty(tiny_config):
    """With spectral norm, whose vectors the penalty uses and does not move."""
    reals, fakes = jax.random.uniform(jax.random.key(0), (2, 4, 16, 16, 3), minval=-1)
    config = tiny_config(loss="wgan-gp", gp_weight=3.0)
    networks, state = fresh(config)
    assert not any(name.startswith("norm") for name in state.dis.params)

    @jax.jit
    def results():
        dis, metrics = step_module.discriminator_update(
            state.dis, reals, fakes, jnp.ones(4), KEY, networks=networks, config=config
        )
        critic = functools.partial(networks.discriminator.apply, state.dis.variables)
        together = jnp.stack([reals, fakes], axis=1)
        logits, moved = critic(together, training=True, mutable=["spectral"])
        real, fake = logits.T
        penalty = losses.gradient_penalty(
            functools.partial(critic, training=False), reals, fakes, jax.random.split(KEY)[1]
        )
        return metrics["loss_dis"], jnp.mean(fake) - jnp.mean(real), penalty, dis.stats, moved

    loss, distance, penalty, stats, moved = results()
    assert float(penalty) > 0.01
    assert float(loss - distance) == pytest.approx(3 * float(penalty), rel=1e-4)
    assert same(stats, moved)


def test_dropout_hides_half_of_what_the_discriminator_sees(tiny_config):
    """In training only, anew at each step, of reals and fakes each their own, the rest made up for."""
    half = tiny_config(dis_dropout=0.5)
    _, state = fresh(half)
    reals = batch(half)

    step = jax.jit(functools.partial(step_module.train_step, networks=build_networks(half), config=half))

    def scores(number):
        metrics = step(state.replace(step=jnp.int32(number)), reals)[1]
        return [float(metrics[name]) for name in ("score_real", "score_fake_before", "score_fake_after")]

    assert len({*scores(3), *scores(4)}) == 6
    assert scores(3) == scores(3)
    images = np.full((2, 2, 16, 16, 3), 0.25, np.float32)
    discriminator = build_networks(half).discriminator

    @jax.jit
    def results_of_dropout():
        seen = []

        def record(next_function, args, kwargs, context):
            if isinstance(context.module, nn.Dropout):
                seen.append(next_function(*args, **kwargs))
                return seen[-1]
            return next_function(*args, **kwargs)

        with nn.intercept_methods(record):
            discriminator.apply(
                state.dis.variables, images, training=True, mutable=["batch_stats", "spectral"], rngs={"dropout": KEY}
            )
            discriminator.apply(state.dis.variables, images[:, 0], training=False)
        return seen

    trained, evaluated = results_of_dropout()
    assert set(np.unique(trained)) == {0, 0.5}
    assert float((trained == 0).mean()) == pytest.approx(0.5, abs=0.03)
    assert len({image.tobytes() for image in np.asarray(trained)}) == 4
    assert same(evaluated, images[:, 0])


def test_the_generator_waits_its_turn(tiny_config):
    """With three steps of the discriminator to one of the generator, in one call or several."""
    config = tiny_config(dis_steps=3, ema_decay=0.5)
    networks, state = fresh(config)
    step = jax.jit(functools.partial(step_module.train_step, networks=networks, config=config))
    states, losses_gen = [state], []
    for i in range(4):
        state, metrics = step(state, batch(config, i))
        states.append(state)
        losses_gen.append(float(metrics["loss_gen"]))
    for before, after, learns in zip(states, states[1:], (False, False, True, False), strict=False):
        for moved in (lambda s: s.gen.params, lambda s: s.gen.opt_state, lambda s: s.ema_params):
            assert same(moved(before), moved(after)) is not learns
        for moved in (lambda s: s.dis.params, lambda s: s.dis.stats, lambda s: s.gen.stats):
            assert not same(moved(before), moved(after))
    assert len(set(losses_gen)) == 4
    # Where the generator waits, its loss is what it would be: that of the step in which it learns.
    every = jax.jit(functools.partial(step_module.train_step, networks=networks, config=tiny_config(ema_decay=0.5)))
    assert float(every(states[0], batch(config, 0))[1]["loss_gen"]) == pytest.approx(losses_gen[0], rel=1e-5)
    assert same(step(states[2], batch(config, 2))[0].gen.params, states[3].gen.params)


def test_networks_that_learn_at_the_same_time(tiny_config):
    """Each from the other as it was: the generator's update is that against the discriminator before its own."""
    config = tiny_config(simultaneous=True)
    networks, state = fresh(config)
    bound = {"networks": networks, "config": config}
    after, metrics = jax.jit(functools.partial(step_module.train_step, **bound))(state, batch(config))
    in_turns = functools.partial(step_module.train_step, networks=networks, config=tiny_config())
    alternating, other = jax.jit(in_turns)(state, batch(config))
    assert same(alternating.gen.stats, after.gen.stats)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
        (after.dis.params, metrics["loss_dis"]),
        (alternating.dis.params, other["loss_dis"]),
    )
    assert float(metrics["score_fake_after"]) == pytest.approx(float(metrics["score_fake_before"]), abs=0.02)
    key = jax.random.fold_in(rng_key(config.seed, RngStream.TRAINING), 0)
    latents = jax.random.normal(jax.random.split(key, 3)[0], (4, config.latent_dim))

    @jax.jit
    def update():
        fakes, backward, stats = step_module.generator_forward(state.gen, latents, networks=networks)
        gen = step_module.generator_update(state.gen, state.dis, fakes, backward, stats, KEY, **bound)[0]
        reals = uint8_to_signed(batch(config))
        return gen, step_module.discriminator_update(state.dis, reals, fakes, jnp.ones(4), KEY, **bound)[0]

    expected = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6)
    gen, dis = update()
    jax.tree.map(expected, gen.params, after.gen.params)
    jax.tree.map(expected, dis.stats, after.dis.stats)  # of its own update, not of the generator's look at it
    assert not same(alternating.gen.params, after.gen.params)


def test_train_step_is_its_parts_with_every_option(tiny_config):
    """Smoothed and flipped labels, mirrored images, latents: what the config says reaches the updates."""
    config = tiny_config(real_label=0.8, label_flip=0.5, data_horizontal_flip=True)
    networks, state = fresh(config)
    bound = {"networks": networks, "config": config}
    state = state.replace(step=jnp.int32(11))
    reals = batch(config)
    _, metrics = jax.jit(functools.partial(step_module.train_step, networks=networks, config=config))(state, reals)

    key = jax.random.fold_in(rng_key(config.seed, RngStream.TRAINING), 11)
    latent_key, target_key, augment_key = jax.random.split(key, 3)
    targets = losses.real_targets(target_key, 4, real_label=0.8, label_flip=0.5)
    assert sorted(targets.tolist()) == pytest.approx([0, 0, 0.8, 0.8])
    mirrored = mirror_at_random(uint8_to_signed(reals), augment_key)
    assert not same(mirrored, uint8_to_signed(reals))
    latents = jax.random.normal(latent_key, (4, config.latent_dim))

    @jax.jit
    def update(targets):
        fakes, _, _ = step_module.generator_forward(state.gen, latents, networks=networks)
        return step_module.discriminator_update(state.dis, mirrored, fakes, targets, KEY, **bound)[1]

    expected = update(targets)
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5)
    assert abs(float(update(jnp.ones(4))["loss_dis"] - expected["loss_dis"])) > 0.01


def test_discriminator_update_leaves_the_generator_alone(tiny_config):
    config = tiny_config()
    networks, state = fresh(config)
    bound = {"networks": networks, "config": config}
    latents = jax.random.normal(jax.random.key(0), (4, config.latent_dim))
    reals, targets = uint8_to_signed(batch(config)), jnp.ones(4)

    def loss_through_fakes(gen_params):
        gen = state.gen.replace(params=gen_params)
        fakes, _, _ = step_module.generator_forward(gen, latents, networks=networks)
        _, metrics = step_module.discriminator_update(state.dis, reals, fakes, targets, KEY, **bound)
        return metrics["loss_dis"]

    grads = jax.jit(jax.grad(loss_through_fakes))(state.gen.params)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads)) == 0


def test_each_update_moves_its_own_network_only(tiny_config):
    config = tiny_config()
    networks, state = fresh(config)
    bound = {"networks": networks, "config": config}
    latents = jax.random.normal(jax.random.key(0), (4, config.latent_dim))

    @jax.jit
    def updates():
        fakes, backward, stats = step_module.generator_forward(state.gen, latents, networks=networks)
        reals = uint8_to_signed(batch(config))
        dis, _ = step_module.discriminator_update(state.dis, reals, fakes, jnp.ones(4), KEY, **bound)
        return dis, *step_module.generator_update(state.gen, dis, fakes, backward, stats, KEY, **bound)

    dis, gen, dis_stats, _ = updates()
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), dis.params, state.dis.params)
    assert min(jax.tree.leaves(moved)) > 0  # every layer learns
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), gen.params, state.gen.params)
    assert min(jax.tree.leaves(moved)) > 0
    assert jax.tree.structure(dis_stats) == jax.tree.structure(dis.stats)
    assert not same(dis_stats, dis.stats)  # statistics move in every training forward, parameters were not returned


def test_the_generators_gradient_is_that_of_the_composed_loss(tiny_config):
    """The shared forward pass changes nothing: the gradient equals that of D(G(z)) written in one piece."""
    config = tiny_config()
    networks, state = fresh(config)
    bound = {"networks": networks, "config": config}
    latents = jax.random.normal(jax.random.key(0), (4, config.latent_dim))

    def composed(params):
        fakes, _ = networks.generator.apply(
            {"params": params, **state.gen.stats}, latents, training=True, mutable=["batch_stats"]
        )
        logits, _ = networks.discriminator.apply(
            state.dis.variables, fakes, training=True, mutable=["batch_stats", "spectral"]
        )
        return losses.generator_loss(logits, loss="bce")

    @jax.jit
    def update():
        fakes, backward, stats = step_module.generator_forward(state.gen, latents, networks=networks)
        return step_module.generator_update(state.gen, state.dis, fakes, backward, stats, KEY, **bound)[0]

    expected, gen = jax.jit(jax.grad(composed))(state.gen.params), update()
    mu = gen.opt_state.inner_state[0].mu  # Adam's first moment after one step is (1 - beta1) times the gradient
    jax.tree.map(lambda m, g: np.testing.assert_allclose(m, 0.5 * g, rtol=1e-4, atol=1e-8), mu, expected)


def test_many_steps_in_one_call_are_single_steps(tiny_config):
    config = tiny_config(ema_decay=0.9, label_flip=0.25, data_horizontal_flip=True)
    networks, state = fresh(config)
    images = np.stack([batch(config, i)[0] for i in range(6)])
    indices = np.array([[0, 1, 2, 3], [5, 4, 3, 2], [1, 3, 5, 0], [9, 9, 9, 9]], np.int32)  # the last is not run
    run = jax.jit(functools.partial(step_module.train_steps, networks=networks, config=config))
    single = jax.jit(functools.partial(step_module.train_step, networks=networks, config=config))
    together, history = run(state, images, indices, 3)
    one_by_one, _ = run(state, images, indices, 1)
    one_by_one, _ = run(one_by_one, images, indices[1:], 2)
    assert same(together, one_by_one)  # where a call is cut changes not a bit
    for row in indices[:3]:
        state, metrics = single(state, images[row])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-3, atol=2e-5), together, state)
    assert int(together.step) == 3
    np.testing.assert_allclose(history["loss_dis"][2], metrics["loss_dis"], rtol=1e-3)
    assert float(history["loss_dis"][3]) == 0


def test_randomness_follows_seed_and_step(tiny_config):
    config = tiny_config()
    networks, state = fresh(config)
    reals = batch(config)

    run = jax.jit(functools.partial(step_module.train_step, networks=networks, config=config))

    def loss_at(step):
        return float(run(state.replace(step=jnp.int32(step)), reals)[1]["loss_gen"])

    assert loss_at(3) == loss_at(3)
    assert loss_at(3) != loss_at(4)
    keys = [jax.random.key_data(rng_key(seed, stream)).tobytes() for seed in (0, 1) for stream in RngStream]
    assert len(set(keys)) == 2 * len(RngStream)


def test_average_follows_the_generator(tiny_config):
    config = tiny_config(ema_decay=0.75)
    networks, state = fresh(config)
    step = jax.jit(functools.partial(step_module.train_step, networks=networks, config=config))
    after, _ = step(state, batch(config))
    expected = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, state.gen.params, after.gen.params)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), after.ema_params, expected)
    off = fresh(tiny_config(ema_decay=0.0))[1]
    assert off.ema_params is None


def test_averaged_generator_gets_statistics_of_its_own(tiny_config):
    """Estimated statistics match those of a large training batch; the trained network's do not."""
    config = tiny_config(ema_decay=0.9)
    networks, state = fresh(config)
    state = state.replace(ema_params=jax.tree.map(lambda x: 2 * x, state.gen.params))
    variables = jax.jit(functools.partial(step_module.generator_to_sample, networks=networks, config=config))(state)
    assert same(variables["params"], state.ema_params)

    @jax.jit
    def statistics_of_many():
        latents = jax.random.normal(jax.random.key(9), (2048, config.latent_dim))
        zero = {"params": state.ema_params, **jax.tree.map(jnp.zeros_like, state.gen.stats)}
        return networks.generator.apply(zero, latents, training=True, mutable=["batch_stats"])[1]

    once = statistics_of_many()
    for layer in ("norm_0", "norm_1"):
        expected = 10 * once["batch_stats"][layer]["var"]
        np.testing.assert_allclose(variables["batch_stats"][layer]["var"], expected, rtol=0.3)
        assert float(jnp.abs(jnp.log(state.gen.stats["batch_stats"][layer]["var"] / expected)).min()) > 0.5


def test_without_average_the_trained_generator_is_sampled(tiny_config):
    config = tiny_config(ema_decay=0.0)
    networks, state = fresh(config)
    assert same(step_module.generator_to_sample(state, networks=networks, config=config), state.gen.variables)


@pytest.mark.parametrize(
    ("arch", "num_classes", "loss"), [("resnet", 0, "hinge"), ("resnet", 2, "wgan-gp"), ("sngan", 2, "bce")]
)
def test_every_architecture_learns_with_and_without_classes(arch, num_classes, loss, tiny_config):
    """The discriminator finds out that one class is black and the other white, or that all reals are."""
    config = tiny_config(arch=arch, loss=loss, image_size=32, gen_features=2, dis_features=2, lr_dis=2e-3, lr_gen=1e-6)
    networks = build_networks(config, num_classes)
    state = jax.jit(lambda: initial_state(networks, config))()
    classes = np.array([0, 1, 0, 1], np.int32)
    reals = np.broadcast_to(255 * classes[:, None, None, None], (4, 32, 32, 3)).astype(np.uint8)
    labels = classes if num_classes else None
    step = jax.jit(functools.partial(step_module.train_step, networks=networks, config=config))
    history = []
    for _ in range(25):
        state, metrics = step(state, reals, labels)
        history.append({name: float(value) for name, value in metrics.items()})
    assert all(np.isfinite(list(line.values())).all() for line in history)
    losses = [line["loss_dis"] for line in history]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.1
    if num_classes:
        judged = functools.partial(networks.discriminator.apply, state.dis.variables, training=False)
        right, wrong = judged(uint8_to_signed(reals), classes), judged(uint8_to_signed(reals), 1 - classes)
        assert np.mean(right - wrong) > 0
