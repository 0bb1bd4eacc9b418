"""Trials from images to the verdict."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from medgan_jax.data.phantom import phantom_image
from medgan_jax.errors import UserError
from medgan_jax.images import write_png
from medgan_jax.proving.trial import Settings, prove

pytestmark = pytest.mark.slow
SETTINGS = Settings(folds=2, classifier="linear", seeds=2, steps=2, ratios=(0.5,))


@pytest.fixture(scope="module")
def config(tiny_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for number in range(40):
        place = folder / "ab"[number % 2]
        place.mkdir(exist_ok=True)
        write_png(place / f"{number:02}.png", phantom_image(number, seed=0, image_size=16))
    return tiny_config(
        data_source="folder", data_path=str(folder), data_cache_dir=str(folder / ".cache"), num_steps=2, image_size=16,
        conditional=True, sample_every_steps=2, checkpoint_every_steps=2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def done(config, tmp_path_factory):
    out = tmp_path_factory.mktemp("trial") / "out"
    code, verdict = prove(config, out, SETTINGS, progress=False)
    assert code == 0 and verdict.word in ("gain", "harm", "no difference shown")
    return out


def test_a_trial_goes_on_where_it_stopped(config, done, tmp_path):
    shutil.copytree(done, tmp_path / "out")
    for lost in ("verdict.json", "prove.html", "fold_1/attention.npz", "fold_2/scores/augmented_1.npy"):
        (tmp_path / "out" / lost).unlink()
    assert prove(config, tmp_path / "out", SETTINGS, progress=False)[0] == 0
    for name in ("verdict.json", "prove.html"):
        assert (tmp_path / "out" / name).read_bytes() == (done / name).read_bytes()
    with np.load(done / "fold_1/attention.npz") as shown:
        assert len(shown["images"]) == 10  # half as many fakes as reals of the class, and as many of these
    figures = json.loads((done / "verdict.json").read_text())
    assert figures["positive" if "positive" in figures else "trial"]["positive"] == "a"
    assert len(figures["arms"]) == 10 and figures["arms"]["augmented_all_0.5"]["differences"]["brier"]


def test_no_held_out_image_reaches_generators_or_classifiers(config, done, tmp_path):
    """One image has other pixels: where it is held out, nothing changes but what is said of it."""
    folder = tmp_path / "images"
    shutil.copytree(config.data.path, folder)
    write_png(folder / "a/00.png", phantom_image(99, seed=0, image_size=16))
    changed = dataclasses.replace(config, data=dataclasses.replace(config.data, path=str(folder)))
    assert prove(changed, tmp_path / "out", SETTINGS, progress=False)[0] == 0
    same = []
    for fold in ("fold_1", "fold_2"):
        before, after = (json.loads((out / fold / "gan/dataset.json").read_text()) for out in (done, tmp_path / "out"))
        pictures = [(out / fold / "gan/samples/step_00000002.png").read_bytes() for out in (done, tmp_path / "out")]
        unlike = [
            (np.load(path) != np.load(done / fold / "scores" / path.name)).any(1).sum()
            for path in (tmp_path / "out" / fold / "scores").glob("*.npy")
        ]
        if before == after:
            same.append(fold)
            assert pictures[0] == pictures[1] and set(unlike) == {1}
        else:
            assert min(unlike) > 1
    assert len(same) == 1


def test_what_cannot_be_tried(config, done, tmp_path):
    def refused(message, config=config, out=tmp_path / "new", settings=SETTINGS, **options):
        with pytest.raises(UserError, match=message):
            prove(config, out, settings, progress=False, **options)

    refused("holds a trial with other settings", out=done, settings=dataclasses.replace(SETTINGS, seeds=3))
    refused("holds a trial with other config", out=done, config=dataclasses.replace(config, num_steps=3))
    (tmp_path / "used").mkdir()
    (tmp_path / "used/file").touch()
    refused("is not empty and holds no trial", out=tmp_path / "used")
    one = dataclasses.replace(config.data, source="phantom", num_phantoms=30)
    refused("too few images of a class.*malignant", config=dataclasses.replace(config, data=one))
    held = dataclasses.replace(config.data, holdout_fraction=0.2)
    refused("data.holdout_fraction: a trial divides", config=dataclasses.replace(config, data=held))
    refused("init_from=.*leave it out", config=dataclasses.replace(config, init_from=str(done / "fold_1/gan")))
    refused("on_alarm='stop': alarms look at held-out", config=dataclasses.replace(config, on_alarm="stop"))
    # The generators of a trial whose folds are others may have seen what is held out here.
    shutil.copytree(done / "fold_1", tmp_path / "theirs/fold_2")
    shutil.copytree(done / "fold_2", tmp_path / "theirs/fold_1")
    refused("was not trained on exactly the images", generators=tmp_path / "theirs")
    shutil.copytree(done, tmp_path / "begun")
    (tmp_path / "begun/fold_1/scores/plain_0.npy").unlink()
    (tmp_path / "begun/fold_1/generators.json").write_text('{"gan": "another"}')
    refused("holds other generators than those that .*fold_1 was begun with", out=tmp_path / "begun")
