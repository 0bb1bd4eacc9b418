"""Folders of generated images: what is in them, and that no two samplings are ever mixed."""

import csv
import dataclasses
import resource

import jax
import numpy as np
import pytest
from PIL import Image

from medgan_jax.checkpoint import TrainedGenerator
from medgan_jax.data.dicom import decode_dicom
from medgan_jax.errors import UserError
from medgan_jax.sample_folder import sample_to_folder
from medgan_jax.sharding import data_mesh
from tests.test_sampling import Painter, column, pixels, sample


@pytest.fixture(scope="module")
def generator():
    return TrainedGenerator(Painter(), variables={}, latent_dim=8, step=40, about={}, digest="abc")


@dataclasses.dataclass(frozen=True)
class Spoilt(Painter):
    """Of each four images the third is noise, which makes a larger file."""

    def apply(self, variables, latents, labels, training):
        noise = jax.random.uniform(jax.random.key(0), (16, 16, 3), minval=-1)
        return super().apply(variables, latents, labels, training).at[2].set(noise)


def test_manifest_names_every_file_and_its_origin(generator, tmp_path):
    files = sample(generator, tmp_path / "a")
    rows = list(csv.DictReader((tmp_path / "a/manifest.csv").read_text().splitlines()))
    assert {row["file"] for row in rows} == set(files) - {"manifest.csv"}
    origin = {"file": "000003.png", "seed": "5", "index": "3", "step": "40", "digest": generator.digest, "label": ""}
    origin |= {"truncation": "", "attempt": ""}
    assert rows[3] == origin


def test_grey_images_are_grey_files(generator, tmp_path):
    sample(dataclasses.replace(generator, module=Painter(channels=1)), tmp_path / "a", grid=True)
    for name in ("000000.png", "grid.png"):
        with Image.open(tmp_path / "a" / name) as image:
            assert image.mode == "L"


@pytest.mark.parametrize("format", ["dicom", "dicom-dermoscopic"])
def test_dicom_files_hold_the_pixels_of_the_png_files(format, generator, tmp_path):
    sample(generator, tmp_path / "a")
    expected = pixels(tmp_path / "a")
    files = sample(generator, tmp_path / "a", format=format, overwrite=True)
    assert sample(generator, tmp_path / "b", format=format, batch_size=2) == files
    assert column(tmp_path / "a", "file") == [f"{i:06d}.dcm" for i in range(7)] == sorted(set(files) - {"manifest.csv"})
    images = [decode_dicom(files[f"{i:06d}.dcm"], channels=3) for i in range(7)]
    np.testing.assert_array_equal(images, expected)


def test_a_folder_in_use_is_refused(generator, tmp_path):
    before = sample(generator, tmp_path / "a", grid=True)
    with pytest.raises(UserError, match="--overwrite"):
        sample(generator, tmp_path / "a", num_images=2)
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before
    with pytest.raises(UserError, match="is a file"):
        sample(generator, tmp_path / "a/000000.png")


def test_overwrite_removes_all_of_the_earlier_run_and_nothing_else(generator, tmp_path):
    """Also of a run that was killed: what it wrote is in no manifest."""
    sample(generator, tmp_path / "a", grid=True)
    (tmp_path / "precious.png").write_bytes(b"mine")
    (tmp_path / "a/manifest.csv").write_text("file,seed\n../precious.png,0\n")
    (tmp_path / "a/.0123456789abcdef.tmp").write_bytes(b"half an image")
    files = sample(generator, tmp_path / "a", num_images=2, overwrite=True)
    assert set(files) == {"000000.png", "000001.png", "manifest.csv"}
    (tmp_path / "a/thesis.png").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"thesis\.png"):
        sample(generator, tmp_path / "a", overwrite=True)
    assert (tmp_path / "a/000000.png").exists() and (tmp_path / "precious.png").exists()


def test_litter_in_the_folder_counts_as_nothing_and_stays(generator, tmp_path):
    (tmp_path / "a/.ipynb_checkpoints").mkdir(parents=True)
    (tmp_path / "a/Thumbs.db").write_text("x")
    for overwrite in (False, True):
        written = sample_to_folder(
            generator, tmp_path / "a", num_images=2, seed=5, batch_size=4, mesh=data_mesh(), overwrite=overwrite
        )
        names = {path.name for path in written.manifest.parent.iterdir()}
        assert names == {".ipynb_checkpoints", "Thumbs.db", "000000.png", "000001.png", "manifest.csv"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_two_samplings_into_one_folder(generator, tmp_path, overwrite):
    says = "another process is writing images there; wait" if overwrite else "holds 1 files already"

    class Joined(Painter):
        def apply(self, *arguments, **options):  # while the first one is at work
            with pytest.raises(UserError, match=says):
                sample(generator, tmp_path / "a", overwrite=overwrite)
            return super().apply(*arguments, **options)

    assert sample(dataclasses.replace(generator, module=Joined()), tmp_path / "a") == sample(generator, tmp_path / "b")


def test_a_prefix_shares_its_folder(generator, tmp_path):
    plain = sample(generator, tmp_path / "plain", grid=True)
    (tmp_path / "a").mkdir()
    for name in ("scan.png", "run_loss_plot.png", "run_2_000000.png", "000000.png", "manifest.csv", "xrun_000000.png"):
        (tmp_path / "a" / name).write_bytes(b"mine")
    before = {path.name for path in (tmp_path / "a").iterdir()}
    files = sample(generator, tmp_path / "a", grid=True, prefix="run")
    assert set(files) - before == {f"run_{i:06d}.png" for i in range(7)} | {"run_grid.png", "run_manifest.csv"}
    assert all(files[name] == b"mine" for name in before)
    assert all(files[f"run_{name}"] == plain[name] for name in plain if name != "manifest.csv")
    rows = list(csv.DictReader(files["run_manifest.csv"].decode().splitlines()))
    assert [row["file"] for row in rows] == [f"run_{i:06d}.png" for i in range(7)]
    with pytest.raises(UserError, match=r"holds 9 files named run_\.\.\. already"):
        sample(generator, tmp_path / "a", prefix="run")
    files = sample(generator, tmp_path / "a", prefix="run", num_images=2, overwrite=True)
    assert set(files) - before == {"run_000000.png", "run_000001.png", "run_manifest.csv"}
    assert all(files[name] == b"mine" for name in before)


def test_files_that_a_prefix_would_replace_are_removed_only_beside_their_manifest(generator, tmp_path):
    (tmp_path / "run_000003.png").write_bytes(b"mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"run_000003\.png|--overwrite"):
            sample(generator, tmp_path, prefix="run", overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["run_000003.png"]
    assert "r.n_000001.png" in sample(generator, tmp_path, prefix="r.n", num_images=2)  # no pattern


def test_the_manifest_lists_only_what_was_written(generator, tmp_path):
    """A limit on the size of files stands in for a full disk."""
    noisy = dataclasses.replace(generator, module=Spoilt())
    whole = sample(noisy, tmp_path / "whole")  # compiled, which is written to a cache of its own
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole["000002.png"]) - 1, limits[1]))
    try:
        with pytest.raises(OSError, match=r"000002\.png"):
            sample(noisy, tmp_path / "a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert column(tmp_path / "a", "file") == ["000000.png", "000001.png"]
