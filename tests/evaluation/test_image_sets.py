"""Which images are compared, and the clear refusal of those that cannot be."""

import functools
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import published
import pytest
from PIL import Image

from configs import default
from medgan_jax.checkpoint import TrainedGenerator, load_generator
from medgan_jax.config import parse_config
from medgan_jax.data.batches import load_dataset
from medgan_jax.errors import UserError
from medgan_jax.evaluation import image_sets
from medgan_jax.images import write_png
from medgan_jax.metrics.distribution.features import PIXELS, PYRAMID, efficientnet_features
from medgan_jax.provenance import png_text
from medgan_jax.sampling import sample_batches, seeded_latents
from medgan_jax.sharding import data_mesh, replicated
from medgan_jax.training.trainer import train

pytestmark = pytest.mark.slow


@pytest.fixture
def data(tmp_path):
    return {**default.get_config().data.to_dict(), "cache_dir": str(tmp_path / "cache")}


@pytest.fixture
def folder(tmp_path):
    """A function that writes images of a shape into a folder."""

    def write(name, *shapes, number=3):
        (tmp_path / name).mkdir(exist_ok=True)
        random = np.random.default_rng(len(name))
        for i in range(number):
            for j, shape in enumerate(shapes):
                write_png(tmp_path / name / f"image_{i}_{j}.png", random.integers(0, 256, shape, np.uint8))
        return str(tmp_path / name)

    return write


@pytest.fixture
def choose(data):
    empty = dict.fromkeys(("checkpoint", "fakes", "reals", "train", "num_images"))
    return lambda **options: image_sets.choose(**{**empty, "data": data, "seed": 0, **options})


def test_folders(choose, folder):
    fakes, reals, train_set = choose(
        fakes=folder("fakes", (16, 16, 3)), reals=folder("reals", (40, 32, 3)), train=folder("train", (32, 32, 3))
    )
    assert fakes.images.shape == reals.images.shape == train_set.images.shape == (3, 16, 16, 3)
    assert "fakes" in fakes.title


@pytest.mark.parametrize("stored", ["fakes", "reals", "half of the reals"])
def test_grey_images_stored_as_colour_are_grey(stored, choose, folder, tmp_path):
    """And so compared with grey ones."""
    folders = [folder(name, (16, 16, 1), number=6) for name in ("fakes", "reals", "train")]
    expected = [images.images for images in choose(**dict(zip(("fakes", "reals", "train"), folders, strict=True)))]
    for path in sorted((tmp_path / stored.split()[-1]).iterdir())[: 3 if "half" in stored else None]:
        write_png(path, np.repeat(np.asarray(Image.open(path))[..., None], 3, axis=2))
    chosen = choose(**dict(zip(("fakes", "reals", "train"), folders, strict=True)))
    for images, wanted in zip(chosen, expected, strict=True):
        np.testing.assert_array_equal(images.images, wanted)


