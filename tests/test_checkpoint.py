"""Checkpoints: round trips, which steps stay, and what is refused."""

import os
import shutil
import time

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
    load_either,
    load_generator,
    save_discriminator,
    save_generator,
)
from medgan_jax.errors import UserError
from medgan_jax.models.dcgan import Discriminator, Generator
from medgan_jax.models.resnet import ResidualDiscriminator, ResidualGenerator
from medgan_jax.sharding import data_mesh, replicated


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


@pytest.mark.parametrize(
    "other",
    [
        {"a": jax.ShapeDtypeStruct((3, 4), jnp.float32), "b": {"c": jax.ShapeDtypeStruct((), jnp.int32)}},
        {"a": jax.ShapeDtypeStruct((3, 2), jnp.float32), "b": {"misspelt": jax.ShapeDtypeStruct((), jnp.int32)}},
        {"a": jax.ShapeDtypeStruct((3, 2), jnp.float32)},
    ],
)
def test_another_structure_is_refused(tmp_path, shared, other):
    checkpoints = filled(tmp_path / "c", [5], keep=1)
    with pytest.raises(UserError, match="step 5 is damaged or of another architecture"):
        checkpoints.restore(5, other, shared)


def test_damage_is_refused(tmp_path, shared):
    checkpoints = filled(tmp_path / "c", [5], keep=1)
    largest = max((tmp_path / "c/5").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    os.truncate(largest, largest.stat().st_size // 2)
    with pytest.raises(UserError, match=r"step 5 is damaged.*delete"):
        checkpoints.restore(5, jax.eval_shape(tree), shared)


def test_reading_touches_nothing(tmp_path):
    filled(tmp_path / "c", [5], keep=1)
    (tmp_path / "c/6.orbax-checkpoint-tmp").mkdir()  # another process is saving
    before = sorted(tmp_path.rglob("*"))
    reader = Checkpoints(tmp_path / "c", keep=None)
    assert reader.latest_step() == 5
    reader.about(5)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture
def workdir(tmp_path, tiny_config):
    config = tiny_config()
    module = Generator(config.image_size, config.channels, config.gen_features)
    variables = module.init(jax.random.key(3), jnp.zeros((1, config.latent_dim)), training=True)
    generators = Checkpoints(tmp_path / "run/generator", keep=1)
    save_generator(generators, 40, variables, module, config.latent_dim, {"config": config.to_dict()})
    generators.close()
    return tmp_path / "run", module, variables


def test_generator_needs_only_its_folder(workdir, shared, tmp_path):
    run, module, variables = workdir
    shutil.copytree(run / "generator", tmp_path / "elsewhere")
    for path in (run, run / "generator", tmp_path / "elsewhere"):
        loaded = load_generator(path, shared)
        assert (loaded.module, loaded.step, loaded.latent_dim) == (module, 40, 8)
        jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)
        assert loaded.about["config"]["arch"] == "sngan"
        architecture = {"image_size": 16, "channels": 3, "features": 4, "dtype": "float32", "latent_dim": 8}
        assert loaded.about["generator"] == architecture  # as folders of earlier versions have it


def test_a_discriminator_needs_only_its_folder(workdir, shared, tmp_path):
    module = Discriminator(16, 2, spectral_norm=True, batch_norm=False)
    images = jnp.zeros((1, 16, 16, 1))
    variables = jax.jit(lambda: module.init(jax.random.key(3), images, training=True))()
    checkpoints = Checkpoints(tmp_path / "run/discriminator", keep=1)
    save_discriminator(checkpoints, 40, variables, module, 1, {"note": 1})
    checkpoints.close()
    for path in (tmp_path / "run", tmp_path / "run/discriminator"):
        loaded = load_discriminator(path, shared)
        assert (loaded.module, loaded.step, loaded.channels, loaded.about["note"]) == (module, 40, 1, 1)
        jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)
        assert loaded.digest == digest(variables)
    assert type(load_either(tmp_path / "run", shared)) is TrainedGenerator
    assert type(load_either(tmp_path / "run/discriminator", shared)) is TrainedDiscriminator
    with pytest.raises(UserError, match="holds a discriminator and no generator; give a training's workdir"):
        load_generator(tmp_path / "run/discriminator", shared)
    with pytest.raises(UserError, match="holds a generator and no discriminator; give a discriminator folder"):
        load_discriminator(tmp_path / "run/generator", shared)


GENERATORS = {
    "resnet": (ResidualGenerator(32, 1, 2), {"network": "resnet"}),
    "conditional": (Generator(16, 3, 2, num_classes=2), {"num_classes": 2}),
    "both": (ResidualGenerator(32, 3, 2, num_classes=2), {"network": "resnet", "num_classes": 2}),
    "enlarging": (Generator(16, 3, 2, upsample="nearest"), {"upsample": "nearest"}),
}
DISCRIMINATORS = {
    "resnet": ResidualDiscriminator(32, 2),
    "conditional": Discriminator(16, 2, spectral_norm=True, num_classes=2),
    "both": ResidualDiscriminator(32, 2, num_classes=2),
}


