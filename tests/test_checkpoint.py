"""Checkpoints: round trips, which steps stay, and what is refused."""

import functools
import os
import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from medgan_jax.checkpoint import (
    Checkpoints,
    TrainedDiscriminator,
    TrainedGenerator,
    digest,
    load_discriminator,
    load_generator,
    load_networks,
    save_discriminator,
    save_generator,
)
from medgan_jax.errors import UserError
from medgan_jax.models.dcgan import Discriminator, Generator
from medgan_jax.models.fastgan import FastGANGenerator
from medgan_jax.models.resnet import ResidualDiscriminator, ResidualGenerator
from medgan_jax.sharding import data_mesh, replicated

# Orbax lets go of a failed future: the warning comes whenever it is collected, in this test or a later one.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]


@pytest.fixture
def shared():
    return replicated(data_mesh())


def tree(value=1.0):
    return {"a": jnp.full((3, 2), value), "b": {"c": jnp.int32(7)}}


def filled(folder, steps, keep):
    checkpoints = Checkpoints(folder, keep=keep)
    for step in steps:
        checkpoints.save(step, tree(float(step)), {"note": step})
    checkpoints.close()
    return Checkpoints(folder, keep=keep)


def steps_in(folder):
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit())


def test_round_trip(tmp_path, shared):
    checkpoints = filled(tmp_path / "c", [5], keep=2)
    assert checkpoints.latest_step() == 5
    restored = checkpoints.restore(5, jax.eval_shape(tree), shared)
    jax.tree.map(np.testing.assert_array_equal, restored, tree(5.0))
    assert all(leaf.sharding == shared for leaf in jax.tree.leaves(restored))
    assert checkpoints.about(5) == {"note": 5, "digest": digest(tree(5.0))}


@pytest.mark.parametrize("name", ["run [1]", "a*b?", "-{x} %20#\n'\"", "größe 大", "n" * 200])
def test_any_name_of_a_folder(tmp_path, shared, name):
    checkpoints = filled(tmp_path / name, [5], keep=1)
    restored = checkpoints.restore(5, jax.eval_shape(tree), shared)
    jax.tree.map(np.testing.assert_array_equal, restored, tree(5.0))


@pytest.mark.parametrize("name", ["C:\\runs", "gs:/bucket/run", "caf\udce9"])
def test_where_no_checkpoint_can_be_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="can be kept on this machine only, below names in UTF-8 without backslashes"):
        Checkpoints(Path(name), keep=1)
    assert not list(tmp_path.iterdir())


def test_litter_among_checkpoints_counts_as_nothing(tmp_path, shared):
    checkpoints = filled(tmp_path / "c", [5], keep=1)
    for folder in (tmp_path / "c", tmp_path / "c/5", tmp_path / "c/5/tree"):
        (folder / ".DS_Store").touch()
        (folder / "Thumbs.db").touch()
        (folder / ".ipynb_checkpoints").mkdir()
        (folder / "__MACOSX").mkdir()
    checkpoints = Checkpoints(tmp_path / "c", keep=1)
    assert checkpoints.steps() == [5]
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(5, jax.eval_shape(tree), shared), tree(5.0))
    checkpoints.save(6, tree(6.0), {})
    checkpoints.close()
    assert checkpoints.steps() == [6]


def test_the_latest_stay(tmp_path):
    filled(tmp_path / "c", [1, 2, 3, 4], keep=2)
    assert steps_in(tmp_path / "c") == [3, 4]


def test_saving_again_replaces_later_steps(tmp_path, shared):
    checkpoints = filled(tmp_path / "c", [1, 2, 3], keep=3)
    checkpoints.save(2, tree(22.0), {})
    checkpoints.close()
    assert steps_in(tmp_path / "c") == [1, 2]
    restored = Checkpoints(tmp_path / "c", keep=3).restore(2, jax.eval_shape(tree), shared)
    assert float(restored["a"][0, 0]) == 22


def test_killed_while_it_falls_back(tmp_path, monkeypatch):
    """What is half deleted is no checkpoint."""
    checkpoints = filled(tmp_path / "c", [1, 2, 3], keep=3)

    def killed(self):
        next(self.rglob("manifest.ocdbt")).unlink()
        raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(type(epath.Path(tmp_path)), "rmtree", killed)
        with pytest.raises(UserError, match="cannot fall back to step 1"):
            checkpoints.fall_back(1)
    assert Checkpoints(tmp_path / "c", keep=3).latest_step() == 2
    assert steps_in(tmp_path / "c") == [1, 2]
    checkpoints = Checkpoints(tmp_path / "c", keep=3)
    checkpoints.fall_back(1)
    assert checkpoints.steps() == steps_in(tmp_path / "c") == [1]
    assert len(list((tmp_path / "c").iterdir())) == 1


