"""The files of `output_prefix`."""

import signal

import numpy as np
import pytest
from PIL import Image

from medgan_jax.compat.medimagegan import outputs
from medgan_jax.data import batches as batches_module
from medgan_jax.errors import UserError
from medgan_jax.report import plots
from medgan_jax.training.loop import train
from medgan_jax.workdir import read_lines


@pytest.fixture
def config(tiny_config, tmp_path):
    def make(**overrides):
        overrides = {"output_prefix": str(tmp_path / "out/deep/run"), "num_steps": 6} | overrides
        return tiny_config(data_cache_dir=str(tmp_path / "cache"), **overrides)

    return make


def test_a_finished_training_leaves_the_originals_files(config, tmp_path, monkeypatch):
    c = config()
    figures, png = [], plots.png
    monkeypatch.setattr(plots, "png", lambda figure, **options: figures.append(figure) or png(figure, **options))
    train(c, tmp_path / "run")
    folder = tmp_path / "out/deep"
    fixed = ["run_loss_plot.png", "run_metrics_report.out", "run_real_fake_grid.png"]
    images = [f"run_1_{j}_img.png" for j in range(4)]  # the 6th step is in the second epoch of 3
    assert sorted(path.name for path in folder.iterdir()) == sorted(fixed + images)
    for name in fixed:
        if name.endswith(".png"):
            with Image.open(folder / name) as picture:
                assert min(picture.convert("RGB").size) >= 400
                assert len(picture.convert("RGB").getcolors(2**24)) > 10
    with Image.open(tmp_path / "run/samples/step_00000006.png") as grid:
        grid = np.asarray(grid)
    for j, name in enumerate(images):
        top, left = 2 + 18 * (j // 2), 2 + 18 * (j % 2)
        with Image.open(folder / name) as image:
            np.testing.assert_array_equal(np.asarray(image), grid[top : top + 16, left : left + 16])
    curves, pictures = figures
    log = list(read_lines(tmp_path / "run/metrics.jsonl"))
    for line, field in zip(curves.axes[0].lines, ("loss_gen", "loss_dis"), strict=True):
        assert list(line.get_xdata()) == [2, 4, 6]
        assert list(line.get_ydata()) == [entry[field] for entry in log]
        assert line.get_label() == {"loss_gen": "generator", "loss_dis": "discriminator"}[field]
    reals = batches_module.load_dataset(c.data, image_size=16, channels=3)[0].images
    first = {"Real images": reals[np.random.default_rng(c.seed).permutation(12)[0]], "Fake images": grid[2:18, 2:18]}
    for axes, factor in zip(pictures.axes, (8, 3), strict=True):  # of 3 rows and of 8, to reach 400 px
        shown = np.asarray(axes.images[0].get_array())[::factor, ::factor]
        np.testing.assert_array_equal(shown[2:18, 2:18], first.pop(axes.get_title()))
    report = (folder / "run_metrics_report.out").read_text()
    assert report.startswith("The generator of step 6 and the 12 images it was trained on\n")
    assert "12 pairs" in report

    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    train(c, tmp_path / "run")
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    (folder / images[2]).unlink()
    assert outputs.missing(c.output_prefix, epoch=1, step=6, num_images=4)
    train(c, tmp_path / "run")
    assert not outputs.missing(c.output_prefix, epoch=1, step=6, num_images=4)
    assert (folder / "run_metrics_report.out").read_text() == report
    assert outputs.missing(c.output_prefix, epoch=1, step=5, num_images=4)  # of another step of the same epoch


def test_a_stopped_training_leaves_none(config, tmp_path, monkeypatch):
    def take(self, count, after=None):
        raise UserError("the disk is gone")

    monkeypatch.setattr(batches_module.ResidentBatches, "take", take)
    with pytest.raises(UserError, match="the disk is gone"):
        train(config(), tmp_path / "run")
    assert list((tmp_path / "out/deep").iterdir()) == []


def test_a_signal_while_they_are_written_interrupts_and_the_same_command_completes_them(config, tmp_path, monkeypatch):
    c = config()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(outputs, "published_scores", lambda *sets, seed: signal.raise_signal(signal.SIGINT))
        train(c, tmp_path / "run")
    assert outputs.missing(c.output_prefix, epoch=1, step=6, num_images=4)
    assert train(c, tmp_path / "run") == 0
    assert not outputs.missing(c.output_prefix, epoch=1, step=6, num_images=4)


def test_another_trainings_files_are_not_overwritten(config, tmp_path):
    (tmp_path / "out/deep").mkdir(parents=True)
    (tmp_path / "out/deep/run_metrics_report.out").write_text("theirs")
    with pytest.raises(UserError, match=r"output_prefix=.*run_metrics_report.out is there already"):
        train(config(), tmp_path / "run")
    assert (tmp_path / "out/deep/run_metrics_report.out").read_text() == "theirs"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("run", ["run", "x" * 240])
def test_a_prefix_that_cannot_be_written_is_refused_before_training(config, tmp_path, run):
    if run == "run":
        (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match=rf"output_prefix=.*out/deep/{run}: cannot be written"):
        train(config(output_prefix=f"{tmp_path}/out/deep/{run}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
