"""Sources: folders, tables of labels, TFDS and phantoms, and what is said about each that is wrong."""

import dataclasses
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medgan_jax.data.phantom import phantom_image, phantom_label
from medgan_jax.data.sources import open_source
from medgan_jax.data.survey import survey
from medgan_jax.errors import UserError
from medgan_jax.image_files import ImageError
from medgan_jax.images import convert_channels, encode_png
from medgan_jax.provenance import png_text

MARKED = 51  # a malignant record that is marked as synthetic
PATHS = list  # in place of digests of files: the ids are the paths


def png(value, size=8):
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def lay_down(root, names):
    """Writes an image for each name, of a colour that tells it from the others."""
    for value, name in enumerate(names):
        path = Path(root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(value))
    return str(root)


@pytest.fixture
def data_config(tiny_config):
    def make(**fields):
        return dataclasses.replace(tiny_config().data, **fields)

    return make


@pytest.fixture
def open_folder(data_config):
    return lambda path, **fields: open_source(data_config(source="folder", path=str(path), **fields))


@pytest.fixture
def open_csv(data_config, tmp_path):
    """Opens a folder of images beside a table of the given text."""

    def open_it(names, table, **fields):
        folder = lay_down(tmp_path / "images", names)
        (tmp_path / "labels.csv").write_bytes(table if isinstance(table, bytes) else table.encode())
        return open_source(data_config(source="csv", path=folder, labels_csv=str(tmp_path / "labels.csv"), **fields))

    return open_it


def values(source):
    """The colour of each image, which tells what was read."""
    return [int(source.read(index, 4, 3)[0, 0, 0]) for index in range(len(source))]


def test_a_flat_folder_is_sorted_and_unlabelled(tmp_path, open_folder):
    lay_down(tmp_path, ["b.png", "a.PNG", "c.jpeg", ".hidden.png", ".thumbnails/x.png"])
    (tmp_path / "notes.txt").write_text("no image")
    source = open_folder(tmp_path)
    assert source.names == ("a.PNG", "b.png", "c.jpeg")
    assert source.labels is None
    assert values(source) == [1, 0, 2]
    assert [source.read(0, size, channels).shape for size, channels in [(16, 3), (4, 1)]] == [(16, 16, 3), (4, 4, 1)]
    assert source.content_ids(PATHS) == [tmp_path / name for name in source.names]


def test_folders_are_classes(tmp_path, open_folder):
    names = ["malignant/x.png", "benign/b.png", "benign/deeper/a.png", "malignant/a.png"]
    lay_down(tmp_path, names)
    source = open_folder(tmp_path)
    assert source.names == ("benign/b.png", "benign/deeper/a.png", "malignant/a.png", "malignant/x.png")
    assert source.labels == ("benign", "benign", "malignant", "malignant")
    kept = open_folder(tmp_path, class_filter="malignant")
    assert kept.names == ("malignant/a.png", "malignant/x.png")
    assert kept.labels == ("malignant", "malignant")
    assert values(kept) == [3, 0]


def test_links_are_followed_but_loops_end(tmp_path, open_folder):
    lay_down(tmp_path / "set", ["one/a.png"])
    lay_down(tmp_path / "elsewhere", ["b.png"])
    os.symlink(tmp_path / "elsewhere", tmp_path / "set" / "two")
    os.symlink(tmp_path / "set", tmp_path / "set" / "one" / "loop")
    os.symlink("self.png", tmp_path / "set" / "one" / "self.png")
    source = open_folder(tmp_path / "set")
    assert source.names == ("one/a.png", "one/self.png", "two/b.png")
    with pytest.raises(OSError, match="symbolic links"):
        source.read(1, 4, 3)


