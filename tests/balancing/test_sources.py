"""Which images a set is made from, and the clear refusal of generators that do not go together."""

import os
import shutil

import published
import pytest

from medgan_jax.balancing.sources import open_sources
from medgan_jax.config import default_config
from medgan_jax.data.batches import load_dataset
from medgan_jax.errors import UserError
from medgan_jax.sharding import data_mesh


@pytest.fixture
def opened(tmp_path):
    def call(*checkpoints, **data):
        fields = {**default_config().data.to_dict(), "cache_dir": str(tmp_path / "cache"), **data}
        return open_sources(checkpoints, fields, data_mesh())

    return call


@pytest.fixture
def folder_run(saved, lesions, tmp_path):
    """Saves a generator for the folder of lesions, or what `overrides` say."""

    def save(name, **overrides):
        fields = {"data_source": "folder", "data_path": str(lesions), "data_cache_dir": str(tmp_path / "cache")}
        return saved(tmp_path / name, **{**fields, "data_holdout_fraction": 0.4, **overrides})

    return save


def test_a_conditional_run_draws_all_classes_and_held_out_images_stay_out(opened, saved, tiny_config, tmp_path):
    fields = {"data_num_phantoms": 60, "data_holdout_fraction": 0.4, "data_cache_dir": str(tmp_path / "cache")}
    run = saved(tmp_path / "run", conditional=True, **fields)
    drawers, reals = opened(run)
    training, held_out = load_dataset(tiny_config(**fields).data, image_size=16, channels=3)
    assert reals.source.names == training.names and tuple(reals.labels) == training.labels
    assert list(drawers) == ["benign", "malignant"]
    for label, drawer in drawers.items():
        assert drawer.ours.sum() == training.labels.count(label)
        assert len(drawer.held_out) == held_out.labels.count(label)
    (only,) = opened(f"malignant={run}")[0]
    assert only == "malignant"
    with pytest.raises(UserError, match="^--checkpoint=wart=.*run: draws benign, malignant; give a class of it"):
        opened(f"wart={run}")
    with pytest.raises(UserError, match="^--checkpoint: both .*run and .*run draw malignant; give one"):
        opened(run, f"malignant={run}")


def test_a_run_of_one_class_stands_beside_the_reals_of_all(opened, folder_run, lesions):
    """Its class is known; images of others are divided as its own were."""
    run = folder_run("a=b", data_class_filter="malignant")
    drawers, reals = opened(run)
    assert list(drawers) == ["malignant"]
    assert reals.counts == {"benign": 7, "malignant": 3}
    assert drawers["malignant"].ours.all() and len(drawers["malignant"].held_out) == 2
    seen = set(drawers["malignant"].training.names)
    assert seen == {name for name in reals.source.names if name.startswith("malignant")}
    with pytest.raises(UserError, match="^--checkpoint=benign=.*: draws malignant; give a class of it"):
        opened(f"benign={run}")
    assert opened(run, path=str(shutil.copytree(lesions, f"{run}/moved")))[1].counts == reals.counts


def test_a_run_on_the_folder_of_one_class(opened, folder_run, lesions):
    """The images have no labels there; their content says what they are among all."""
    run = folder_run("run", data_path=str(lesions / "malignant"))
    drawers, reals = opened(run, path=str(lesions))
    assert list(drawers) == ["malignant"]
    assert drawers["malignant"].training.names == tuple(
        name.removeprefix("malignant/") for name in reals.source.names if name.startswith("malignant")
    )
    with pytest.raises(UserError, match="the images have no labels, so how many a class has is unknown; sort them"):
        opened(run)


def test_what_one_training_saw_and_another_held_out_is_refused(opened, folder_run):
    malignant = folder_run("m", data_class_filter="malignant")
    drawers, _ = opened(malignant, folder_run("b", data_class_filter="benign"))
    assert sorted(drawers) == ["benign", "malignant"]
    everything = folder_run("all", conditional=True, data_holdout_fraction=0.0)
    with pytest.raises(
        UserError, match="all: was trained on images of malignant/.*.png, which .*m held out; give runs"
    ):
        opened(malignant, f"benign={everything}")


def test_equal_images_of_two_classes_are_held_out_together(opened, folder_run, lesions, tmp_path):
    """What a training of one class held out is nowhere in the set, whatever it is called there."""
    place = shutil.copytree(lesions, tmp_path / "place")
    run = folder_run("run", data_path=str(place), data_class_filter="malignant")
    held_out = set(os.listdir(place / "malignant")) - {
        os.path.basename(name) for name in opened(run)[0]["malignant"].training.names
    }
    for name in held_out:
        shutil.copy(place / "malignant" / name, place / "benign" / f"again_{name}")
    assert not any("again" in name for name in opened(run)[1].source.names)


def test_an_imported_network_needs_to_be_told(opened, lesions):
    path = str(published.FOLDER / "netG16.pth")
    with pytest.raises(UserError, match="does not say which images it goes with; give --data.path"):
        opened(f"malignant={path}")
    with pytest.raises(UserError, match="does not say which class it draws; give --checkpoint=LABEL="):
        opened(path, path=str(lesions))
    with pytest.raises(UserError, match="draws wart, and the classes of the real images are benign, malignant"):
        opened(f"wart={path}", path=str(lesions))
    drawers, reals = opened(f"malignant={path}", path=str(lesions), holdout_fraction=0.4)
    assert reals.counts == {"benign": 7, "malignant": 3}
    assert drawers["malignant"].ours.sum() == 3 and len(drawers["malignant"].held_out) == 2


def test_refuses(opened, folder_run, lesions):
    run = folder_run("run", data_class_filter="malignant")
    mixed = folder_run("mixed")
    for checkpoints, data, says in (
        ((mixed,), {}, "mixed: was trained on images of benign, malignant, and does not tell them apart; train"),
        ((run,), {"class_filter": "benign"}, "^--data.class_filter: the set has all classes"),
        ((run,), {"holdout_fraction": 0.1}, "^--data.holdout_fraction: the training of --checkpoint knows"),
        ((run,), {"path": str(lesions / "benign")}, "have no labels"),
        ((run, str(published.FOLDER / "netG16.pth")), {}, "have 16 px and 3 channels, those of .* 16 px and 1; give"),
        ((run, folder_run("x", data_source="phantom")), {}, "x: was trained on images that are not in .*; give runs"),
    ):
        with pytest.raises(UserError, match=says):
            opened(*checkpoints, **data)