def test_folders_of_16_bits_are_read_as_for_training(choose, tmp_path, data):
    samples = np.random.default_rng(0).integers(0, 256, (4, 16, 16), np.uint16)
    for name in ("fakes", "reals"):
        (tmp_path / name).mkdir()
        for i, image in enumerate(samples):
            Image.fromarray(image * 16).save(tmp_path / name / f"{i}.png")
    places = {"fakes": str(tmp_path / "fakes"), "reals": str(tmp_path / "reals")}
    for window, expected in (("auto", samples), ("full", samples // 16), ("0,4080", samples)):
        for found in choose(**places, data={**data, "window": window})[:2]:
            np.testing.assert_array_equal(found.images[:, :, :, 0], expected)


def test_samples_come_without_their_grid(choose, folder):
    place = folder("fakes", (16, 16, 3))
    write_png(f"{place}/grid.png", np.zeros((40, 40, 3), np.uint8))
    with pytest.raises(UserError, match="holds images of 16 x 16 px with 3 channels and of 40 x 40 px"):
        choose(fakes=place, reals=place)
    open(f"{place}/manifest.csv", "w").close()
    assert len(choose(fakes=place, reals=folder("reals", (16, 16, 3), number=4))[0].images) == 3


@pytest.mark.parametrize(
    ("fake", "real", "says"),
    [
        ((32, 32, 3), (32, 16, 3), ["--reals=", "16 x 32 px", "32 x 32 px", "blur"]),
        ((32, 32, 3), (32, 32, 1), ["fakes: has images in colour, and ", "reals has grey ones", "compare colour"]),
        ((32, 32, 1), (32, 32, 3), ["reals: has images in colour, and ", "fakes has grey ones", "compare colour"]),
        ((32, 16, 3), (32, 32, 3), ["--fakes=", "16 x 32 px", "square"]),
    ],
)
def test_unlike_sets_are_refused(choose, folder, fake, real, says):
    with pytest.raises(UserError) as caught:
        choose(fakes=folder("fakes", fake), reals=folder("reals", real))
    for text in says:
        assert text in str(caught.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "either --checkpoint=... or --fakes=..."),
        ({"checkpoint": "x", "fakes": "y"}, "either --checkpoint=... or --fakes=..."),
        ({"fakes": "F"}, "give --reals="),
        ({"fakes": "F", "train": "F"}, "give --reals="),
        ({"fakes": "F", "reals": "O"}, "1 images are too few to compare with; give 4 or more"),
        ({"fakes": "F", "reals": "O", "train": "F"}, "give 2 or more"),
        ({"fakes": "T", "reals": "F"}, "give square ones of 16 px or more"),
        ({"fakes": "F", "reals": "F", "num_images": 3}, "--num_images is for --checkpoint"),
        ({"fakes": "E", "reals": "F"}, "--fakes=.*holds no images"),
        ({"fakes": "F", "reals": "E"}, "holds no images"),
        ({"fakes": "N", "reals": "F"}, "--fakes="),
        ({"fakes": "B", "reals": "F"}, "can be read"),
        ({"checkpoint": "E", "reals": "F"}, "generator"),
    ],
)
def test_what_is_missing_is_named(choose, folder, tmp_path, options, says):
    places = {"F": folder("good", (16, 16, 3), number=4), "E": folder("empty"), "N": str(tmp_path / "nowhere")}
    places |= {"B": folder("bad", (16, 16, 3)), "O": folder("one", (16, 16, 3), number=1)}
    places["T"] = folder("tiny", (8, 8, 3))
    for name in os.listdir(places["B"]):
        (tmp_path / "bad" / name).write_bytes(b"no image")
    with pytest.raises(UserError, match=says):
        choose(**{name: places.get(value, value) for name, value in options.items()})


def test_a_generator_is_compared_with_what_its_training_held_out(choose, data, folder, tiny_config, tmp_path):
    """Images which may move but not change: else nobody knows which of them it has not seen."""
    place, run = folder("before", (20, 20, 3), number=30), str(tmp_path / "run")
    options = {"data_cache_dir": str(tmp_path / "cache"), "num_steps": 1, "data_holdout_fraction": 0.3}
    train(tiny_config(data_source="folder", data_path=place, **options), tmp_path / "run")
    fakes, reals, training = before = choose(checkpoint=run)
    assert len(fakes.images) == len(training.images)
    assert len(reals.images) + len(training.images) == 30
    assert fakes.images.shape[1:] == (16, 16, 3)
    more = choose(checkpoint=run, num_images=9)[0]
    assert len(more.images) == 9
    np.testing.assert_array_equal(more.images, fakes.images[:9])
    # The samples are those of sample.py.
    generator = load_generator(tmp_path / "run", replicated(data_mesh()))
    latents = functools.partial(seeded_latents, 0, latent_dim=8)
    batches = sample_batches(generator.module, generator.variables, latents, 9, batch_size=2, mesh=data_mesh())
    assert np.abs(more.images.astype(int) - np.concatenate(list(batches))).max() <= 1

    os.rename(place, tmp_path / "after")
    with pytest.raises(UserError, match="before"):
        choose(checkpoint=run)
    moved = {**data, "path": str(tmp_path / "after")}
    for one, other in zip(choose(checkpoint=run, data=moved), before, strict=True):
        np.testing.assert_array_equal(one.images, other.images)
    write_png(tmp_path / "after/another.png", np.zeros((20, 20, 3), np.uint8))
    with pytest.raises(UserError, match="the images are no longer those of the training"):
        choose(checkpoint=run, data=moved)
    with pytest.raises(UserError, match=r"data\.holdout_fraction"):
        choose(checkpoint=run, reals=str(tmp_path / "after"), data={**data, "holdout_fraction": 0.3})


