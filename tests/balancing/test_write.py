"""The folder of a set: what is in it, what is replaced, and that the same call completes it."""

import csv
import dataclasses
import fcntl
import os
import shutil
from pathlib import Path
from urllib.parse import unquote

import jax
import jax.numpy as jnp
import numpy as np
import published
import pydicom
import pytest
from PIL import Image

from medgan_jax.balancing.counts import Counts
from medgan_jax.balancing.sources import Drawer, Reals, open_sources
from medgan_jax.balancing.write import write_set
from medgan_jax.checkpoint import TrainedGenerator, load_generator
from medgan_jax.commands import balance
from medgan_jax.config import default_config, parse_data
from medgan_jax.data.batches import load_dataset
from medgan_jax.data.cache import CachedImages
from medgan_jax.data.sources import PhantomSource, open_source
from medgan_jax.errors import UserError
from medgan_jax.image_files import decode_image
from medgan_jax.sampling import generate, seeded_latents
from medgan_jax.sharding import data_mesh, replicated


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def read_fields(folder, default):
    """As the command says."""
    fields = {"source": "csv", "path": str(folder), "labels_csv": f"{folder}/labels.csv", "group_column": "group"}
    return parse_data({**default, **fields, "include": "*", "allow_synthetic": True})


def read_back(folder):
    return open_source(read_fields(folder, default_config().data.to_dict()))


@pytest.mark.slow
def test_the_command(saved, tmp_path, capsys):
    fields = {"data_num_phantoms": 40, "data_holdout_fraction": 0.2, "data_cache_dir": str(tmp_path / "cache")}
    run, out = saved(tmp_path / "run", conditional=True, **fields), tmp_path / "balanced"
    call = [f"--checkpoint={run}", f"--out={out}", "--seed=4294967295"]
    balance.main(call)
    said = capsys.readouterr().out
    assert "nearer to a training image than any of 7 of these is to the others" in said
    assert "--config.data.group_column=group --config.data.include='*' --config.data.allow_synthetic=True" in said
    assert "benign        25      0                0\nmalignant      7     18                0\n" in said
    source = read_back(out)
    assert sorted(source.labels) == ["benign"] * 25 + ["malignant"] * 25
    assert len(set(source.groups)) == 50
    generator = load_generator(Path(run), replicated(data_mesh()))
    fakes = [row for row in rows(out / "labels.csv") if row["source"] == "synthetic"]
    assert {row["generator"] for row in fakes} == {generator.digest}
    odd = np.arange(1, 36, 2, dtype=np.int32)  # the even ones are for the other class
    assert [row["index"] for row in fakes] == [str(i) for i in odd]
    latents = seeded_latents(2**32 - 1, odd, latent_dim=8)
    drawn = generate(generator.module, generator.variables, latents, np.ones(18, np.int32))
    for row, image in zip(fakes, drawn, strict=True):
        found = decode_image((out / row["image"]).read_bytes(), channels=3).astype(int)
        assert np.abs(found - np.asarray(image)).max() <= 1

    before = contents(out)
    text = (out / "draws.csv").read_text()
    (out / "draws.csv").write_text(text[: text.index("malignant,33,") + 14])  # as if killed while it was written
    (out / "labels.csv").unlink()
    (out / "reals/phantom_00003.png").unlink()
    (out / f".{16 * 'a'}.tmp").touch()
    balance.main(call)
    assert contents(out) == before
    next(iter(out.glob("synthetic/*_000005.png"))).unlink()
    balance.main(call)
    assert contents(out) == before
    with pytest.raises(UserError, match="^--out=.*: holds a set that differs in agree: False -> True. Undo the change"):
        balance.main([*call, "--agree"])


class Painter:
    """Draws noise that is dark, or bright where the first number of the latents is above 0.

    Where the second is above `copies`, an image of the training set, mirrored.
    """

    image_size, channels = 16, 1

    def __init__(self, training, copies):
        self.training, self.copies = training, copies

    def apply(self, variables, latents, labels, training):
        noise = jax.vmap(lambda z: jax.random.normal(jax.random.key(jnp.int32(1e6 * z)), (16, 16, 1)))(latents[:, 2])
        bright = jnp.sign(latents[:, 0])[:, None, None, None]
        copy = self.training[: len(latents), :, ::-1] / 127.5 - 1
        return jnp.where((latents[:, 1] > self.copies)[:, None, None, None], copy, 0.75 * bright + 0.08 * noise)


