"""What depends on the class: the discriminator's projection, and conditional batch normalisation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from medgan_jax.models.batch_norm import BatchNorm
from medgan_jax.models.dcgan import Discriminator, Generator
from medgan_jax.models.projection import Projection
from medgan_jax.models.resnet import ResidualDiscriminator, ResidualGenerator

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)
LABELS = np.array([3, 1, 1, 3])
LATENTS = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)


def initialised(module, *inputs):
    return jax.jit(lambda: module.init(KEY, *inputs, training=True))()


def applied(module, variables, *inputs, **options):
    return jax.jit(lambda variables: module.apply(variables, *inputs, **options))(variables)


def features(*shape):
    return np.random.default_rng(1).normal(size=shape or (4, 2, 3, 5)).astype(np.float32)


@pytest.mark.parametrize("spectral_norm", [False, True])
def test_the_projection_is_the_classs_vector_times_summed_features(spectral_norm, drawn):
    layer = Projection(4, spectral_norm, nn.initializers.normal(1.0))
    variables = drawn(layer, features(), LABELS)
    kernel = np.asarray(variables["params"]["kernel"])
    sigma = 1.0
    if spectral_norm:
        vectors = variables["spectral"]["spectral_norm"]
        sigma = vectors["v"] @ kernel @ vectors["u"]
    expected = np.einsum("nc,nhwc->n", kernel[LABELS], features()) / sigma
    np.testing.assert_allclose(applied(layer, variables, features(), LABELS, training=False), expected, rtol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_a_conditional_batch_norm_has_a_scale_and_bias_for_each_class(training, drawn):
    """The statistics are those of all classes together."""
    layer, x = BatchNorm(4), features(4, 2, 3, 5)
    variables = drawn(layer, x, LABELS)
    params, statistics = variables["params"], variables["batch_stats"]
    assert params["scale"].shape == (4, 5)
    out, _ = applied(layer, variables, x, LABELS, training=training, mutable=["batch_stats"])
    values = np.asarray(x)
    if training:
        values = (values - values.mean((0, 1, 2))) / np.sqrt(values.var((0, 1, 2)) + 1e-5)
    else:
        values = (values - statistics["mean"]) / np.sqrt(statistics["var"] + 1e-5)
    scale, bias = (np.asarray(params[name])[LABELS][:, None, None] for name in ("scale", "bias"))
    np.testing.assert_allclose(out, values * scale + bias, rtol=1e-4, atol=1e-5)


def test_all_classes_begin_as_the_unconditional_network():
    plain, conditional = Generator(16, 3, 4), Generator(16, 3, 4, num_classes=4)
    ours, theirs = initialised(conditional, LATENTS, LABELS), initialised(plain, LATENTS)
    images = applied(conditional, ours, LATENTS, LABELS, training=False)
    np.testing.assert_allclose(images, applied(plain, theirs, LATENTS, training=False), atol=1e-6)


def test_gradients_reach_only_the_classes_present(drawn):
    """And they differ between those classes."""
    images = np.random.default_rng(1).normal(size=(4, 16, 16, 3)).astype(np.float32)

    def gradients(module, inputs):
        variables = drawn(module, inputs, LABELS)

        def loss(params):
            inputs_ = {**variables, "params": params}
            out, _ = module.apply(inputs_, inputs, LABELS, training=True, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(out))

        return jax.jit(jax.grad(loss))(variables["params"])

    gen = gradients(Generator(16, 3, 4, num_classes=4), LATENTS)
    dis = gradients(Discriminator(16, 4, num_classes=4), images)
    for rows in (gen["norm_0"]["scale"], gen["norm_1"]["bias"], dis["projection_2"]["kernel"]):
        np.testing.assert_array_equal(np.abs(rows).max(axis=1) > 0, [False, True, False, True])
        assert not np.allclose(rows[1], rows[3])
    assert dis["norm_1"]["scale"].shape == (8,)  # the discriminator's batch norm has no classes


def test_labels_are_required_exactly_where_there_are_classes():
    images = jnp.zeros((4, 32, 32, 3))
    for module, inputs in (
        (Generator, LATENTS),
        (ResidualGenerator, LATENTS),
        (Discriminator, images),
        (ResidualDiscriminator, images),
    ):
        with pytest.raises(ValueError, match="network of 4 classes needs labels"):
            jax.eval_shape(functools.partial(module(32, num_classes=4).init, training=True), KEY, inputs)
        with pytest.raises(ValueError, match="takes no labels"):
            jax.eval_shape(functools.partial(module(32).init, training=True), KEY, inputs, LABELS)
