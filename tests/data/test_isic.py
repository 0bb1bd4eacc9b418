"""`medgan isic`: a folder and a table become a TFDS data set, which is read back, every record of it."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from medgan_jax.commands import isic
from medgan_jax.data.sources import open_source
from medgan_jax.errors import UserError
from medgan_jax.images import decode_image, resize

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


@pytest.mark.slow
def test_a_process_without_the_builder_reads_it_without_tensorflow(prepared):
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
    root = Path(isic.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["6", "False", "False"]


def test_the_columns_of_later_years(downloads, tmp_path, tiny_config, capsys):
    table = tmp_path / "truth.csv"
    rows = [f"ISIC_{index:07d},{float(index < 3)},0.0\n" for index in range(COUNT)]
    table.write_text("image_id,melanoma,seborrheic_keratosis\n" + "".join(rows))
    command = [f"--images={downloads}/images", f"--labels={table}", f"--out={tmp_path}/tfds", "--year=2017"]
    with pytest.raises(UserError, match="set --image_column and --label_column to two of image_id, melanoma"):
        isic.main(command)
    isic.main([*command, "--image_column=image_id", "--label_column=melanoma"])
    shown = capsys.readouterr().out
    assert f"{COUNT} images in" in shown and "--config.data.tfds_name=isic/2017" in shown
    config = tiny_config(
        data_source="tfds", data_tfds_name="isic/2017", data_path=f"{tmp_path}/tfds", data_class_filter="1.0"
    )
    assert len(open_source(config.data)) == 3


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
