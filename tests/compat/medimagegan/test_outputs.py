"""The files of `output_prefix`."""

import json

import numpy as np
import pytest
from PIL import Image

from medgan_jax.compat.medimagegan.outputs import MedImageGANOutputs, fakes_needed, missing, prepare, write_outputs
from medgan_jax.errors import UserError
from medgan_jax.training.trainer import train

pytestmark = pytest.mark.slow

FILES = {"run_loss_plot.png", "run_metrics_report.out", "run_real_fake_grid.png"}


def test_files_of_a_finished_training(phantoms, tmp_path):
    reals, fakes = phantoms[:12, ::2, ::2], phantoms[20:36, ::2, ::2]
    log = tmp_path / "metrics.jsonl"
    log.write_text("".join(json.dumps({"step": s, "loss_gen": 1.0, "loss_dis": 0.5 * s}) + "\n" for s in (2, 4, 6)))
    prefix = str(tmp_path / "out/run")
    end = {"epoch": 1, "step": 6, "num_images": 4}
    prepare(prefix, new=True)
    assert missing(prefix, **end)
    write_outputs(prefix, log=log, reals=reals, fakes=fakes, seed=3, **end)
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES | {f"run_1_{j}_img.png" for j in range(4)}
    for j in range(4):
        with Image.open(f"{prefix}_1_{j}_img.png") as image:
            np.testing.assert_array_equal(np.asarray(image), fakes[j])
    for name in ("loss_plot", "real_fake_grid"):
        with Image.open(f"{prefix}_{name}.png") as picture:
            assert min(picture.size) >= 400
            colours = {colour for _, colour in picture.convert("RGB").getcolors(2**24)}
    shown = [reals[np.random.default_rng(3).permutation(12)[0]], fakes[0]]
    assert all({tuple(pixel) for pixel in image.reshape(-1, 3).tolist()} <= colours for image in shown)
    report = (tmp_path / "out/run_metrics_report.out").read_text()
    assert report.startswith("The generator of step 6 and the 12 images it was trained on\n")
    assert "12 pairs" in report
    assert not missing(prefix, **end)
    assert missing(prefix, **end | {"step": 5})  # another step of the same epoch
    (tmp_path / "out/run_1_2_img.png").unlink()
    assert missing(prefix, **end)


def test_fakes_needed():
    assert [fakes_needed(12, 4), fakes_needed(12, 100), fakes_needed(400, 4)] == [64, 100, 200]


def test_the_same_command_writes_what_is_missing_and_nothing_else(tiny_config, tmp_path):
    config = tiny_config(
        arch="dcgan", data_cache_dir=str(tmp_path / "cache"), num_steps=6, output_prefix=f"{tmp_path}/out/run"
    )
    train(config, tmp_path / "workdir", callbacks=[MedImageGANOutputs()])
    folder = tmp_path / "out"
    files = {path: path.read_bytes() for path in folder.iterdir()}
    assert {path.name for path in files} == FILES | {f"run_1_{j}_img.png" for j in range(4)}  # step 6, 3 an epoch
    with (
        Image.open(tmp_path / "workdir/samples/step_00000006.png") as grid,
        Image.open(folder / "run_1_0_img.png") as i,
    ):
        np.testing.assert_array_equal(np.asarray(i), np.asarray(grid)[2:18, 2:18])
    (folder / "run_1_2_img.png").unlink()
    train(config, tmp_path / "workdir", callbacks=[MedImageGANOutputs()])
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    train(config, tmp_path / "workdir", callbacks=[MedImageGANOutputs()])
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times
    assert {path: path.read_bytes() for path in folder.iterdir()} == files


def test_files_of_another_training_are_not_overwritten(tiny_config, tmp_path):
    prefix = f"{tmp_path}/run"
    (tmp_path / "run_metrics_report.out").write_text("theirs")
    with pytest.raises(UserError, match=r"output_prefix=.*run_metrics_report.out is there already"):
        train(tiny_config(output_prefix=prefix), tmp_path / "workdir", callbacks=[MedImageGANOutputs()])
    assert [path.name for path in tmp_path.iterdir()] == ["run_metrics_report.out"]
    prepare(prefix, new=False)


@pytest.mark.parametrize("name", ["run", "x" * 240])
def test_a_prefix_that_cannot_be_written_is_refused(tmp_path, name):
    if name == "run":
        (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match=rf"output_prefix=.*out/deep/{name}: cannot be written"):
        prepare(f"{tmp_path}/out/deep/{name}", new=True)
