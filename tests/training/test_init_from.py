"""First weights from elsewhere: layers taken whole where they fit, named where they do not, needed only once."""

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
from medgan_jax.training.init_from import load
from medgan_jax.training.state import build_networks, initial_state
from medgan_jax.training.trainer import train
from medgan_jax.workdir import Workdir

same = np.testing.assert_array_equal


@pytest.fixture(scope="session")
def origin(tmp_path_factory):
    """A trained workdir, and its networks' variables."""
    return tmp_path_factory.mktemp("origin") / "run"


@pytest.fixture
def trained(origin, tiny_config):
    if not origin.exists():
        assert train(tiny_config(num_steps=3), origin) == 0
    gen, dis = load_networks(origin, replicated(data_mesh()))
    return origin, gen.variables, dis.variables


def fresh(config, num_classes=0):
    """A state of its shapes, of numbers by its seed: no other property of an initial one matters."""
    numbers = np.random.default_rng(config.seed)
    shapes = jax.eval_shape(lambda: initial_state(build_networks(config, num_classes), config))
    return jax.tree.map(lambda x: jnp.asarray(numbers.standard_normal(x.shape), x.dtype), shapes)


def test_all_layers_are_taken_from_an_equal_training(trained, tiny_config):
    path, gen, dis = trained
    state = fresh(tiny_config(seed=1, ema_decay=0.5))
    begun, lines = load(state, str(path), replicated(data_mesh()))
    assert lines == [f"{title}: all layers from {path} at step 3" for title in ("generator", "discriminator")]
    jax.tree.map(same, (begun.gen.variables, begun.dis.variables), (gen, dis))
    jax.tree.map(same, begun.ema_params, gen["params"])
    jax.tree.map(same, (begun.gen.opt_state, begun.dis.opt_state), (state.gen.opt_state, state.dis.opt_state))
    assert set(dis) == {"params", "batch_stats", "spectral"}
    assert float(jnp.abs(gen["batch_stats"]["norm_0"]["mean"]).max()) > 0  # it was trained


def test_what_does_not_fit_is_left_out_and_named(trained, tiny_config):
    """Longer latents, grey images: the first and last layers differ, the others are taken."""
    path, gen, dis = trained
    state = fresh(tiny_config(seed=1, latent_dim=9, channels=1))
    begun, lines = load(state, str(path), replicated(data_mesh()))
    assert lines == [
        f"generator: conv_1, norm_0, norm_1 from {path} at step 3; left out, as they differ: "
        "conv_0 ((4, 4, 8, 8) there, (4, 4, 9, 8) here), conv_2 ((4, 4, 4, 3) there, (4, 4, 4, 1) here)",
        f"discriminator: conv_1, conv_2, norm_1 from {path} at step 3; left out, as they differ: "
        "conv_0 ((4, 4, 3, 4) there, (4, 4, 1, 4) here)",
    ]
    for ours, theirs, own, taken in (
        (begun.gen, gen, state.gen, ("conv_1", "norm_0", "norm_1")),
        (begun.dis, dis, state.dis, ("conv_1", "conv_2", "norm_1")),
    ):
        for layer in ours.params:
            jax.tree.map(same, ours.params[layer], (theirs if layer in taken else own.variables)["params"][layer])
        jax.tree.map(same, ours.stats["batch_stats"], theirs["batch_stats"])
    for layer, vectors in begun.dis.stats["spectral"].items():
        jax.tree.map(same, vectors, (dis if layer != "conv_0" else state.dis.variables)["spectral"][layer])


def test_without_spectral_norm_the_same_is_computed(trained, tiny_config):
    path, _, dis = trained
    plain, config = tiny_config(arch="dcgan", seed=1), tiny_config()
    begun, _ = load(fresh(plain), str(path), replicated(data_mesh()))
    assert set(begun.dis.stats) == {"batch_stats"}
    images = jax.random.uniform(jax.random.key(0), (3, 16, 16, 3))
    ours = build_networks(plain).discriminator.apply(begun.dis.variables, images, training=False)
    theirs = build_networks(config).discriminator.apply(dis, images, training=False)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_one_network_of_pytorchs(tiny_config, tmp_path):
    """The imported generator generates as before; the discriminator starts anew."""
    path = FOLDER / "netG16.pth"
    state = fresh(tiny_config(channels=1, latent_dim=4, gen_features=2))
    begun, lines = load(state, str(path), replicated(data_mesh()))
    assert lines == [f"generator: all layers from {path}", f"discriminator: none in {path}, so it starts anew"]
    (found,) = load_networks(path, replicated(data_mesh()))
    jax.tree.map(same, begun.gen.variables, found.variables)
    jax.tree.map(same, begun.dis, state.dis)