def test_donated_arrays_do_not_reach_the_save(tmp_path, shared):
    """A save copies: what happens to the arrays afterwards, while it is written, changes nothing."""
    checkpoints = Checkpoints(tmp_path / "c", keep=1)
    state = jax.device_put({"x": jnp.arange(2**20, dtype=jnp.float32)}, shared)
    add = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    checkpoints.save(1, state, {})
    for _ in range(20):
        state = add(state)
    checkpoints.close()
    restored = Checkpoints(tmp_path / "c", keep=1).restore(1, jax.eval_shape(lambda: state), shared)
    np.testing.assert_array_equal(restored["x"], np.arange(2**20))


def test_another_structure_is_refused(tmp_path, shared):
    checkpoints = filled(tmp_path / "c", [5], keep=1)
    a, c = jax.ShapeDtypeStruct((3, 2), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    other_shape = {"a": jax.ShapeDtypeStruct((3, 4), jnp.float32), "b": {"c": c}}
    for other in (other_shape, {"a": a, "b": {"misspelt": c}}, {"a": a}):
        with pytest.raises(UserError, match="step 5 is damaged or of another architecture"):
            checkpoints.restore(5, other, shared)


def test_damage_is_refused(tmp_path, shared):
    checkpoints = filled(tmp_path / "c", [5], keep=1)
    largest = max((tmp_path / "c/5").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    os.truncate(largest, largest.stat().st_size // 2)
    with pytest.raises(UserError, match=r"step 5 is damaged.*delete"):
        checkpoints.restore(5, jax.eval_shape(tree), shared)


def test_reading_touches_nothing(tmp_path):
    writer = Checkpoints(tmp_path / "c", keep=1)
    writer.save(5, tree(), {})
    writer.close()
    (tmp_path / "c/6.orbax-checkpoint-tmp").mkdir()  # another process is saving
    before = sorted(tmp_path.rglob("*"))
    reader = Checkpoints(tmp_path / "c", keep=None)
    assert reader.latest_step() == 5
    reader.about(5)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture(scope="module")
def shared_network():
    """A generator and its variables."""
    module = Generator(16, 3, 2, num_classes=2, upsample="nearest")
    return module, made_up(module, jnp.zeros((1, 4)), jnp.zeros(1, int))


def made_up(module, *inputs):
    """Variables of arbitrary numbers: making initial ones takes long."""
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    shapes = jax.eval_shape(functools.partial(module.init, training=True), keys, *inputs)
    return jax.device_put(jax.tree.map(lambda x: np.arange(x.size, dtype=x.dtype).reshape(x.shape), shapes))


@pytest.fixture
def run(tmp_path, shared_network):
    """A workdir with that generator."""
    module, variables = shared_network
    checkpoints = Checkpoints(tmp_path / "run/generator", keep=1)
    save_generator(checkpoints, 40, variables, module, 4, {"note": 1, "classes": ["benign", "malignant"]})
    checkpoints.close()
    return tmp_path / "run"


def test_generator_needs_only_its_folder(run, shared, shared_network, tmp_path):
    module, variables = shared_network
    shutil.copytree(run / "generator", tmp_path / "elsewhere")
    for path in (run, run / "generator", tmp_path / "elsewhere"):
        loaded = load_generator(path, shared)
        assert (loaded.module, loaded.step, loaded.latent_dim, loaded.about["note"]) == (module, 40, 4, 1)
        assert loaded.classes == ("benign", "malignant")
        jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)
        assert loaded.digest == digest(variables)
    with pytest.raises(ValueError, match="cannot be saved with"):
        save_generator(Checkpoints(run / "generator", keep=1), 41, variables, module, 4, {"classes": ["one"]})


@pytest.mark.parametrize("step", [40, 41])
def test_a_step_that_a_training_replaces_while_it_is_read(run, shared, shared_network, monkeypatch, step):
    module, variables = shared_network
    replaced = jax.tree.map(lambda x: x + 1, variables)
    about = Checkpoints.about

    def late(self, read_step):
        monkeypatch.undo()
        training = Checkpoints(self.folder, keep=1)
        save_generator(training, step, replaced, module, 4, {"classes": ["benign", "malignant"]})
        training.close()
        return about(self, read_step)

    monkeypatch.setattr(Checkpoints, "about", late)
    loaded = load_generator(run, shared)
    assert (loaded.step, loaded.digest) == (step, digest(replaced))


def test_a_discriminator_needs_only_its_folder(run, shared):
    module = Discriminator(16, 2, spectral_norm=True, batch_norm=False, dropout=0.5)
    variables = made_up(module, jnp.zeros((1, 16, 16, 1)))
    checkpoints = Checkpoints(run / "discriminator", keep=1)
    save_discriminator(checkpoints, 40, variables, module, 1, {"note": 1})
    checkpoints.close()
    for path in (run, run / "discriminator"):
        loaded = load_discriminator(path, shared)
        assert (loaded.module, loaded.step, loaded.channels, loaded.about["note"]) == (module, 40, 1, 1)
        jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)
        assert loaded.digest == digest(variables)
    assert [type(network) for network in load_networks(run, shared)] == [TrainedGenerator, TrainedDiscriminator]
    with pytest.raises(UserError, match="holds a discriminator and no generator; give a training's workdir"):
        load_generator(run / "discriminator", shared)
    with pytest.raises(UserError, match="holds a generator and no discriminator; give a discriminator folder"):
        load_discriminator(run / "generator", shared)


def test_other_networks_come_back(tmp_path, shared):
    for module, save, inputs in (
        (ResidualGenerator(32, 1, 2), save_generator, jnp.zeros((1, 4))),
        (FastGANGenerator(32, 1, 1), save_generator, jnp.zeros((1, 4))),
        (ResidualDiscriminator(32, 2), save_discriminator, jnp.zeros((1, 32, 32, 1))),
    ):
        variables = made_up(module, inputs)
        checkpoints = Checkpoints(tmp_path / type(module).__name__, keep=1)
        save(checkpoints, 1, variables, module, inputs.shape[-1], {})
        checkpoints.close()
        (loaded,) = load_networks(tmp_path / type(module).__name__, shared)
        assert loaded.module == module
        jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)