def test_a_home_folder_may_be_written_with_a_tilde(tmp_path, open_folder, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    lay_down(tmp_path / "isic", ["a.png"])
    assert len(open_folder("~/isic")) == 1


def test_what_is_wrong_with_a_folder(tmp_path, open_folder):
    lay_down(tmp_path / "mixed", ["a.png", "benign/b.png"])
    (tmp_path / "empty").mkdir()
    for path, message in [
        ("", "data.path is empty"),
        (tmp_path / "missing", r"data.path=\S+missing: no such file or directory"),
        (tmp_path / "mixed" / "a.png", r"data.path=\S+a.png: not a directory"),
        (tmp_path / "empty", r"data.path=\S+empty holds no images: there are no files"),
        (tmp_path / "mixed", r"holds images \(a.png\) beside folders"),
    ]:
        with pytest.raises(UserError, match=message):
            open_folder(path)


def test_a_label_must_exist(tmp_path, open_folder):
    lay_down(tmp_path, ["benign/a.png", "benign/b.png", "malignant/c.png"])
    with pytest.raises(UserError, match=r"data.class_filter='melanoma' .* there are: benign \(2\), malignant \(1\)$"):
        open_folder(tmp_path, class_filter="melanoma")
    with pytest.raises(UserError, match="data.class_filter='benign', but the images .* have no labels"):
        open_folder(tmp_path / "benign", class_filter="benign")
    lay_down(tmp_path, [f"{number}/a.png" for number in range(200)])
    with pytest.raises(UserError, match=r"there are: 0 \(1\), 1 \(1\), 10 \(1\), .* and 194 more$"):
        open_folder(tmp_path, class_filter="melanoma")


IDS = ["ISIC_1.jpg", "ISIC_2.jpg", "ISIC_3.jpg"]


def test_a_table_labels_the_files_of_a_folder(open_csv):
    table = "ISIC_3,benign\nISIC_1,benign\nISIC_2,malignant\n"
    source = open_csv(IDS, table)
    assert source.names == tuple(IDS) and source.groups is None
    assert source.labels == ("benign", "malignant", "benign")
    kept = open_csv(IDS, table, class_filter="malignant")
    assert kept.names == ("ISIC_2.jpg",) and values(kept) == [1]


def test_an_image_without_a_group_is_one_of_its_own(open_csv, caplog):
    table = "image,patient,label\nISIC_3,,b\nISIC_1,p,a\nISIC_2,p,a\n"
    source = open_csv(IDS, table, group_column="patient")
    assert source.groups == ("p", "p", "ISIC_3.jpg") and source.labels == ("a", "a", "b")
    (line,) = caplog.messages
    assert line.endswith("labels.csv: 1 of 3 images have no patient, and each is a group of its own: ISIC_3.jpg")


def test_rows_and_images_without_each_other_may_be_left_out(open_csv):
    source = open_csv(IDS, "ISIC_3,b\nISIC_2,a\nISIC_7,b\n", on_missing="skip")
    assert source.names == ("ISIC_2.jpg", "ISIC_3.jpg") and source.labels == ("a", "b")
    assert values(source) == [1, 2]


def test_names_of_classes_are_equal_in_composed_and_decomposed_unicode(tmp_path, open_folder):
    lay_down(tmp_path, ["ne\u0301vus/a.png", "n\xe9vus/b.png", "wart/c.png"])
    assert open_folder(tmp_path).labels == ("n\xe9vus", "n\xe9vus", "wart")
    for spelling in ("ne\u0301vus", "n\xe9vus"):
        assert values(open_folder(tmp_path, class_filter=spelling)) == [0, 1]


def test_phantoms_are_one_fixed_data_set(data_config):
    source = open_source(data_config(source="phantom", num_phantoms=40))
    assert len(source) == 40 and source.names[39] == "phantom_00039"
    assert source.labels == tuple(phantom_label(index, seed=0) for index in range(40))
    kept = open_source(data_config(source="phantom", num_phantoms=40, class_filter="malignant"))
    expected = [index for index, label in enumerate(source.labels) if label == "malignant"]
    assert 0 < len(kept) < 40 and kept.names == tuple(source.names[index] for index in expected)
    image = phantom_image(expected[1], seed=0, image_size=16)
    np.testing.assert_array_equal(kept.read(1, 16, 3), image)
    np.testing.assert_array_equal(kept.read(1, 16, 1), convert_channels(image, 1))
    ids = source.content_ids(PATHS)
    assert len(set(ids)) == 40 and kept.content_ids(PATHS) == [ids[index] for index in expected]


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """Two prepared TFDS data sets: encoded images with classes, and raw grey arrays without."""
    import tensorflow_datasets as tfds

    class Lesions(tfds.core.GeneratorBasedBuilder):
        """Encoded images."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "id": tfds.features.Text(),
                "photo": tfds.features.Image(shape=(None, None, 3)),
                "kind": tfds.features.ClassLabel(names=["benign", "malignant"]),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            splits = {"train": range(30), "test": [98, 99], "mixed": [0, 1, 2, MARKED]}
            return {name: self._generate_examples(numbers) for name, numbers in splits.items()}

        def _generate_examples(self, numbers):
            for i in numbers:
                photo = b"damaged" if i == 99 else png(i)
                if i == MARKED:
                    photo = encode_png(np.zeros((8, 8, 3), np.uint8), png_text())
                yield i, {"id": str(i), "photo": photo, "kind": -1 if i > 90 else i % 2}

    class Scans(tfds.core.GeneratorBasedBuilder):
        """Raw grey arrays."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            scan = tfds.features.Tensor(shape=(6, 9, 1), dtype=np.uint8)
            features = {"mask": tfds.features.Tensor(shape=(4,), dtype=np.uint8), "scan": scan}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(3):
                yield i, {"mask": np.zeros(4, np.uint8), "scan": np.full((6, 9, 1), i, np.uint8)}

    data_dir = tmp_path_factory.mktemp("tfds")
    for builder in (Lesions, Scans):
        builder(data_dir=data_dir, file_format="array_record").download_and_prepare()
    return data_dir


@pytest.fixture
def open_tfds(data_config, tfds_dir):
    def open_it(name, **fields):
        return open_source(data_config(**{"source": "tfds", "tfds_name": name, "path": str(tfds_dir), **fields}))

    return open_it


def test_tfds_encoded_images(open_tfds):
    source = open_tfds("lesions")
    assert source.names[:2] == ("train[0]", "train[1]")
    assert sorted(values(source)) == list(range(30))  # every record, in TFDS's shuffled order
    assert source.labels == tuple(("benign", "malignant")[value % 2] for value in values(source))
    kept = open_tfds("lesions", class_filter="malignant")
    assert values(kept) == [value for value in values(source) if value % 2]
    assert values(open_tfds("lesions", split="train[:10%]")) == values(source)[:3]


def test_tfds_raw_arrays(open_tfds):
    source = open_tfds("scans")
    assert source.labels is None
    assert source.read(0, 4, 1).shape == (4, 4, 1)
    assert sorted(values(source)) == [0, 1, 2]


def test_tfds_ids_follow_files_split_and_record(open_tfds):
    source, part = open_tfds("lesions"), open_tfds("lesions", split="train[10:]")
    ids = source.content_ids(lambda files: ["x" for _ in files])
    assert len(set(ids)) == 30
    assert ids == open_tfds("lesions").content_ids(lambda files: ["x" for _ in files])
    assert not set(ids) & set(source.content_ids(lambda files: ["y" for _ in files]))
    assert not set(ids) & set(part.content_ids(lambda files: ["x" for _ in files]))
    malignant = open_tfds("lesions", class_filter="malignant").content_ids(lambda files: ["x" for _ in files])
    assert malignant == [one for one, label in zip(ids, source.labels, strict=True) if label == "malignant"]


def test_a_damaged_record_is_an_image_error(open_tfds):
    source = open_tfds("lesions", split="test")
    assert source.labels == ("unknown", "unknown")
    outcomes = []
    for index in range(2):
        try:
            outcomes.append(int(source.read(index, 4, 3)[0, 0, 0]))
        except ImageError as error:
            outcomes.append(str(error))
    assert sorted(outcomes, key=str) == [98, "not an image"]


def test_a_record_that_is_marked_as_synthetic_is_refused(open_tfds, data_config):
    data = data_config()
    source = open_tfds("lesions", split="mixed")
    with pytest.raises(UserError, match=r"^1 of 4 images in .* synthetic: mixed\[\d\]; prepare the data set without"):
        survey(source, data, image_size=8)
    assert survey(source, data_config(allow_synthetic=True), image_size=8) is source
    for reals in (open_tfds("lesions", split="mixed", class_filter="benign"), open_tfds("scans")):
        assert survey(reals, data, image_size=8) is reals


def test_what_is_wrong_with_a_tfds_data_set(open_tfds, tfds_dir, tmp_path):
    for name, fields, message in [
        ("mnst", {"path": ""}, "tfds_name=mnst is not a data set of TFDS; did you mean mnist"),
        ("nothing", {}, r"nor one that was prepared in data.path=\S+; give its NAME"),
        (
            "mnist",
            {"path": str(tmp_path)},
            r"not prepared as array_record in \S+; .*download_and_prepare\(file_format='array_record'\)",
        ),
        ("lesions", {"split": "val"}, r"data.split='val' of lesions .* one of train, test, mixed, or a slice such as"),
        ("lesions", {"class_filter": "naevus"}, r"there are: benign \(15\), malignant \(15\)$"),
    ]:
        with pytest.raises(UserError, match=message):
            open_tfds(name, **fields)

    info = Path(tfds_dir, "scans", "1.0.0", "dataset_info.json")
    before = info.read_text()
    info.write_text(json.dumps({**json.loads(before), "fileFormat": "tfrecord"}))
    with pytest.raises(UserError, match="is not prepared as array_record in"):
        open_tfds("scans")
    info.write_text(before)