def test_a_generator_of_pytorchs_is_compared_with_reals_given(choose, folder):
    """Its training is not known, so neither is what that held out; reals of a grey generator are greyed."""
    checkpoint = str(published.FOLDER / "netG16.pth")
    fakes, reals, training = choose(checkpoint=checkpoint, reals=folder("reals", (32, 32, 3), number=4))
    assert fakes.images.shape == (2, 16, 16, 1)
    assert reals.images.shape == (4, 16, 16, 1)
    assert training is None
    assert fakes.title == checkpoint
    with pytest.raises(UserError, match="^give --reals=..., the real images to compare with$"):
        choose(checkpoint=checkpoint)


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    """The workdir of a conditional training of 60 phantoms, and its config; not to be changed."""
    place = tmp_path_factory.mktemp("conditional")
    c = default.get_config()
    c.update(image_size=16, latent_dim=8, gen_features=4, dis_features=4, batch_size=4, num_steps=1, conditional=True)
    c.update(monitor_every_steps=0, tensorboard=False, report=False, guard=False, num_sample_images=4)
    c.data.update(source="phantom", num_phantoms=60, holdout_fraction=0.4, cache_dir=str(place / "cache"))
    config = parse_config(c)
    train(config, place / "run")
    return str(place / "run"), config


def test_one_class_or_all_in_the_proportions_of_the_reals(choose, conditional):
    run, config = conditional
    training, held_out = load_dataset(config.data, image_size=16, channels=3)
    fakes, reals, seen = choose(checkpoint=run, label="malignant")
    assert set(fakes.labels) == set(reals.labels) == set(seen.labels) == {"malignant"}
    assert fakes.title.endswith(", malignant") and reals.title.endswith("held out, malignant")
    for chosen, cached in ((reals, held_out), (seen, training)):
        np.testing.assert_array_equal(chosen.images, cached.images[[name == "malignant" for name in cached.labels]])
    assert len(fakes.images) == len(seen.images) > 1

    fakes, reals, seen = choose(checkpoint=run)
    assert set(reals.labels) == {"benign", "malignant"}
    share = reals.labels.count("malignant") / len(reals.labels)
    assert abs(fakes.labels.count("malignant") - share * len(fakes.labels)) <= 1
    assert len(fakes.labels) == len(fakes.images) == len(seen.images)


class Drawn:
    """A generator that draws its label."""

    image_size, channels = 16, 1

    def apply(self, variables, latents, labels, training):
        return jnp.broadcast_to(labels[:, None, None, None] - 1.0, (len(labels), 16, 16, 1))


def test_no_network_judges_what_was_trained_through_it(choose, folder, monkeypatch):
    about = {"config": {"dis": "projected", "data": {}}}
    generator = TrainedGenerator(Drawn(), {}, latent_dim=8, step=1, about=about, digest="abc", classes=("a", "b", "c"))
    monkeypatch.setattr(image_sets, "load_generator", lambda path, sharding: generator)
    with pytest.raises(UserError, match="--features=efficientnet-lite0: the training of run saw its images through"):
        choose(checkpoint="run", features="efficientnet-lite0")
    fakes, _, _ = choose(
        checkpoint="run", features="efficientnet-lite1", reals=folder("reals", (16, 16, 1), number=4), label="a"
    )
    assert fakes.trained_through == "efficientnet-lite0"
    with pytest.raises(UserError, match="give --reals=.*held none out"):
        choose(checkpoint="run")
    drawn = folder("drawn", (16, 16, 1))
    text = png_text(generator.provenance(seed=0, index=0, label="a"))
    write_png(Path(drawn, "image_0_0.png"), np.zeros((16, 16, 1), np.uint8), text)
    assert choose(fakes=drawn, reals=folder("reals", (16, 16, 1), number=4))[0].trained_through == "efficientnet-lite0"
    with pytest.raises(UserError, match="drawn saw its images through this network"):
        choose(fakes=drawn, features="efficientnet-lite0", reals=folder("reals", (16, 16, 1), number=4))


def test_the_classes_that_are_sampled_are_those_that_are_named():
    generator = TrainedGenerator(Drawn(), {}, latent_dim=8, step=1, about={}, digest="abc", classes=("a", "b", "c"))
    sampled = functools.partial(image_sets.sampled, generator, seed=0, mesh=data_mesh(), title="t", progress=False)
    for options in ({}, {"label": "c"}, {"counts": [1, 0, 3]}):
        found = sampled(70, **options)
        drawn = np.rint(found.images[:, 0, 0, 0] / 127.5).astype(int)
        assert ["abc"[i] for i in drawn] == list(found.labels)
    assert sampled(4).labels == ("a", "b", "c", "a")
    assert sampled(4, label="c").labels == ("c",) * 4
    assert sorted(sampled(8, counts=[1, 0, 3]).labels) == ["a"] * 2 + ["c"] * 6


