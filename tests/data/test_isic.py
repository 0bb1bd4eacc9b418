"""`medgan isic`: a folder and a table become a TFDS data set, which is read back, every record of it."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medgan_jax.commands import isic
from medgan_jax.data.dicom_writer import encode_dicom
from medgan_jax.data.sources import open_source
from medgan_jax.errors import UserError
from medgan_jax.image_files import decode_image
from medgan_jax.images import resize
from medgan_jax.provenance import XMP, Provenance, png_text

COUNT = 30


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    """What a user lays down: JPEGs of distinct colours, and the ground truth."""
    folder = tmp_path_factory.mktemp("downloads")
    (folder / "images").mkdir()
    for index in range(COUNT):
        buffer = io.BytesIO()
        Image.new("RGB", (20, 16), (8 * index, 255 - 8 * index, 0)).save(buffer, "JPEG")
        (folder / "images" / f"ISIC_{index:07d}.jpg").write_bytes(buffer.getvalue())
    rows = [f"ISIC_{index:07d},{'malignant' if index % 5 == 0 else 'benign'}\n" for index in range(COUNT)]
    (folder / "labels.csv").write_text("".join(rows))
    return folder


@pytest.fixture(scope="module")
def prepared(downloads, tmp_path_factory):
    out = tmp_path_factory.mktemp("tfds")
    isic.main([f"--images={downloads}/images", f"--labels={downloads}/labels.csv", f"--out={out}"])
    return out


def test_every_record_comes_back(downloads, prepared, tiny_config):
    config = tiny_config(data_source="tfds", data_tfds_name="isic/2016", data_path=str(prepared))
    source = open_source(config.data)
    assert len(source) == COUNT
    read = {source.read(index, 8, 3).tobytes(): source.labels[index] for index in range(COUNT)}
    expected = {}
    for index, path in enumerate(sorted((downloads / "images").iterdir())):
        pixels = resize(decode_image(path.read_bytes(), channels=3, min_side=8), 8)
        expected[pixels.tobytes()] = "malignant" if index % 5 == 0 else "benign"
    assert len(expected) == COUNT and read == expected


def test_records_carry_file_names_and_bytes(downloads, prepared):
    import tensorflow_datasets as tfds

    records = tfds.data_source(
        "isic/2016", split="train", data_dir=prepared, decoders={"image": tfds.decode.SkipDecoding()}
    )
    record = records[7]
    assert record["image"] == (downloads / "images" / record["name"].decode()).read_bytes()


@pytest.fixture(scope="module")
def run_python(command_environment):
    def call(*arguments):
        root = Path(isic.__file__).parents[2]
        return subprocess.run(
            [sys.executable, *arguments], cwd=root, env=command_environment, capture_output=True, text=True
        )

    return call


@pytest.mark.slow
def test_a_process_without_the_builder_reads_it_without_tensorflow(prepared, run_python):
    code = (
        "import sys\n"
        "from configs import default\n"
        "from medgan_jax.config import parse_config\n"
        "from medgan_jax.data.sources import open_source\n"
        "c = default.get_config()\n"
        f"c.data.update(source='tfds', tfds_name='isic/2016', path={str(prepared)!r}, class_filter='malignant')\n"
        "print(len(open_source(parse_config(c).data)))\n"
        "print('tensorflow' in sys.modules, 'medgan_jax.data.isic' in sys.modules)\n"
    )
    done = run_python("-c", code)
    assert done.stdout.split() == ["6", "False", "False"]


@pytest.fixture(scope="module")
def later_year(tmp_path_factory):
    """Six images, the last without a row, one cut short, one with superpixels and a mask; a table, a row too many."""
    folder = tmp_path_factory.mktemp("later")
    (folder / "images").mkdir()
    for index in range(6):
        Image.effect_noise((64, 64), 50).save(folder / "images" / f"ISIC_{index}.jpg")
    for end in ("superpixels", "segmentation"):
        Image.new("L", (64, 64)).save(folder / f"images/ISIC_0_{end}.png")
    os.truncate(folder / "images/ISIC_4.jpg", 900)
    rows = [f"ISIC_{index},{float(index % 2 == 0)},{float(index % 2)}\n" for index in (0, 1, 2, 3, 4, 7)]
    (folder / "truth.csv").write_text("image,MEL,NV\n" + "".join(rows))
    return [f"--images={folder}/images", f"--labels={folder}/truth.csv", "--year=2018"]


@pytest.mark.slow
def test_what_is_damaged_or_unmatched_is_skipped_when_asked(later_year, tmp_path, tiny_config, run_python):
    """By the name of the module too, which scripts call."""
    skip = ["--on_missing=skip", "--on_bad_image=skip"]
    done = run_python("-m", "medgan_jax.data.isic", *later_year, *skip, f"--out={tmp_path}")
    assert done.returncode == 0, done.stderr
    left_out = "left out: 2 masks or annotations of others by their names: *_segmentation.png, *_superpixels.png\n"
    for said in (left_out, "\n4 images in", "--config.data.tfds_name=isic/2018"):
        assert said in done.stdout
    for said in ("labels by the 1 in the columns MEL, NV", "images: ISIC_7;", "ISIC_5.jpg;", "ISIC_4.jpg (truncated);"):
        assert said in done.stderr
    source = open_source(tiny_config(data_source="tfds", data_tfds_name="isic/2018", data_path=str(tmp_path)).data)
    assert sorted(source.labels) == ["MEL", "MEL", "NV", "NV"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "SMITH.dcm",
            "^1 of 3 images in .* are DICOM, whose headers would be packed too: [0-9a-f]{16}, which .*folder$",
        ),
        ("stack.tif", r"^1 of 3 images in .* have several pages or frames: stack.tif \(2\); convert them .* or leave"),
        ("fake.jpg", "^1 of 3 images in .* are marked as synthetic: fake.jpg; leave them out$"),
    ],
)
def test_dicom_frames_and_synthetic_images_are_refused(name, message, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    frames = [Image.effect_noise((20, 16), 50) for _ in range(2)]
    for other in ("a.png", "b.png"):
        frames[0].save(images / other)
    if name == "SMITH.dcm":
        origin = Provenance("abc", step=1, seed=0, index=0)
        (images / name).write_bytes(encode_dicom(np.zeros((16, 16, 1), np.uint8), kind="dicom", provenance=origin))
    elif name == "fake.jpg":
        frames[0].save(images / name, xmp=png_text()[XMP].encode())
    else:
        frames[0].save(images / name, save_all=True, append_images=frames[1:])
    (tmp_path / "labels.csv").write_text("a,x\nb,y\n")
    with pytest.raises(UserError, match=message) as raised:
        isic.main([f"--images={images}", f"--labels={tmp_path}/labels.csv", f"--out={tmp_path}/tfds"])
    assert "SMITH" not in str(raised.value)
    assert not (tmp_path / "tfds").exists()


def test_what_is_damaged_or_unmatched_is_refused(later_year, tmp_path):
    for options, message in [
        ([], "truth.csv names 1 of 6 images that are not in .*: ISIC_7; .* or set --on_missing=skip$"),
        (["--on_missing=skip"], r"1 of 5 images .*: ISIC_4.jpg \(truncated\); .* or set --on_bad_image=skip$"),
    ]:
        with pytest.raises(UserError, match=message):
            isic.main([*later_year, *options, f"--out={tmp_path}"])
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_prepared_is_refused_before_anything_is_written(downloads, prepared, tmp_path):
    (tmp_path / "short.csv").write_text("ISIC_0000000,benign\n")
    given = {"images": f"{downloads}/images", "labels": f"{downloads}/labels.csv", "out": f"{tmp_path}/tfds"}
    for changed, message in [
        ({"labels": f"{tmp_path}/short.csv"}, f"{COUNT - 1} of {COUNT} images in .* have no label"),
        ({"labels": f"{tmp_path}/no.csv"}, r"--labels=\S+no.csv: no such file"),
        ({"images": f"{tmp_path}/no"}, r"--images=\S+no: no such file"),
        ({"out": str(prepared)}, r"--out=\S+ already holds \S+isic/2016/1.0.0"),
        ({"year": "1999"}, "--year: invalid choice"),
    ]:
        with pytest.raises(UserError, match=message):
            isic.main([f"--{name}={value}" for name, value in {**given, **changed}.items()])
    assert not (tmp_path / "tfds").exists()
