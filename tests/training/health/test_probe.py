"""The figures of a look, against numpy, on networks whose faults are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medgan_jax.data.classes import number_classes
from medgan_jax.images import uint8_to_signed
from medgan_jax.sharding import local_mesh, replicated
from medgan_jax.training.health import probe
from medgan_jax.training.health.probe import Probe
from medgan_jax.training.state import build_networks, initial_state

SIZE = 16


def noise(number, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (number, SIZE, SIZE, 3), np.uint8)


@pytest.fixture(scope="module")
def shared():
    return {}


@pytest.fixture
def look(tiny_config, shared):
    """A function from the generator's 64 images, training images and held-out ones to the figures."""
    config = tiny_config()
    networks = build_networks(config)
    if not shared:
        shared["state"] = jax.jit(lambda: initial_state(networks, config), out_shardings=replicated(local_mesh()))()
    state = shared["state"]

    now = None

    def figures(fakes, training, held_out=None, *, again=False):
        nonlocal now
        if not again:
            now = Probe(networks, config, training, held_out, mesh=local_mesh())
        return now.figures(np.resize(fakes, (64, *fakes.shape[1:])), state.gen.variables, state.dis.variables)

    figures.state, figures.networks, figures.config = state, networks, config
    return figures


def distances(a, b):
    a, b = (x.reshape(len(x), -1) / 255 for x in (a, b))
    return np.sqrt(((a[:, None] - b[None]) ** 2).mean(-1))


def test_diversity_and_duplicates(look):
    fakes, training = noise(64), noise(40, 1)
    fakes[32:48] = fakes[:16]  # in sixteen pairs, nearly alike
    fakes[32:48, 0, 0] ^= 1
    found = look(fakes, training)
    assert found["diversity"] == pytest.approx(distances(fakes, fakes).sum() / (64 * 63), rel=1e-4)
    assert found["diversity_reals"] == pytest.approx(distances(training, training).sum() / (40 * 39), rel=1e-4)
    assert found["near_duplicates"] == 0.5
    assert found["near_duplicates_reals"] == found["copies"] == found["copies_reals"] == 0


def test_drift_is_from_one_look_to_the_next(look):
    first, second = noise(64), noise(64, 1)
    assert "drift" not in look(first, noise(12, 2))
    found = look(second, noise(12, 2), again=True)
    pairs = ((first.astype(float) - second) / 255) ** 2
    assert found["drift"] == pytest.approx(np.sqrt(pairs.mean((1, 2, 3))).mean(), rel=1e-5)
    assert look(second, noise(12, 2), again=True)["drift"] == 0


def test_one_image_has_no_diversity(look):
    found = look(noise(1), noise(12, 1))
    assert found["diversity"] < 1e-3  # a quarter of a grey level, by rounding
    assert found["near_duplicates"] == 1


def test_copies_are_found_however_they_are_turned(look):
    training = noise(40)
    turned = np.stack([np.rot90(image[:, ::-1] if i >= 4 else image, i % 4) for i, image in enumerate(training[:8])])
    faded = np.uint8(training[8:16] * 0.8 + 25)
    found = look(np.concatenate([turned, faded, noise(16, 2)]), training)
    assert found["copies"] == 0.5
    assert found["copies_reals"] == 0


def test_a_blur_near_to_all_is_no_copy(look):
    training = noise(40)
    assert look(np.uint8(np.clip(training.mean(0) + noise(64) / 50, 0, 255)), training)["copies"] == 0


def test_training_images_that_are_there_twice_are_counted_among_reals(look):
    training = noise(20)
    training[:2] = training[2:4]
    assert look(noise(4, 1), training)["copies_reals"] == pytest.approx(4 / 20)


def test_logits_are_those_of_training_in_batches_of_one_kind(look):
    """And nothing of the discriminator moves."""
    training, held_out, fakes = noise(16), noise(8, 1), noise(64, 2)
    before = jax.tree.map(np.asarray, look.state.dis.variables)
    found = look(fakes, training, held_out)
    jax.tree.map(np.testing.assert_array_equal, before, look.state.dis.variables)
    batch, dis = look.config.batch_size, look.networks.discriminator

    def mean_logit(images, place):
        """`place` other batches go before it, each moving the singular vectors by one iteration."""
        stats = {name: value for name, value in before.items() if name != "params"}
        means = []
        for i in range(0, len(images), batch):
            now = stats
            for _ in range(place + 1):
                variables = {"params": before["params"], **now}
                logits, now = dis.apply(
                    variables, uint8_to_signed(jnp.asarray(images[i : i + batch])), training=True, mutable=list(stats)
                )
            means.append(logits.mean())
        return np.mean(means)

    assert found["logit_train"] == pytest.approx(mean_logit(training, 0), abs=2e-5)
    assert found["logit_held_out"] == pytest.approx(mean_logit(held_out, 1), abs=2e-5)
    assert found["logit_fakes"] == pytest.approx(mean_logit(fakes, 2), abs=2e-5)


def test_images_are_judged_by_their_own_classes(tiny_config, monkeypatch):
    """By a discriminator whose logit is the mean of the image, plus ten times the class."""
    config = tiny_config(batch_size=8)
    networks = build_networks(config)
    state = jax.jit(lambda: initial_state(networks, config), out_shardings=replicated(local_mesh()))()

    def apply(self, variables, images, labels, *, training, mutable, rngs):
        return images.mean(axis=(2, 3, 4)) + 10 * labels, {}

    monkeypatch.setattr(type(networks.discriminator), "apply", apply)
    random = np.random.default_rng(0)
    labels = [tuple(random.choice(["a", "b", "c"], number, p=[0.6, 0.3, 0.1])) for number in (64, 16)]
    classes = number_classes(*labels, "noise")
    probe = Probe(networks, config, noise(64), noise(16, 1), mesh=local_mesh(), classes=classes)
    found = probe.figures(noise(64, 2), state.gen.variables, state.dis.variables)
    expected = {"train": classes.training, "held_out": classes.held_out, "fakes": np.arange(64) % 3}
    for (kind, numbers), seed in zip(expected.items(), range(3), strict=True):
        pixels = noise(len(numbers), seed) / 127.5 - 1
        assert found[f"logit_{kind}"] == pytest.approx(pixels.mean() + 10 * numbers.mean(), abs=1e-4)


def test_too_few_held_out_images_are_not_judged(look):
    assert "logit_held_out" not in look(noise(4), noise(12, 1), noise(7, 2))
    assert "logit_held_out" in look(noise(4), noise(12, 1), noise(8, 2))


def test_norms_are_the_largest_singular_values_from_input_to_output(look):
    state = look.state
    found = look(noise(4), noise(12))
    for name, network in (("norms_gen", state.gen), ("norms_dis", state.dis)):
        kernels = [network.params[f"conv_{i}"]["kernel"] for i in range(len(found[name]))]
        exact = [np.linalg.norm(np.reshape(kernel, (-1, kernel.shape[-1])), 2) for kernel in kernels]
        np.testing.assert_allclose(found[name], exact, rtol=0.05)
        assert len(found[name]) == sum("conv" in layer for layer in network.params)


def test_norms_of_nested_layers_are_in_their_order():
    layers = {f"block_{i}": {"conv_0": {"kernel": float(i)}} for i in range(12)}
    layers = {"dense_12": {"kernel": 12.0, "bias": 0.0}, "norm_11": {"scale": 1.0}} | layers
    params = jax.tree.map(lambda x: jnp.full((1, 1), x), dict(sorted(layers.items())))
    np.testing.assert_allclose(probe._norms(params), range(13))
