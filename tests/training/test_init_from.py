"""Initial weights from another training: layers are copied where they fit, and named where they do not."""

import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from published import FOLDER

from medgan_jax.checkpoint import Checkpoints, load_networks, save_discriminator, save_generator
from medgan_jax.compat.torch.convert import to_state_dict
from medgan_jax.compat.torch.write import write_state_dict
from medgan_jax.errors import UserError
from medgan_jax.sharding import data_mesh, replicated
from medgan_jax.training import init_from
from medgan_jax.training.callback import Callback
from medgan_jax.training.state import build_networks, initial_state
from medgan_jax.training.trainer import train


def assert_same(*trees):
    jax.tree.map(np.testing.assert_array_equal, *trees)


def load(state, path):
    return init_from.load(state, str(path), replicated(data_mesh()))


def random_state(config, num_classes=0):
    """A state of arbitrary positive numbers, which depend on `config.seed`."""
    numbers = np.random.default_rng(config.seed)
    shapes = jax.eval_shape(lambda: initial_state(build_networks(config, num_classes), config))
    return jax.tree.map(lambda x: jnp.asarray(numbers.uniform(0.5, 1.5, x.shape), x.dtype), shapes)


def saved(config, folder):
    """The networks of a state, saved at step 3 as a training does; returns the state."""
    networks, state = build_networks(config), random_state(config)
    gen, dis = Checkpoints(folder / "generator", keep=1), Checkpoints(folder / "discriminator", keep=1)
    save_generator(gen, 3, state.gen.variables, networks.generator, config.latent_dim, {})
    save_discriminator(dis, 3, state.dis.variables, networks.discriminator, config.channels, {})
    for checkpoints in (gen, dis):
        checkpoints.close()
    return state


@pytest.fixture(scope="module")
def source(tmp_path_factory, tiny_config):
    """A folder with both networks, and their state."""
    path = tmp_path_factory.mktemp("source")
    return path, saved(tiny_config(), path)


def test_all_layers_are_copied_from_equal_networks(source, tiny_config):
    path, theirs = source
    state = random_state(tiny_config(seed=1, ema_decay=0.5))
    loaded, lines = load(state, path)
    assert lines == [f"{title}: all layers from {path} at step 3" for title in ("generator", "discriminator")]
    assert_same((loaded.gen.variables, loaded.dis.variables), (theirs.gen.variables, theirs.dis.variables))
    assert_same(loaded.ema_params, theirs.gen.params)
    assert_same((loaded.gen.opt_state, loaded.dis.opt_state), (state.gen.opt_state, state.dis.opt_state))


def test_layers_of_other_shapes_are_left_out_and_named(source, tiny_config):
    """Longer latents, grey images: the first and last layers differ."""
    path, theirs = source
    state = random_state(tiny_config(seed=1, latent_dim=9, channels=1))
    loaded, lines = load(state, path)
    assert lines == [
        f"generator: conv_1, norm_0, norm_1 from {path} at step 3; left out, as they differ: "
        "conv_0 ((4, 4, 8, 8) there, (4, 4, 9, 8) here), conv_2 ((4, 4, 4, 3) there, (4, 4, 4, 1) here)",
        f"discriminator: conv_1, conv_2, norm_1 from {path} at step 3; left out, as they differ: "
        "conv_0 ((4, 4, 3, 4) there, (4, 4, 1, 4) here)",
    ]
    for name, skipped in (("gen", ("conv_0", "conv_2")), ("dis", ("conv_0",))):
        ours, other, own = (getattr(s, name).variables for s in (loaded, theirs, state))
        for collection in ours:
            for layer, values in ours[collection].items():
                assert_same(values, (own if layer in skipped else other)[collection][layer])


def test_a_discriminator_without_spectral_norm_gets_divided_kernels(source, tiny_config):
    plain, config = tiny_config(arch="dcgan", seed=1), tiny_config()
    loaded, _ = load(random_state(plain), source[0])
    images = jax.random.uniform(jax.random.key(0), (3, 16, 16, 3))
    evaluate = jax.jit(lambda module, v: module.apply(v, images, training=False), static_argnums=0)
    ours = evaluate(build_networks(plain).discriminator, loaded.dis.variables)
    theirs = evaluate(build_networks(config).discriminator, source[1].dis.variables)
    assert np.all(np.isfinite(theirs))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_spectral_norm_gets_vectors_for_a_kernel_saved_without(tiny_config, tmp_path):
    """The gradient penalty divides by the singular value before any training forward has improved it."""
    plain, config = (tiny_config(arch=arch, loss="wgan-gp", seed=seed) for arch, seed in (("dcgan", 1), ("sngan", 2)))
    theirs = random_state(plain)
    write_state_dict(tmp_path / "netD.pth", to_state_dict(build_networks(plain).discriminator, theirs.dis.variables))
    loaded, _ = load(random_state(config), tmp_path / "netD.pth")
    for layer, spectral in loaded.dis.stats["spectral"].items():
        kernel = np.asarray(loaded.dis.params[layer]["kernel"])
        assert_same(kernel, theirs.dis.params[layer]["kernel"])
        matrix = kernel.reshape(-1, kernel.shape[-1])
        u, v = (np.asarray(spectral["spectral_norm"][name]) for name in "uv")
        assert 0.6 < v @ matrix @ u / np.linalg.norm(matrix, 2) < 1 + 1e-5


