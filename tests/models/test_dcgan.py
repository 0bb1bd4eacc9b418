"""The networks: sizes, parameter counts, and PyTorch's numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_oracle

from medgan_jax.models.batch_norm import BatchNorm
from medgan_jax.models.dcgan import Discriminator, Generator, _Convolution
from medgan_jax.ops.winograd import UPSAMPLING_SIZES, upsampling_kernel


def count(variables):
    return sum(x.size for x in jax.tree.leaves(variables["params"]))


def test_published_parameter_counts():
    generator = jax.eval_shape(lambda: Generator(64).init(jax.random.key(0), jnp.zeros((1, 100)), training=True))
    images = jnp.zeros((1, 64, 64, 3))
    discriminator = jax.eval_shape(lambda: Discriminator(64).init(jax.random.key(0), images, training=True))
    assert count(generator) == 3_576_704
    assert count(discriminator) == 2_765_568


@pytest.mark.parametrize(("size", "widest"), [(16, 128), (64, 512), (128, 1024), (256, 2048), (512, 4096)])
def test_channels_double_as_resolution_halves(size, widest):
    generator = jax.eval_shape(lambda: Generator(size).init(jax.random.key(0), jnp.zeros((1, 100)), training=True))
    assert generator["params"]["conv_0"]["kernel"].shape == (4, 4, 100, widest)
    images = jnp.zeros((1, size, size, 3))
    discriminator = jax.eval_shape(lambda: Discriminator(size).init(jax.random.key(0), images, training=True))
    last = max(discriminator["params"], key=lambda name: (name.startswith("conv"), name))
    assert discriminator["params"][last]["kernel"].shape == (4, 4, widest, 1)


@pytest.mark.parametrize("size", [8, 48, 0])
def test_other_sizes_are_refused(size):
    with pytest.raises(ValueError, match="power of two"):
        Generator(size).init(jax.random.key(0), jnp.zeros((1, 8)), training=True)


def test_initial_weights_are_the_published_ones():
    params = jax.jit(lambda: Generator(64).init(jax.random.key(0), jnp.zeros((1, 100)), training=True)["params"])()
    kernel, scale = params["conv_1"]["kernel"], params["norm_0"]["scale"]
    assert abs(kernel.mean()) < 1e-4
    assert kernel.std() == pytest.approx(0.02, rel=0.01)
    assert scale.mean() == pytest.approx(1, abs=0.01)
    assert scale.std() == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize("upsample", UPSAMPLING_SIZES)
def test_outputs_vary_as_much_at_first_however_they_are_enlarged(upsample):
    layer = _Convolution("up", 64, upsample=upsample)
    params = jax.jit(lambda: layer.init(jax.random.key(0), jnp.zeros((1, 2, 2, 64)), training=True)["params"])()
    assert np.sqrt(np.mean(upsampling_kernel(params["kernel"], upsample) ** 2)) == pytest.approx(0.02, rel=0.02)


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


@pytest.mark.parametrize("spectral_norm", [False, True])
def test_batches_judged_together_are_judged_one_after_the_other(spectral_norm):
    """The same logits, gradients and statistics: each batch has its own, and its own power iteration."""
    module = Discriminator(16, 4, spectral_norm)
    images = jax.random.normal(jax.random.key(1), (4, 2, 16, 16, 3)) * jnp.array([1, 3]).reshape(1, 2, 1, 1, 1)
    variables = jax.jit(lambda: module.init(jax.random.key(0), images[:, 0], training=True))()
    mutable = [name for name in variables if name != "params"]

    def together(params):
        logits, stats = module.apply({**variables, "params": params}, images, training=True, mutable=mutable)
        return jnp.sum(jnp.sin(logits)), (logits, stats)

    def in_turn(params):
        stats, logits = variables, []
        for b in range(2):
            out, stats = module.apply({**stats, "params": params}, images[:, b], training=True, mutable=mutable)
            logits.append(out)
        logits = jnp.stack(logits, axis=1)
        return jnp.sum(jnp.sin(logits)), (logits, stats)

    ours, theirs = (jax.jit(jax.grad(f, has_aux=True))(variables["params"]) for f in (together, in_turn))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, theirs)


def test_statistics_of_bfloat16_are_float32():
    """8 bits of mantissa cannot hold the variance of values far from zero."""
    x = (100 + jax.random.normal(jax.random.key(0), (64, 8, 8, 2))).astype(jnp.bfloat16)
    layer = BatchNorm()
    out, updated = layer.apply(
        layer.init(jax.random.key(0), x, training=True), x, training=True, mutable=["batch_stats"]
    )
    values = np.asarray(x, np.float32).reshape(-1, 2)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.1 * values.mean(0), rtol=1e-5)
    np.testing.assert_allclose(updated["batch_stats"]["var"], 0.9 + 0.1 * values.var(0, ddof=1), rtol=1e-3)
    assert out.dtype == jnp.bfloat16
    assert float(jnp.abs(out.astype(jnp.float32).mean())) < 0.02


@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters(network):
    if network == "generator":
        module, inputs, plain = Generator(16, 3, 4, jnp.bfloat16), jnp.ones((2, 8)), Generator(16, 3, 4)
    else:
        module = Discriminator(16, 4, True, jnp.bfloat16)
        inputs, plain = jnp.ones((2, 16, 16, 3)), Discriminator(16, 4, True)
    variables = jax.jit(lambda: module.init(jax.random.key(0), inputs, training=True))()
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    jaxpr = str(jax.make_jaxpr(lambda v: module.apply(v, inputs, training=False))(variables))
    assert "bf16" in jaxpr
    out, expected = (
        jax.jit(m.apply, static_argnames="training")(variables, inputs, training=False) for m in (module, plain)
    )
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, expected, rtol=0.05, atol=0.02)