@pytest.fixture
def painted():
    """A function that makes a painter of the class "a/b", and 24 reals: half of it, dark, and half "white"."""

    def make(copies):
        random = np.random.default_rng(0)
        level = np.repeat([32, 223], 12)[:, None, None, None]
        images = (level + random.normal(0, 10, (24, 16, 16, 1))).clip(0, 255).astype(np.uint8)
        held_out = images[:12] + random.integers(0, 9, (12, 16, 16, 1), np.uint8)  # nearer to `images` than all noise
        names, labels = tuple(f"{i:02d}" for i in range(24)), ("a/b",) * 12 + ("white",) * 12
        reals = Reals(PhantomSource("noise", names, labels, numbers=()), images, "digest", as_files=False)
        generator = TrainedGenerator(Painter(images, copies), {}, latent_dim=3, step=1, about={}, digest="abc")
        training = CachedImages(images, names, labels, "digest")
        ours = np.array(labels) == "a/b"
        return {"a/b": Drawer(Path("painter"), generator, training, np.arange(24), ours, held_out)}, reals

    return make


@pytest.fixture
def write(tmp_path):
    def call(drawers, reals, counts, **options):
        options = {
            "seed": 0,
            "placing": "link",
            "agree": False,
            "mesh": data_mesh(),
            "say": lambda line: None,
        } | options
        return write_set(tmp_path / "set", drawers, reals, counts, **options)

    return call


@pytest.mark.slow
def test_copies_and_images_of_another_class_are_replaced(painted, write, tmp_path):
    drawers, reals = painted(0.5)
    said = []
    (draws, none) = write(
        drawers, reals, {"a/b": Counts(5, 20), "white": Counts(12, 0)}, agree=True, say=said.append
    ).values()
    latents = np.asarray(seeded_latents(0, np.arange(len(draws), dtype=np.int32), latent_dim=3))
    expected = np.where(latents[:, 1] > 0.5, "copy", np.where(latents[:, 0] > 0, "other class", "kept"))
    assert [one.outcome for one in draws] == expected.tolist()
    assert [one.number for one in draws] == list(range(len(draws))) and not none
    assert (expected == "kept").sum() == 20 and set(expected) == {"kept", "copy", "other class"}
    assert all((one.distance == "0.000000") == (one.outcome == "copy") for one in draws)
    assert said[0] == "--agree: the classifier's balanced accuracy on real images is 1.00, by cross-validation"
    assert said[2] == "a/b: fakes are replaced that are nearer to a training image than any of 12 held-out images is"
    listed = rows(tmp_path / "set/labels.csv")
    assert [row["index"] for row in listed[17:]] == [str(i) for i in np.flatnonzero(expected == "kept")]
    source = read_back(tmp_path / "set")
    assert source.labels.count("a/b") == 25 and source.labels.count("white") == 12
    assert [row["label"] for row in rows(tmp_path / "set/draws.csv")] == ["a/b"] * len(draws)


@pytest.mark.slow
def test_a_generator_that_only_copies_is_given_up(painted, write):
    drawers, reals = painted(-9)
    for _ in range(2):  # the second time it has nothing to draw
        with pytest.raises(
            UserError, match="^painter: of 64 images of a/b that it drew, 64 were too near .* 0 of 3 are"
        ):
            write(drawers, reals, {"a/b": Counts(12, 3), "white": Counts(12, 0)})


@pytest.fixture
def files(lesions):
    source = open_source(parse_data({**default_config().data.to_dict(), "path": str(lesions)}))
    return Reals(source, np.zeros((17, 16, 16, 3), np.uint8), "digest", as_files=True)


REALS_ALONE = {"benign": Counts(4, 0), "malignant": Counts(5, 0)}


def test_reals_are_linked_copied_or_listed(files, write, lesions, tmp_path):
    def original_of(name):
        return lesions / unquote(name.removeprefix("reals/"))

    chosen = {}
    for placing in ("link", "copy", "list"):
        write({}, files, REALS_ALONE, placing=placing)
        listed = rows(tmp_path / "set/labels.csv")
        assert [row["label"] for row in listed] == ["benign"] * 4 + ["malignant"] * 5
        chosen[placing] = [row["image"] for row in listed]
        if placing != "list":
            source = read_back(tmp_path / "set")
            assert set(source.names) == set(chosen[placing])
            assert all(os.path.islink(tmp_path / "set" / name) == (placing == "link") for name in source.names)
            for name in source.names:
                assert (tmp_path / "set" / name).read_bytes() == original_of(name).read_bytes()
        (tmp_path / "set").rename(tmp_path / placing)
    assert chosen["link"] == chosen["copy"]
    assert chosen["list"] == [str(original_of(name)) for name in chosen["link"]]
    write({}, files, REALS_ALONE, seed=1)
    assert [row["image"] for row in rows(tmp_path / "set/labels.csv")] != chosen["link"]


STORED = np.random.default_rng(0).integers(0, 3000, (8, 24, 20), np.uint16)


