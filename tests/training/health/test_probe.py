"""What the probe measures, against numpy, on images and networks whose faults are known."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medgan_jax.data.classes import number_classes
from medgan_jax.images import uint8_to_signed
from medgan_jax.sharding import local_mesh, replicated
from medgan_jax.training.health.probe import NUM_FAKES, Probe, kernel_norms
from medgan_jax.training.state import build_networks, initial_state

pytestmark = pytest.mark.slow

SIZE = 16


def noise(number, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (number, SIZE, SIZE, 3), np.uint8)


class MeanLogit(nn.Module):
    """A discriminator whose logit is the mean of the image, plus ten times the class."""

    @nn.compact
    def __call__(self, images, labels=None, *, training):
        means = images.mean(axis=(1, 2, 3))
        return means if labels is None else means + 10 * labels


NO_WEIGHTS = {"params": {}}


@pytest.fixture(scope="module")
def measure(tiny_config):
    """A function from fakes, training images and held-out ones to the values, with networks that weigh nothing.

    With 40 training images each time, one compiled program serves most tests.
    """
    config = tiny_config(batch_size=8)
    networks = dataclasses.replace(build_networks(config), discriminator=MeanLogit())

    def measure(fakes, training, held_out=None, classes=None):
        probe = Probe(networks, config, training, held_out, mesh=local_mesh(), classes=classes)
        return probe.measure(np.resize(fakes, (NUM_FAKES, *fakes.shape[1:])), NO_WEIGHTS, NO_WEIGHTS)

    measure.networks, measure.config = networks, config
    return measure


def distances(a, b):
    a, b = (x.reshape(len(x), -1) / 255 for x in (a, b))
    return np.sqrt(((a[:, None] - b[None]) ** 2).mean(-1))


def test_diversity_and_duplicates(measure):
    fakes, training = noise(64), noise(40, 1)
    fakes[32:48] = fakes[:16]  # in sixteen pairs, nearly alike
    fakes[32:48, 0, 0] ^= 1
    values = measure(fakes, training)
    assert values["diversity"] == pytest.approx(distances(fakes, fakes).sum() / (64 * 63), rel=1e-4)
    assert values["diversity_reals"] == pytest.approx(distances(training, training).sum() / (40 * 39), rel=1e-4)
    assert values["near_duplicates"] == 0.5
    assert values["near_duplicates_reals"] == values["memorization"] == values["memorization_reals"] == 0


def test_one_image_has_no_diversity(measure):
    values = measure(noise(1), noise(40, 1))
    assert values["diversity"] < 1e-3  # a quarter of a grey level, by rounding
    assert values["near_duplicates"] == 1


def test_drift_is_from_one_measurement_to_the_next(measure):
    probe = Probe(measure.networks, measure.config, noise(40, 2), None, mesh=local_mesh())
    first, second = noise(64), noise(64, 1)
    assert "drift" not in probe.measure(first, NO_WEIGHTS, NO_WEIGHTS)
    squares = ((first.astype(float) - second) / 255) ** 2
    expected = np.sqrt(squares.mean((1, 2, 3))).mean()
    assert probe.measure(second, NO_WEIGHTS, NO_WEIGHTS)["drift"] == pytest.approx(expected, rel=1e-5)
    assert probe.measure(second, NO_WEIGHTS, NO_WEIGHTS)["drift"] == 0


def test_memorized_images_are_found_in_any_orientation(measure):
    training = noise(40)
    turned = np.stack([np.rot90(image[:, ::-1] if i >= 4 else image, i % 4) for i, image in enumerate(training[:8])])
    faded = np.uint8(training[8:16] * 0.8 + 25)
    values = measure(np.concatenate([turned, faded, noise(16, 2)]), training)
    assert values["memorization"] == 0.5
    assert values["memorization_reals"] == 0


def test_a_blurred_image_close_to_all_is_not_memorized(measure):
    training = noise(40)
    assert measure(np.uint8(np.clip(training.mean(0) + noise(64) / 50, 0, 255)), training)["memorization"] == 0


def test_training_images_that_occur_twice_count_as_memorization_of_reals(measure):
    training = noise(40)
    training[:2] = training[2:4]
    assert measure(noise(4, 1), training)["memorization_reals"] == pytest.approx(4 / 40)


def test_each_kind_of_image_gets_its_own_logits_and_classes(measure):
    random = np.random.default_rng(0)
    labels = [tuple(random.choice(["a", "b", "c"], number, p=[0.6, 0.3, 0.1])) for number in (64, 16)]
    classes = number_classes(*labels, "noise")
    values = measure(noise(64, 2), noise(64), noise(16, 1), classes)
    expected = {"train": classes.training, "held_out": classes.held_out, "fakes": np.arange(64) % 3}
    for (kind, numbers), seed in zip(expected.items(), range(3), strict=True):
        pixels = noise(len(numbers), seed) / 127.5 - 1
        assert values[f"logit_{kind}"] == pytest.approx(pixels.mean() + 10 * numbers.mean(), abs=1e-4)


class MeanOfMaps(nn.Module):
    """A discriminator of several maps, with as many outputs: the means of their rows."""

    @nn.compact
    def __call__(self, maps, labels=None, *, training):
        return tuple(x.mean(axis=(2, 3)) for x in maps)


def test_a_projected_discriminator_sees_maps_and_its_outputs_count_as_much(measure, monkeypatch):
    monkeypatch.setattr("medgan_jax.training.state.project_images", lambda frozen, x: (x[:, ::2] + frozen, 3 * x))
    seven = jax.device_put(np.float32(7), replicated(local_mesh()))
    networks = dataclasses.replace(measure.networks, discriminator=MeanOfMaps(), frozen=seven)
    probe = Probe(networks, measure.config, noise(64), None, mesh=local_mesh())
    pixels = noise(64) / 127.5 - 1
    expected = (pixels[:, ::2].mean() + 7 + 3 * pixels.mean()) / 2
    assert probe.measure(noise(64, 1), NO_WEIGHTS, NO_WEIGHTS)["logit_train"] == pytest.approx(expected, abs=1e-4)


def test_too_few_held_out_images_are_not_measured(measure):
    assert "logit_held_out" not in measure(noise(4), noise(12, 1), noise(7, 2))
    assert "logit_held_out" in measure(noise(4), noise(12, 1), noise(8, 2))


def test_logits_are_those_of_training_mode_and_leave_the_discriminator_as_it_is(tiny_config):
    config = tiny_config(batch_size=8, gen_features=1, dis_features=1)
    networks = build_networks(config)
    state = jax.jit(lambda: initial_state(networks, config), out_shardings=replicated(local_mesh()))()
    before = jax.tree.map(np.asarray, state.dis.variables)
    training, held_out, fakes = noise(16), noise(8, 1), noise(64, 2)
    probe = Probe(networks, config, training, held_out, mesh=local_mesh())
    values = probe.measure(fakes, state.gen.variables, state.dis.variables)
    jax.tree.map(np.testing.assert_array_equal, before, state.dis.variables)

    apply = jax.jit(lambda x: networks.discriminator.apply(before, x, training=True, mutable=list(state.dis.stats)))

    def mean_logit(images):
        batches = uint8_to_signed(images.reshape(-1, config.batch_size, *images.shape[1:]))
        return np.mean([apply(batch)[0] for batch in batches])

    assert values["logit_train"] == pytest.approx(mean_logit(training), abs=2e-5)
    assert values["logit_held_out"] == pytest.approx(mean_logit(held_out), abs=2e-5)
    assert values["logit_fakes"] == pytest.approx(mean_logit(fakes), abs=2e-5)
    for name, params in (("norms_gen", state.gen.params), ("norms_dis", state.dis.params)):
        kernels = [params[f"conv_{i}"]["kernel"] for i in range(len(values[name]))]
        exact = [np.linalg.norm(np.reshape(kernel, (-1, kernel.shape[-1])), 2) for kernel in kernels]
        np.testing.assert_allclose(values[name], exact, rtol=0.05)
        assert len(values[name]) == sum("conv" in layer for layer in params)


def test_kernel_norms_are_in_the_order_of_the_layers():
    layers = {f"block_{i}": {"conv_0": {"kernel": float(i)}} for i in range(12)}
    layers = {"dense_12": {"kernel": 12.0, "bias": 0.0}, "norm_11": {"scale": 1.0}} | layers
    params = jax.tree.map(lambda x: jnp.full((1, 1), x), dict(sorted(layers.items())))
    np.testing.assert_allclose(kernel_norms(params), range(13))