@pytest.mark.parametrize("changes", [{"network": "x"}, {"num_classes": 0}, {"depth": 3}, {"image_size": 17}])
def test_an_architecture_that_is_not_ours_is_refused(changes, run, shared, shared_network):
    """Such as one of a later version."""
    about = load_generator(run, shared).about
    checkpoints = Checkpoints(run / "generator", keep=1)
    checkpoints.save(41, shared_network[1], about | {"generator": about["generator"] | changes})
    checkpoints.close()
    with pytest.raises(UserError, match="step 41 does not describe a generator"):
        load_generator(run, shared)


def test_a_workdir_of_several_seeds_names_one_of_them(tmp_path, shared):
    for seed in (1, 0):
        (tmp_path / f"seed_{seed}/generator").mkdir(parents=True)
    with pytest.raises(UserError, match=r"holds no generator; give one of its seeds, such as .*/seed_0$"):
        load_generator(tmp_path, shared)


def test_digest_sees_every_number_name_shape_and_type():
    ones = np.ones((2, 3), np.float32)
    one_more = ones.copy()
    one_more[1, 2] += 1e-6
    trees = ({"a": ones}, {"a": one_more}, {"b": ones}, {"a": ones.T}, {"a": ones.view(np.int32)})
    assert len({digest(tree) for tree in trees}) == 5


def test_numbers_that_changed_on_the_disk_are_refused(tmp_path, shared):
    """Orbax itself reads flipped bits without a word."""
    values = {"x": jnp.asarray(np.random.default_rng(0).normal(size=4096), jnp.float32)}
    checkpoints = Checkpoints(tmp_path / "c", keep=1)
    checkpoints.save(5, values, {})
    checkpoints.close()
    about = next(path for path in (tmp_path / "c/5/about").rglob("metadata"))
    about.write_text(about.read_text().replace(digest(values), digest(tree())))
    with pytest.raises(UserError, match="not those that were saved"):
        Checkpoints(tmp_path / "c", keep=1).restore(5, jax.eval_shape(lambda: values), shared)


def test_leftovers_of_a_killed_save_are_cleared(tmp_path):
    writer = Checkpoints(tmp_path / "c", keep=1)
    writer.save(5, tree(), {})
    writer.close()
    (tmp_path / "c/6.orbax-checkpoint-tmp").mkdir()
    assert Checkpoints(tmp_path / "c", keep=1).latest_step() == 5
    deadline = time.monotonic() + 10  # Orbax clears them in the background
    while (tmp_path / "c/6.orbax-checkpoint-tmp").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not (tmp_path / "c/6.orbax-checkpoint-tmp").exists()


def test_what_holds_no_generator_is_refused(tmp_path, shared):
    (tmp_path / "training/generator").mkdir(parents=True)  # without a step
    (tmp_path / "file").write_text("hello")
    for name, says in (
        ("missing", "no such folder"),
        ("training", "holds no generator"),
        ("training/generator", "holds no generator"),
        ("file", "is a text, 'hello'; "),
    ):
        with pytest.raises(UserError, match=f"^{tmp_path / name}: .*{says}"):
            load_generator(tmp_path / name, shared)
