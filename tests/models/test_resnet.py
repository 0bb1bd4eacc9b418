"""The residual networks: sizes, parameter counts, blocks against their definition, spectral norm on every layer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from medgan_jax.models.resnet import (
    DiscriminatorBlock,
    GeneratorBlock,
    ResidualDiscriminator,
    ResidualGenerator,
)

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)


def applied(module, variables, *inputs):
    return jax.jit(lambda variables: module.apply(variables, *inputs, training=False))(variables)


def outputs(module, *inputs):
    """What it returns, its variables, and the shapes of these: nothing is computed."""
    out, variables = jax.eval_shape(functools.partial(module.init_with_output, training=True), KEY, *inputs)
    return out, variables, {path: x.shape for path, x in traverse_util.flatten_dict(variables, sep="/").items()}


def count(variables):
    return sum(x.size for x in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize(("size", "features"), [(32, 2), (128, None), (256, 2)])
def test_sizes_and_parameter_counts(size, features):
    """Counted from the paper's tables, with two feature maps at the image's resolution, or as many as in the paper."""
    widths = {32: [1, 2, 4, 8], 128: [1, 2, 4, 8, 16, 16], 256: [1, 2, 4, 8, 16, 16, 16]}[size]
    widths = [(features or 64) * width for width in widths]
    steps = len(widths) - 1

    def conv(a, b, taps=9):
        return taps * a * b + b

    gen = conv(5, 16 * widths[-1], 1) + 2 * widths[0] + conv(widths[0], 3)
    for a, b in zip(widths[:0:-1], widths[-2::-1], strict=True):
        gen += 2 * a + conv(a, b) + 2 * b + conv(b, b) + conv(a, b, 1)
    dis = conv(3, widths[0]) + conv(widths[0], widths[0]) + conv(3, widths[0], 1) + conv(widths[-1], 1, 1)
    for i in range(1, steps + 1):
        a, b = widths[i - 1], widths[i]
        shortcut = conv(a, b, 1) if i < steps or a != b else 0
        dis += conv(a, a) + conv(a, b) + shortcut

    options = {"features": features} if features else {}
    images, gen_variables, found = outputs(ResidualGenerator(size, **options), jnp.zeros((7, 5)))
    assert images.shape == (7, size, size, 3)
    assert count(gen_variables) == gen
    assert found["params/dense_0/kernel"] == (5, 16 * widths[-1])
    assert [found[f"params/block_{i}/conv_1/kernel"][-1] for i in range(1, steps + 1)] == widths[-2::-1]
    logits, dis_variables, found = outputs(ResidualDiscriminator(size, **options), images)
    assert logits.shape == (7,)
    assert count(dis_variables) == dis
    assert set(dis_variables) == {"params", "spectral"}
    assert [found[f"params/block_{i}/conv_1/kernel"][-1] for i in range(steps + 1)] == widths


@pytest.mark.parametrize("size", [16, 48, 512])
def test_other_sizes_are_refused(size):
    with pytest.raises(ValueError, match="power of two from 32 to 256"):
        ResidualGenerator(size).init(KEY, jnp.zeros((1, 8)), training=True)


def convolved(x, layer):
    """As a sum over taps, in numpy."""
    h, w = x.shape[1:3]
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return sum(x[:, i : i + h, j : j + w] @ layer["kernel"][i, j] for i in range(3) for j in range(3)) + layer["bias"]


def averaged(x):
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


def randomised(variables, seed=0):
    """Biases and statistics that are not zero, so that they matter."""
    numbers = np.random.default_rng(seed)
    return jax.tree.map(lambda x: np.asarray(np.abs(numbers.normal(size=x.shape)) + 0.1, np.float32), variables)


@pytest.mark.parametrize("num_classes", [0, 3])
def test_a_generators_block_is_what_the_paper_draws(num_classes):
    block = GeneratorBlock(5, jnp.float32, num_classes)
    x = np.random.default_rng(1).normal(size=(4, 4, 6, 3)).astype(np.float32)
    labels = np.array([2, 0, 0, 1]) if num_classes else None
    variables = randomised(outputs(block, x, labels)[1])
    params, stats = variables["params"], variables["batch_stats"]

    def normalised(x, name):
        scale, bias = params[name]["scale"], params[name]["bias"]
        if num_classes:
            scale, bias = scale[labels][:, None, None], bias[labels][:, None, None]
        return np.maximum((x - stats[name]["mean"]) / np.sqrt(stats[name]["var"] + 1e-5) * scale + bias, 0)

    repeated = [np.repeat(np.repeat(y, 2, 1), 2, 2) for y in (x, normalised(x, "norm_0"))]
    inner = convolved(repeated[1], params["conv_0"])
    expected = convolved(normalised(inner, "norm_1"), params["conv_1"])
    expected = expected + repeated[0] @ params["shortcut"]["kernel"] + params["shortcut"]["bias"]
    np.testing.assert_allclose(applied(block, variables, x, labels), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("first", "last", "features"), [(True, False, 5), (False, False, 5), (False, True, 5), (False, True, 3)]
)
def test_a_discriminators_block_is_what_the_paper_draws(first, last, features):
    """Each layer is divided by its own singular value, then comes its bias."""
    block = DiscriminatorBlock(features, jnp.float32, first, last)
    x = np.random.default_rng(1).normal(size=(2, 4, 6, 3)).astype(np.float32)
    variables = randomised(outputs(block, x)[1])
    params = {}
    for name, layer in variables["params"].items():
        vectors = variables["spectral"][name]["spectral_norm"]
        sigma = vectors["v"] @ layer["kernel"].reshape(-1, layer["kernel"].shape[-1]) @ vectors["u"]
        params[name] = {"kernel": layer["kernel"] / sigma, "bias": layer["bias"]}
    inner = convolved(x if first else np.maximum(x, 0), params["conv_0"])
    expected = convolved(np.maximum(inner, 0), params["conv_1"])
    shortcut = x
    if "shortcut" in params:
        shortcut = shortcut @ params["shortcut"]["kernel"] + params["shortcut"]["bias"]
    assert ("shortcut" in params) == (not last or features != 3)
    expected = expected + shortcut if last else averaged(expected + shortcut)
    found = applied(block, variables, x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_initial_weights_are_glorots():
    """Uniform, to the root of 6 / (inputs + outputs); within residual branches times the root of two."""
    block = DiscriminatorBlock(32, jnp.float32, False, False)
    params = jax.jit(functools.partial(block.init, training=True))(KEY, np.zeros((1, 4, 4, 16), np.float32))["params"]
    for name, taps, inputs, gain in (("conv_1", 9, 16, 2**0.5), ("shortcut", 1, 16, 1)):
        limit = gain * np.sqrt(6 / (taps * (inputs + 32)))
        kernel = np.asarray(params[name]["kernel"])
        assert np.abs(kernel).max() == pytest.approx(limit, rel=0.02)
        assert kernel.std() == pytest.approx(limit / np.sqrt(3), rel=0.05)
        assert not np.any(params[name]["bias"])


@pytest.fixture(scope="module")
def conditional(drawn):
    """A small conditional discriminator, its variables, images and their labels."""
    module = ResidualDiscriminator(32, 2, num_classes=3)
    images = np.random.default_rng(0).uniform(-1, 1, (3, 32, 32, 3)).astype(np.float32)
    labels = np.array([0, 0, 2])
    return module, drawn(module, images, labels), images, labels


def test_spectral_norm_holds_every_layer_at_one(conditional):
    module, variables, images, labels = conditional

    def forward(_, spectral):
        inputs = {"params": variables["params"], "spectral": spectral}
        return module.apply(inputs, images, labels, training=True, mutable=["spectral"])[1]["spectral"]

    spectral = jax.jit(lambda s: jax.lax.fori_loop(0, 300, forward, s))(variables["spectral"])
    kernels = traverse_util.flatten_dict(variables["params"], sep="/")
    kernels = {path.removesuffix("/kernel"): k for path, k in kernels.items() if path.endswith("kernel")}
    assert len(kernels) == 4 * 3 + 2  # three layers in each block, the dense one, the projection
    vectors = traverse_util.flatten_dict(spectral, sep="/")
    for path, kernel in kernels.items():
        matrix = np.reshape(kernel, (-1, kernel.shape[-1]))
        u, v = (vectors[f"{path}/spectral_norm/{name}"] for name in "uv")
        assert np.linalg.norm(matrix / (v @ matrix @ u), 2) == pytest.approx(1, abs=1e-3), path


def test_the_class_of_an_image_changes_its_logit_alone(conditional):
    module, variables, images, labels = conditional
    apply = jax.jit(functools.partial(module.apply, training=False))
    logits, others = (apply(variables, images, y) for y in (labels, np.array([1, 0, 2])))
    assert logits[0] != others[0]
    np.testing.assert_array_equal(logits[1:], others[1:])


def test_bfloat16_keeps_parameters_and_results_float32(drawn):
    latents = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
    half, plain = (ResidualGenerator(32, 1, 2, dtype) for dtype in (jnp.bfloat16, jnp.float32))
    variables = drawn(half, latents)  # which are float32
    out, expected = (applied(m, variables, latents) for m in (half, plain))
    assert out.dtype == np.float32
    assert np.any(out != expected)
    np.testing.assert_allclose(out, expected, atol=0.05)
    logits, variables, _ = outputs(ResidualDiscriminator(32, 2, jnp.bfloat16), jnp.zeros((2, 32, 32, 1)))
    assert {x.dtype for x in jax.tree.leaves((variables, logits))} == {np.dtype("float32")}