def test_one_network_from_a_pytorch_file(tiny_config):
    path = FOLDER / "netG16.pth"
    state = random_state(tiny_config(channels=1, latent_dim=4, gen_features=2))
    loaded, lines = load(state, path)
    assert lines == [f"generator: all layers from {path}", f"discriminator: none in {path}, so it starts anew"]
    (theirs,) = load_networks(path, replicated(data_mesh()))
    assert_same(loaded.gen.variables, theirs.variables)
    assert_same(loaded.dis, state.dis)


def test_layers_of_residual_blocks_are_copied_one_by_one(tiny_config, tmp_path):
    small = {"arch": "resnet", "image_size": 32, "gen_features": 2, "dis_features": 2}
    theirs = saved(tiny_config(**small), tmp_path)
    state = random_state(tiny_config(**small | {"latent_dim": 9, "channels": 1}, seed=1))
    loaded, lines = load(state, tmp_path)
    gen, dis = (line.split("left out, as they differ: ")[1] for line in lines)
    assert gen.startswith("conv_4 ((3,) and (3, 3, 2, 3) there, (1,) and (3, 3, 2, 1) here), dense_0 (")
    assert dis.startswith("block_0/conv_0 (") and "block_0/conv_1" not in dis
    for collection, name in (("params", "bias"), ("spectral", "spectral_norm")):
        ours, other, own = (s.dis.variables[collection]["block_0"] for s in (loaded, theirs, state))
        assert_same(ours["conv_1"][name], other["conv_1"][name])
        assert_same(ours["conv_0"][name], own["conv_0"][name])


def test_a_conditional_training_copies_the_layers_without_classes(source, tiny_config):
    path, theirs = source
    loaded, lines = load(random_state(tiny_config(seed=1), 2), path)
    assert lines == [
        f"generator: conv_0, conv_1, conv_2 from {path} at step 3; left out, as they differ: "
        "norm_0 ((8,) and (8,) there, (2, 8) and (2, 8) here), norm_1 ((4,) and (4,) there, (2, 4) and (2, 4) here)",
        f"discriminator: conv_0, conv_1, conv_2, norm_1 from {path} at step 3; left out, as they differ: "
        "projection_2 (none there, (2, 8) here)",
    ]
    assert_same(loaded.gen.params["conv_1"], theirs.gen.params["conv_1"])


def test_networks_of_which_no_layer_fits_are_refused(source, tiny_config):
    with pytest.raises(UserError, match=r"no layer there has the shape.*conv_0 \(\(4, 4, 8, 8\) there.*set image_size"):
        load(random_state(tiny_config(gen_features=5, dis_features=5)), source[0])


class FirstWeights(Callback):
    """Keeps a copy of the generator's parameters before the first step."""

    def on_start(self, run, state):
        self.params = jax.device_get(state.gen.params)


@pytest.mark.slow
def test_a_run_needs_them_only_when_it_starts(source, tiny_config, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    lent, first = tmp_path / "lent", FirstWeights()
    shutil.copytree(source[0], lent)
    fields = {"init_from": str(lent), "data_cache_dir": str(tmp_path / "cache")}
    assert train(tiny_config(num_steps=1, **fields), tmp_path / "run", callbacks=[first]) == 0
    assert f"generator: all layers from {lent} at step 3" in caplog.text
    assert_same(first.params, source[1].gen.params)
    shutil.rmtree(lent)
    assert train(tiny_config(num_steps=2, **fields), tmp_path / "run") == 0
    with pytest.raises(UserError, match=f"init_from={lent}: no such folder or file"):
        train(tiny_config(**fields), tmp_path / "other")
    assert not (tmp_path / "other").exists()
    with pytest.raises(UserError, match="differs in init_from"):
        train(tiny_config(num_steps=2, **fields | {"init_from": ""}), tmp_path / "run")