def test_spectral_norm_fits_a_kernel_that_came_without(tiny_config, tmp_path):
    """The gradient penalty divides by it before any training forward has improved it."""
    plain, config = (tiny_config(arch=arch, loss="wgan-gp", seed=seed) for arch, seed in (("dcgan", 1), ("sngan", 2)))
    networks, origin = build_networks(plain), fresh(plain)
    write_state_dict(tmp_path / "netD.pth", to_state_dict(networks.discriminator, origin.dis.variables))
    begun, _ = load(fresh(config), str(tmp_path / "netD.pth"), replicated(data_mesh()))
    for layer, spectral in begun.dis.stats["spectral"].items():
        kernel = np.asarray(origin.dis.params[layer]["kernel"])
        matrix = kernel.reshape(-1, kernel.shape[-1])
        u, v = (np.asarray(spectral["spectral_norm"][name]) for name in "uv")
        same(kernel, begun.dis.params[layer]["kernel"])
        assert 0.6 < v @ matrix @ u / np.linalg.norm(matrix, 2) < 1 + 1e-5


def saved(config, folder, classes=()):
    """Networks of random numbers, as a training leaves them."""
    networks, state = build_networks(config, len(classes)), fresh(config, len(classes))
    record = {"classes": list(classes)} if classes else {}
    gen, dis = Checkpoints(folder / "generator", keep=1), Checkpoints(folder / "discriminator", keep=1)
    save_generator(gen, 1, state.gen.variables, networks.generator, config.latent_dim, record)
    save_discriminator(dis, 1, state.dis.variables, networks.discriminator, config.channels, record)
    for checkpoints in (gen, dis):
        checkpoints.close()
    return state


def test_residual_networks_are_taken_by_layers(tiny_config, tmp_path):
    """All of them from an equal one; by one of other latents and grey images, what fits."""
    small = {"arch": "resnet", "image_size": 32, "gen_features": 2, "dis_features": 2}
    origin = saved(tiny_config(**small), tmp_path)
    begun, lines = load(fresh(tiny_config(**small, seed=1)), str(tmp_path), replicated(data_mesh()))
    assert lines == [f"{title}: all layers from {tmp_path} at step 1" for title in ("generator", "discriminator")]
    jax.tree.map(same, (begun.gen.variables, begun.dis.variables), (origin.gen.variables, origin.dis.variables))
    own = fresh(tiny_config(**small | {"latent_dim": 9, "channels": 1}, seed=1))
    begun, lines = load(own, str(tmp_path), replicated(data_mesh()))
    left = [line.split("left out, as they differ: ")[1] for line in lines]
    assert left[0].startswith("conv_4 ((3,) and (3, 3, 2, 3) there, (1,) and (3, 3, 2, 1) here), dense_0 (")
    assert left[1].startswith("block_0/conv_0 (")
    assert "block_0/conv_1" not in left[1]
    for collection, name in (("params", "bias"), ("spectral", "spectral_norm")):
        ours, theirs = begun.dis.variables[collection], origin.dis.variables[collection]
        jax.tree.map(same, ours["block_0"]["conv_1"][name], theirs["block_0"]["conv_1"][name])
        jax.tree.map(same, ours["block_0"]["conv_0"][name], own.dis.variables[collection]["block_0"]["conv_0"][name])


def test_a_conditional_training_takes_the_layers_without_classes(trained, tiny_config):
    path, gen, _ = trained
    begun, lines = load(fresh(tiny_config(seed=1), 2), str(path), replicated(data_mesh()))
    assert lines == [
        f"generator: conv_0, conv_1, conv_2 from {path} at step 3; left out, as they differ: "
        "norm_0 ((8,) and (8,) there, (2, 8) and (2, 8) here), norm_1 ((4,) and (4,) there, (2, 4) and (2, 4) here)",
        f"discriminator: conv_0, conv_1, conv_2, norm_1 from {path} at step 3; left out, as they differ: "
        "projection_2 (none there, (2, 8) here)",
    ]
    same(begun.gen.params["conv_1"]["kernel"], gen["params"]["conv_1"]["kernel"])
    assert begun.gen.params["norm_0"]["scale"].shape == (2, 8)


def test_nothing_that_fits_is_refused(trained, tiny_config):
    with pytest.raises(UserError, match=r"no layer there has the shape.*conv_0 \(\(4, 4, 8, 8\) there.*set image_size"):
        load(fresh(tiny_config(gen_features=5, dis_features=5)), str(trained[0]), replicated(data_mesh()))


def test_a_training_begins_with_them_and_resumes_without(trained, tiny_config, tmp_path, capsys):
    """Its first picture is the other's last, of the same latents."""
    path, lent = trained[0], tmp_path / "lent"
    shutil.copytree(path, lent)
    config = tiny_config(init_from=str(lent), num_steps=4)
    assert train(config, tmp_path / "run") == 0
    assert f"generator: all layers from {lent} at step 3" in capsys.readouterr().out
    first, last = Workdir(tmp_path / "run").picture(0), Workdir(path).picture(3)
    assert first.read_bytes() == last.read_bytes()
    shutil.rmtree(lent)
    assert train(tiny_config(init_from=str(lent), num_steps=6), tmp_path / "run") == 0
    with pytest.raises(UserError, match=f"init_from={lent}: no such folder or file"):
        train(config, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    with pytest.raises(UserError, match="differs in init_from"):  # another beginning is another training
        train(tiny_config(num_steps=6), tmp_path / "run")
