"""The training step with FastGAN's generator and a projected discriminator: PyTorch's numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import projected_oracle
import pytest
from flax import traverse_util

from medgan_jax.sharding import data_mesh, replicated, sharded
from medgan_jax.training.state import NetworkState, build_networks, initial_state
from medgan_jax.training.step import discriminator_update, generator_forward, generator_update

pytestmark = pytest.mark.slow

KEY = jax.random.key(0)  # nothing is drawn
FIELDS = {
    "arch": "fastgan", "dis": "projected", "loss": "hinge", "image_size": 64, "latent_dim": 8, "gen_features": 1,
    "dis_features": 64, "adam_beta1": 0.0, "adam_beta2": 0.99, "batch_size": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def oracle():
    with np.load(projected_oracle.EXPECTED) as file:
        return dict(file)


def drawn(tree, prefix):
    """Variables with the oracle's numbers; the left singular vectors follow from the right ones."""
    flat = traverse_util.flatten_dict(tree, sep="/")
    return traverse_util.unflatten_dict(
        {name: projected_oracle.drawn(f"{prefix}/{name}", leaf.shape) for name, leaf in flat.items()}, sep="/"
    )


def test_a_golden_step_on_two_devices_is_pytorchs(tiny_config, oracle):
    mesh = data_mesh()
    assert mesh.size == 2
    config = tiny_config(**FIELDS)
    networks = build_networks(config)
    frozen = networks.frozen | {
        kind: [projected_oracle.drawn(f"frozen/{kind}/{i}", x.shape) for i, x in enumerate(networks.frozen[kind])]
        for kind in ("channels", "scales")
    }
    networks = networks.replace(frozen=frozen)
    shapes = jax.eval_shape(functools.partial(initial_state, config=config), networks)

    def network_state(name, optimizer):
        variables = drawn(getattr(shapes, name).variables, name)
        params = variables.pop("params")
        return NetworkState(params=params, stats=variables, opt_state=optimizer.init(params))

    @functools.partial(jax.jit, out_shardings=replicated(mesh))
    def iterate(networks, gen, dis, reals, latents):
        bound = {"networks": networks, "config": config}
        fakes, vjp, stats = generator_forward(gen, latents, networks=networks)
        shown, shown_vjp = jax.vjp(networks.discriminator_inputs, fakes)
        maps = networks.discriminator_inputs(reals)
        dis, metrics = discriminator_update(dis, maps, shown, jnp.ones(4), KEY, **bound)
        gen, dis_stats, more = generator_update(gen, dis, shown, lambda y: vjp(*shown_vjp(y)), stats, KEY, **bound)
        return gen, dis.replace(stats=dis_stats), metrics | more, fakes, maps

    gen, dis = network_state("gen", networks.gen_optimizer), network_state("dis", networks.dis_optimizer)
    shared, batch = jax.device_put((networks, gen, dis), replicated(mesh)), projected_oracle.inputs()
    with jax.set_mesh(mesh):
        gen, dis, metrics, fakes, maps = iterate(*shared, *jax.device_put(batch, sharded(mesh)))
    assert metrics["loss_dis"] == pytest.approx(float(oracle["loss_dis"]), rel=1e-5)
    # Adam's first step is the sign of each gradient, so those that are nearly 0 make what follows differ a little.
    assert metrics["loss_gen"] == pytest.approx(float(oracle["loss_gen"]), rel=1e-3)
    found = {"fakes": fakes} | {f"map_{i}": x for i, x in enumerate(maps)}
    for name, network in (("gen", gen), ("dis", dis)):
        gradient = network.opt_state.inner_state[0].mu  # Adam's first moment, as beta1 is 0
        flat = traverse_util.flatten_dict({"params": gradient, **network.stats}, sep="/")
        found |= {f"{name}/{path}": leaf for path, leaf in flat.items() if not path.endswith(("/v", "/strength"))}
    assert set(found) == {name for name in oracle if not name.startswith("loss")}
    for name, x in found.items():
        ours, theirs = projected_oracle.summary(np.asarray(x)), oracle[name]
        # Single numbers of a gradient jump where an activation is at the bend of its ReLU; the norm hardly moves.
        tolerance = 3e-2 if "/params/" in name else 1e-3
        np.testing.assert_allclose(ours[1:], theirs[1:], rtol=0, atol=tolerance * np.abs(theirs).max(), err_msg=name)
        assert ours[0] == pytest.approx(theirs[0], rel=2e-2 if "gen/params/" in name else 1e-3), name