def test_reals_given_are_of_the_class_too(choose, conditional, folder, data, tmp_path):
    run, _ = conditional
    flat = folder("flat", (16, 16, 3), number=5)
    for name, number in (("benign", 6), ("malignant", 4), ("wart", 5)):
        (tmp_path / "sorted").mkdir(exist_ok=True)
        folder(f"sorted/{name}", (16, 16, 3), number=number)
    by_class = str(tmp_path / "sorted")
    fakes, reals, _ = choose(checkpoint=run, reals=by_class, label="malignant")
    assert reals.labels == ("malignant",) * 4 and set(fakes.labels) == {"malignant"}
    fakes, reals, _ = choose(checkpoint=run, reals=by_class, label="malignant", data={**data, "class_filter": "wart"})
    assert reals.labels == ("wart",) * 5 and set(fakes.labels) == {"malignant"}  # another name for it
    fakes, reals, _ = choose(checkpoint=run, reals=flat, label="benign")  # nobody says what they are
    assert len(reals.images) == 5 and set(fakes.labels) == {"benign"}
    for options, says in (
        ({"reals": flat}, "flat: the images have no labels, .* give --label=CLASS"),
        ({"reals": by_class}, "has images of wart, and the classes of the checkpoint are benign, malignant"),
        ({"reals": by_class, "label": "wrt"}, "^label=wrt: the classes of the checkpoint are benign, malignant"),
    ):
        with pytest.raises(UserError, match=says):
            choose(checkpoint=run, **options)
    os.rename(f"{by_class}/malignant", f"{by_class}/melanoma")
    with pytest.raises(
        UserError, match="labels of .*sorted are benign, melanoma, wart; say with --data.class_filter which"
    ):
        choose(checkpoint=run, reals=by_class, label="malignant")


def test_a_label_is_for_conditional_checkpoints(choose, folder):
    reals = folder("reals", (16, 16, 1), number=4)
    with pytest.raises(UserError, match="^label=x: the checkpoint has no classes"):
        choose(checkpoint=str(published.FOLDER / "netG16.pth"), reals=reals, label="x")
    with pytest.raises(UserError, match="^--label=x: is for --checkpoint"):
        choose(fakes=reals, reals=reals, label="x")


def test_features(tmp_path, monkeypatch):
    for name, chosen in ((None, "lite1"), ("efficientnet-lite0", "lite0")):
        assert image_sets.choose_features(name, None) is efficientnet_features(chosen)
    assert image_sets.choose_features("pyramid", None) is PYRAMID
    assert image_sets.choose_features("pixels", None) is PIXELS
    (tmp_path / "theirs.py").write_text(
        "def flat(images): return images.reshape(len(images), -1)\nwrong = len\n"
        "def empty(images): return images.reshape(len(images), -1)[:, :0]\n"
        "def none(images): return images.reshape(len(images), -1) * float('nan')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    images = np.arange(3 * 16 * 16, dtype=np.uint8).reshape(3, 16, 16, 1)
    vectors = image_sets.choose_features("theirs:flat", None).of(images, batch_size=2)
    np.testing.assert_array_equal(vectors, images.reshape(3, -1))
    with pytest.raises(UserError, match="^features=theirs:absent: cannot be imported"):
        image_sets.choose_features("theirs:absent", None)
    (tmp_path / "broken.py").write_text("def f(:\n")
    with pytest.raises(UserError, match="^features=broken:f: cannot be imported"):
        image_sets.choose_features("broken:f", None)
    for wrong, says in (("wrong", "failed .IndexError"), ("empty", "must return finite real"), ("none", "must return")):
        with pytest.raises(UserError, match=f"^features=theirs:{wrong}: {says}"):
            image_sets.choose_features(f"theirs:{wrong}", None).of(images)
    for name, weights in (("inception", None), ("pyramid", "w.pth")):
        with pytest.raises(UserError, match="go together"):
            image_sets.choose_features(name, weights)
    with pytest.raises(UserError, match=r"nowhere\.pth"):
        image_sets.choose_features(None, str(tmp_path / "nowhere.pth"))
