"""DCGAN and SNGAN: sizes, parameter counts, PyTorch's numbers, number types."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_oracle

from medgan_jax.models.batch_norm import BatchNorm
from medgan_jax.models.dcgan import Discriminator, Generator
from medgan_jax.ops.upsample import UPSAMPLING_SIZES, upsampling_kernel

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)


def shapes(module, inputs):
    return jax.eval_shape(functools.partial(module.init, training=True), KEY, inputs)["params"]


def count(params):
    return sum(x.size for x in jax.tree.leaves(params))


def test_published_parameter_counts():
    assert count(shapes(Generator(64), jnp.zeros((1, 100)))) == 3_576_704
    assert count(shapes(Discriminator(64), jnp.zeros((1, 64, 64, 3)))) == 2_765_568


@pytest.mark.parametrize(("size", "widest"), [(16, 128), (64, 512), (512, 4096)])
def test_channels_double_as_resolution_halves(size, widest):
    assert shapes(Generator(size), jnp.zeros((1, 100)))["conv_0"]["kernel"].shape == (4, 4, 100, widest)
    params = shapes(Discriminator(size), jnp.zeros((1, size, size, 3)))
    last = max(name for name in params if name.startswith("conv"))
    assert params[last]["kernel"].shape == (4, 4, widest, 1)


@pytest.mark.parametrize("size", [8, 48, 0])
def test_other_sizes_are_refused(size):
    with pytest.raises(ValueError, match="power of two"):
        shapes(Generator(size), jnp.zeros((1, 8)))


@pytest.mark.parametrize("upsample", UPSAMPLING_SIZES)
def test_initial_weights_are_the_published_ones(upsample):
    """The merged kernel varies as much at first, whichever the upsampling."""

    @jax.jit
    def initial():
        params = Generator(16, upsample=upsample).init(KEY, jnp.zeros((1, 100)), training=True)["params"]
        return upsampling_kernel(params["conv_1"]["kernel"], upsample), params["norm_0"]["scale"]

    kernel, scale = (np.asarray(x) for x in initial())
    assert abs(kernel.mean()) < 2e-4
    assert np.sqrt(np.mean(kernel**2)) == pytest.approx(0.02, rel=0.02)
    assert scale.mean() == pytest.approx(1, abs=0.01)
    assert scale.std() == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize("case", torch_oracle.CASES)
def test_outputs_are_pytorchs(case):
    before, step = torch_oracle.load(case, "before"), torch_oracle.load(case, "step0")
    _, channels, size, _ = step["reals"].shape
    generator = Generator(size, channels, features=4)
    discriminator = Discriminator(size, features=4, spectral_norm=case.startswith("sngan"))
    gen, dis = torch_oracle.variables(before, "gen"), torch_oracle.variables(before, "dis")

    @jax.jit
    def outputs(gen, dis, latents, reals):
        fakes, _ = generator.apply(gen, latents, training=True, mutable=["batch_stats"])
        return generator.apply(gen, latents, training=False), discriminator.apply(dis, reals, training=False), fakes

    images, logits, fakes = outputs(gen, dis, step["latents"], torch_oracle.images(step["reals"]))
    np.testing.assert_allclose(images, torch_oracle.images(step["eval_images"]), atol=1e-5)
    np.testing.assert_allclose(logits, step["eval_logits"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(fakes, torch_oracle.images(step["fakes"]), atol=1e-5)


def test_statistics_of_bfloat16_are_float32():
    """8 bits of mantissa cannot hold the variance of values far from zero."""
    x = np.random.default_rng(0).normal(100, 1, (64, 8, 8, 2)).astype(jnp.bfloat16)
    layer = BatchNorm()

    @jax.jit
    def normalised(x):
        return layer.apply(layer.init(KEY, x, training=True), x, training=True, mutable=["batch_stats"])

    out, updated = normalised(x)
    values = np.asarray(x, np.float32).reshape(-1, 2)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.1 * values.mean(0), rtol=1e-5)
    np.testing.assert_allclose(updated["batch_stats"]["var"], 0.9 + 0.1 * values.var(0, ddof=1), rtol=1e-3)
    assert out.dtype == jnp.bfloat16
    assert abs(np.asarray(out, np.float32).mean()) < 0.02


@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters(network, drawn):
    if network == "generator":
        half, plain, inputs = Generator(16, 3, 4, jnp.bfloat16), Generator(16, 3, 4), jnp.ones((2, 8))
    else:
        half, plain = Discriminator(16, 4, True, jnp.bfloat16), Discriminator(16, 4, True)
        inputs = jnp.ones((2, 16, 16, 3))
    variables = drawn(half, inputs)  # which are float32
    assert "bf16" in str(jax.make_jaxpr(lambda v: half.apply(v, inputs, training=False))(variables))
    out, expected = (
        jax.jit(m.apply, static_argnames="training")(variables, inputs, training=False) for m in (half, plain)
    )
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, expected, rtol=0.05, atol=0.02)