def lay_down(folder, suffix):
    """Four files of classes "a" and "b", in the folder of a split, of 16 bits; those of DICOM name a patient."""
    for i, stored in enumerate(STORED[:4]):
        path = folder / "train" / "ab"[i % 2] / f"SMITH{i}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".dcm":
            made = pydicom.Dataset()
            made.PatientName = made.PatientID = f"SMITH{i}"
            made.SOPClassUID, made.SOPInstanceUID = pydicom.uid.CTImageStorage, f"2.25.{i + 1}"
            made.SamplesPerPixel, made.PhotometricInterpretation, made.PixelRepresentation = 1, "MONOCHROME2", 0
            made.Rows, made.Columns, made.BitsAllocated, made.BitsStored, made.HighBit = 24, 20, 16, 12, 11
            made.PixelData = stored.tobytes()
            made.file_meta = pydicom.dataset.FileMetaDataset()
            made.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
            pydicom.dcmwrite(path, made, enforce_file_format=True)
        elif suffix == ".tif":
            Image.fromarray(stored).save(path, save_all=True, append_images=[Image.fromarray(STORED[4 + i])])
        else:
            Image.fromarray(stored if suffix == ".png" else (stored >> 4).astype(np.uint8)).save(path)


@pytest.mark.parametrize(
    ("suffix", "fields", "number"),
    [
        (".bmp", {}, 4),
        (".bmp", {"fit": "pad"}, 4),
        (".png", {}, 4),
        (".png", {"window": "1000,1400"}, 4),
        (".tif", {"frames": "first"}, 4),
        (".tif", {"frames": "all"}, 8),
        (".tif", {"frames": "all", "on_bad_image": "skip"}, 7),
        (".dcm", {}, 4),
    ],
)
def test_reals_look_as_they_did_in_the_training(suffix, fields, number, write, tmp_path):
    lay_down(tmp_path / "lesions", suffix)
    if "on_bad_image" in fields:
        cut = tmp_path / "lesions/train/a/SMITH0.tif"
        os.truncate(cut, cut.stat().st_size - 99)  # the end of the second page
    default = {**default_config().data.to_dict(), "cache_dir": str(tmp_path / "cache")}
    given = {**default, "path": str(tmp_path / "lesions"), **fields}
    _, reals = open_sources([f"a={published.FOLDER / 'netG16.pth'}"], given, data_mesh())
    counts = {label: Counts(there, 0) for label, there in reals.counts.items()}
    for placing in ("link", "copy"):
        write({}, reals, counts, placing=placing)
        folder = tmp_path / "set"
        back, _ = load_dataset(read_fields(folder, default), image_size=16, channels=reals.images.shape[3])
        image_of, label_of = (
            dict(zip(back.names, back.images, strict=True)),
            dict(zip(back.names, back.labels, strict=True)),
        )
        listed = rows(folder / "labels.csv")
        assert len(listed) == number
        for row, label, image in zip(listed, reals.labels, reals.images, strict=True):
            assert row["label"] == label_of[row["image"]] == label
            assert (image_of[row["image"]] == image).all()
        assert len({row["group"] for row in listed}) == 4
        assert {path.name for path in folder.rglob("*") if path.is_dir()} == {"reals"}  # none is a split
        if suffix == ".dcm":
            assert not any("SMITH" in name or b"SMITH" in data for name, data in contents(folder).items())
        shutil.rmtree(folder)


def test_frames_of_a_file_cannot_be_listed(files, write):
    frames = dataclasses.replace(files.source, numbers=(0,) * 17)
    with pytest.raises(UserError, match="^--reals=list: with data.frames=all a file is several images"):
        write({}, dataclasses.replace(files, source=frames, as_files=False), REALS_ALONE, placing="list")


def test_folders_that_are_refused(files, write, lesions, tmp_path):
    (tmp_path / "set").write_text("")
    with pytest.raises(UserError, match="set: is a file; give a folder"):
        write({}, files, REALS_ALONE)
    os.remove(tmp_path / "set")
    (tmp_path / "set").symlink_to(lesions / "benign")
    with pytest.raises(UserError, match="set: lies within .*lesions.*, whose images it would join; give another"):
        write({}, files, REALS_ALONE)
    os.remove(tmp_path / "set")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/notes.txt").touch()
    with pytest.raises(UserError, match="set: holds 1 files already, such as notes.txt; give another folder"):
        write({}, files, REALS_ALONE)
    os.remove(tmp_path / "set/notes.txt")
    write({}, files, REALS_ALONE)
    with open(tmp_path / "set/.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="set: the same command is running"):
            write({}, files, REALS_ALONE)
    with pytest.raises(
        UserError, match="^--checkpoint: 7 fakes of benign are asked for, and none draws it; give another"
    ):
        write({}, files, {**REALS_ALONE, "benign": Counts(12, 7)})