def initialised(module, *inputs):
    labels = jnp.zeros(1, jnp.int32) if module.num_classes else None
    return jax.jit(lambda: module.init(jax.random.key(3), *inputs, labels, training=True))()


@pytest.mark.parametrize("case", GENERATORS)
def test_other_generators_come_back(case, tmp_path, shared):
    module, described = GENERATORS[case]
    classes = ["benign", "malignant"][: module.num_classes]
    variables = initialised(module, jnp.zeros((1, 4)))
    checkpoints = Checkpoints(tmp_path / "generator", keep=1)
    record = {"classes": classes} if classes else {}
    save_generator(checkpoints, 1, variables, module, 4, record)
    checkpoints.close()
    loaded = load_generator(tmp_path, shared)
    assert (loaded.module, loaded.classes, loaded.latent_dim) == (module, tuple(classes), 4)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)
    usual = {"image_size": module.image_size, "channels": module.channels, "features": 2, "dtype": "float32"}
    assert loaded.about["generator"] == {**usual, **described, "latent_dim": 4}
    with pytest.raises(ValueError, match="cannot be saved with"):
        save_generator(checkpoints, 2, variables, module, 4, {"classes": ["one"]})


@pytest.mark.parametrize("case", DISCRIMINATORS)
def test_other_discriminators_come_back(case, tmp_path, shared):
    module = DISCRIMINATORS[case]
    variables = initialised(module, jnp.zeros((1, module.image_size, module.image_size, 1)))
    checkpoints = Checkpoints(tmp_path / "discriminator", keep=1)
    save_discriminator(checkpoints, 1, variables, module, 1, {"classes": ["benign", "malignant"]})
    checkpoints.close()
    loaded = load_discriminator(tmp_path, shared)
    assert loaded.module == module
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)


@pytest.mark.parametrize(
    "changes", [{"network": "transformer"}, {"num_classes": 2}, {"depth": 3}, {"network": "resnet"}]
)
def test_an_architecture_that_is_not_ours_is_refused(changes, workdir, shared, tmp_path):
    """Such as one of a later version; 16 px is too small for a residual one."""
    _, module, variables = workdir
    about = {"image_size": 16, "channels": 3, "features": 4, "dtype": "float32", "latent_dim": 8}
    checkpoints = Checkpoints(tmp_path / "generator", keep=1)
    checkpoints.save(1, variables, {"generator": about | changes})
    checkpoints.close()
    with pytest.raises(UserError, match="step 1 does not describe a generator"):
        load_generator(tmp_path / "generator", shared)


def test_a_workdir_of_several_seeds_names_one_of_them(tmp_path, shared):
    for seed in (1, 0):
        (tmp_path / f"seed_{seed}/generator").mkdir(parents=True)
    with pytest.raises(UserError, match=r"holds no generator; give one of its seeds, such as .*/seed_0$"):
        load_generator(tmp_path, shared)


def test_digest_sees_every_number_name_shape_and_type(workdir, shared):
    run, _, _ = workdir
    loaded = load_generator(run, shared)
    assert digest(loaded.variables) == loaded.digest
    leaves, structure = jax.tree.flatten(loaded.variables)
    for i, leaf in enumerate(leaves):
        changed = jax.tree.unflatten(structure, [*leaves[:i], leaf + 1e-6, *leaves[i + 1 :]])
        assert digest(changed) != loaded.digest
    ones = np.ones((2, 3), np.float32)
    others = ({"a": ones}, {"b": ones}, {"a": ones.T}, {"a": ones.view(np.int32)})
    assert len({digest(other) for other in others}) == 4


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
    filled(tmp_path / "c", [5], keep=1)
    (tmp_path / "c/6.orbax-checkpoint-tmp").mkdir()
    assert Checkpoints(tmp_path / "c", keep=1).latest_step() == 5
    deadline = time.monotonic() + 10  # Orbax clears them in the background
    while (tmp_path / "c/6.orbax-checkpoint-tmp").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not (tmp_path / "c/6.orbax-checkpoint-tmp").exists()


@pytest.mark.parametrize("kind", ["missing", "empty", "file", "training without a step"])
def test_what_holds_no_generator_is_refused(tmp_path, shared, kind):
    path = tmp_path / "x"
    if kind == "empty":
        path.mkdir()
    elif kind == "file":
        path.write_text("hello")
    elif kind == "training without a step":
        (path / "generator").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no such folder|holds no generator|no file of PyTorch") as caught:
        load_generator(path, shared)
    assert str(path) in str(caught.value)
