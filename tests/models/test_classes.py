"""What depends on the class: the projection, and conditional batch normalisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from medgan_jax.models.batch_norm import BatchNorm
from medgan_jax.models.classes import Projection
from medgan_jax.models.dcgan import Discriminator, Generator

KEY = jax.random.key(0)
LABELS = jnp.array([3, 1, 1, 3])


def initialised(module, *inputs):
    return jax.jit(lambda: module.init(KEY, *inputs, training=True))()


def applied(module, variables, *inputs, **how):
    return jax.jit(lambda variables: module.apply(variables, *inputs, **how))(variables)


def features(*shape):
    return jax.random.normal(jax.random.key(1), shape or (4, 2, 3, 5))


@pytest.mark.parametrize("spectral_norm", [False, True])
def test_the_projection_is_the_classs_vector_times_summed_features(spectral_norm):
    layer = Projection(4, spectral_norm, nn.initializers.normal(1.0))
    variables = initialised(layer, features(), LABELS)
    kernel = np.asarray(variables["params"]["kernel"])
    sigma = 1.0
    if spectral_norm:
        vectors = variables["spectral"]["spectral_norm"]
        sigma = vectors["v"] @ kernel @ vectors["u"]
    expected = [
        kernel[label] @ image.sum((0, 1)) / sigma for label, image in zip(LABELS, np.asarray(features()), strict=True)
    ]
    np.testing.assert_allclose(applied(layer, variables, features(), LABELS, training=False), expected, rtol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_a_conditional_norm_is_each_classs_own(training):
    """Statistics of all, then scale and bias of the image's class."""
    layer, x = BatchNorm(4), features(4, 2, 3, 5)
    variables = initialised(layer, x, LABELS)
    assert variables["params"]["scale"].shape == (4, 5)
    params = {"scale": features(4, 5), "bias": features(2, 4, 5)[1]}
    out, _ = applied(layer, {**variables, "params": params}, x, LABELS, training=training, mutable=["batch_stats"])
    values = np.asarray(x)
    if training:
        values = (values - values.mean((0, 1, 2))) / np.sqrt(values.var((0, 1, 2)) + 1e-5)
    else:
        values = values / np.sqrt(1 + 1e-5)
    scale, bias = (np.asarray(params[name])[LABELS][:, None, None] for name in ("scale", "bias"))
    np.testing.assert_allclose(out, values * scale + bias, rtol=1e-4, atol=1e-5)


def test_batches_in_turns_have_statistics_of_their_own_and_the_classs_scale():
    layer, x = BatchNorm(4), features(4, 2, 3, 5)
    variables = initialised(layer, x, LABELS)
    variables = {**variables, "params": {"scale": features(4, 5), "bias": features(4, 5) / 2}}
    together, stats = applied(layer, variables, x, LABELS, training=True, batches=2, mutable=["batch_stats"])
    now = variables
    for b in range(2):
        inputs = {**now, "params": variables["params"]}
        alone, now = applied(layer, inputs, x[b::2], LABELS[b::2], training=True, mutable=["batch_stats"])
        np.testing.assert_allclose(together[b::2], alone, rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), stats, dict(now))


def test_all_classes_begin_as_the_unconditional_network():
    latents = jax.random.normal(KEY, (4, 8))
    plain, conditional = Generator(16, 3, 4), Generator(16, 3, 4, num_classes=4)
    ours = initialised(conditional, latents, LABELS)
    theirs = initialised(plain, latents)
    np.testing.assert_allclose(
        applied(conditional, ours, latents, LABELS, training=False),
        applied(plain, theirs, latents, training=False),
        atol=1e-6,
    )


def test_gradients_reach_only_the_classes_present():
    """And those they reach differ from image to image."""
    generator, discriminator = Generator(16, 3, 4, num_classes=4), Discriminator(16, 4, num_classes=4)
    latents, images = jax.random.normal(KEY, (4, 8)), jax.random.normal(KEY, (4, 16, 16, 3))

    def gradients(module, inputs):
        variables = initialised(module, inputs, LABELS)

        def loss(params):
            out, _ = applied(
                module, {**variables, "params": params}, inputs, LABELS, training=True, mutable=["batch_stats"]
            )
            return jnp.sum(jnp.sin(out))

        return jax.jit(jax.grad(loss))(variables["params"])

    gen, dis = gradients(generator, latents), gradients(discriminator, images)
    for rows in (gen["norm_0"]["scale"], gen["norm_1"]["bias"], dis["projection_2"]["kernel"]):
        reached = np.abs(rows).max(axis=1) > 0
        np.testing.assert_array_equal(reached, [False, True, False, True])
        assert not np.allclose(rows[1], rows[3])
    assert dis["norm_1"]["scale"].shape == (8,)  # the discriminator's normalisation knows no classes


@pytest.mark.parametrize("spectral_norm", [False, True])
def test_batches_judged_together_are_judged_one_after_the_other(spectral_norm):
    module = Discriminator(16, 4, spectral_norm, num_classes=4)
    images = jax.random.normal(jax.random.key(1), (4, 2, 16, 16, 3))
    labels = jnp.stack([LABELS, LABELS[::-1] - 1], axis=1)
    variables = initialised(module, images[:, 0], LABELS)
    mutable = [name for name in variables if name != "params"]
    together, stats = applied(module, variables, images, labels, training=True, mutable=mutable)
    now = variables
    for b in range(2):
        inputs = {**now, "params": variables["params"]}
        alone, now = applied(module, inputs, images[:, b], labels[:, b], training=True, mutable=mutable)
        np.testing.assert_allclose(together[:, b], alone, rtol=1e-4, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), dict(stats), dict(now))


def test_labels_must_be_there_just_when_there_are_classes():
    for module, inputs in ((Generator, jnp.zeros((4, 8))), (Discriminator, jnp.zeros((4, 16, 16, 3)))):
        with pytest.raises(ValueError, match="network of 4 classes needs labels"):
            module(16, num_classes=4).init(KEY, inputs, training=True)
        with pytest.raises(ValueError, match="takes no labels"):
            module(16).init(KEY, inputs, LABELS, training=True)
