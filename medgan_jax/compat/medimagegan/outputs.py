"""The files that MedImageGAN leaves after a training: a loss plot, reals beside fakes, a report, and images."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medgan_jax.compat.medimagegan.published import num_fakes, published_report, published_scores
from medgan_jax.config import Config
from medgan_jax.distributed import from_leader, is_leader
from medgan_jax.errors import UserError
from medgan_jax.files import local_path, replace_file
from medgan_jax.images import image_grid, write_png
from medgan_jax.provenance import png_text
from medgan_jax.report import plots
from medgan_jax.training.callback import Callback
from medgan_jax.training.state import GANState
from medgan_jax.workdir import read_lines

if TYPE_CHECKING:
    from medgan_jax.training.trainer import Run

_PLOT, _GRID, _REPORT = "loss_plot.png", "real_fake_grid.png", "metrics_report.out"
_GRID_IMAGES = 64
_GRID_SIDE = 400  # px at least, so that titles fit above small images
_DPI = 100


class MedImageGANOutputs(Callback):
    """Writes the files that `config.output_prefix` names, when the run reaches its last step."""

    def check(self, config: Config, *, is_new: bool) -> None:
        """Raises UserError as `prepare`."""
        if is_leader():
            prepare(config.output_prefix, new=is_new)

    def on_end(self, run: "Run", state: GANState) -> None:
        """Writes them, unless all are there."""
        c, prefix, reals = run.config, run.config.output_prefix, run.data.training.images
        end = {"epoch": run.epoch(run.step), "step": run.step, "num_images": c.num_sample_images}
        if run.step < run.total_steps or not from_leader(missing(prefix, **end)):
            return
        variables = run.sampling_variables(state)
        if run.files.writes:
            fakes = run.sample(variables, fakes_needed(len(reals), c.num_sample_images), real_proportions=True)
            write_outputs(prefix, log=run.files.metrics, reals=reals, fakes=fakes, seed=c.seed, **end)


def prepare(prefix: str, *, new: bool) -> None:
    """Makes the folder of `prefix`, the first part of every name, before time is spent on training.

    Raises UserError when the folder cannot be written to, a name that begins with `prefix` is too long, or files are
    there although the training is `new`, and so are another's.
    """
    present = [path for path in (_path(prefix, name) for name in (_PLOT, _GRID, _REPORT)) if path.exists()]
    if new and present:
        raise UserError(
            f"output_prefix={prefix}: {present[0]} is there already, of another training; move it, or give another "
            "prefix (in a control file, another run)"
        )
    path = _path(prefix, _GRID)  # the longest name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}"):
            pass
    except OSError as error:
        raise UserError(f"output_prefix={prefix}: cannot be written ({error.strerror}); give another") from error


def missing(prefix: str, *, epoch: int, step: int, num_images: int) -> bool:
    """Whether a file that `write_outputs` would write is not there, or is of another step."""
    paths = [_path(prefix, name) for name in (_PLOT, _GRID, _REPORT)]
    paths += [_image_path(prefix, epoch, j) for j in range(num_images)]
    if not all(path.exists() for path in paths):
        return True
    return not _path(prefix, _REPORT).read_text(errors="replace").startswith(_title(step))


def fakes_needed(num_reals: int, num_images: int) -> int:
    """How many images of the fixed latents `write_outputs` can use."""
    return max(num_images, num_fakes(num_reals))


def write_outputs(
    prefix: str, *, log: Path, reals: np.ndarray, fakes: np.ndarray, num_images: int, epoch: int, step: int, seed: int
) -> None:
    """Writes PREFIX_loss_plot.png, _real_fake_grid.png, _metrics_report.out, and images PREFIX_EPOCH_J_img.png.

    Each file is replaced whole; OSError when one cannot be written.

    Args:
      prefix: folder and first part of every name.
      log: metrics.jsonl.
      reals: uint8, (M, H, H, C), the training images; `seed` decides which are shown and compared with.
      fakes: uint8, (N, H, H, C), of the fixed latents; see `fakes_needed`.
      num_images: how many of them become files.
      epoch: the last one, from 0, for the names.
      step: of the generator.
      seed: of the choice of reals.
    """
    for j, image in enumerate(fakes[:num_images]):
        write_png(_image_path(prefix, epoch, j), image, png_text())
    if curves := plots.plot_figure("losses", list(read_lines(log))):
        replace_file(_path(prefix, _PLOT), plots.png(curves))
    shown = np.random.default_rng(seed).permutation(len(reals))[:_GRID_IMAGES]  # classes lie together
    replace_file(_path(prefix, _GRID), _side_by_side(np.asarray(reals[shown]), fakes[:_GRID_IMAGES]))
    title = f"{_title(step)}{len(reals)} images it was trained on"
    report = published_report(published_scores(fakes, reals, seed=seed), title=title)
    replace_file(_path(prefix, _REPORT), report.encode())


def _title(step: int) -> str:
    return f"The generator of step {step} and the "


def _path(prefix: str, name: str) -> Path:
    return local_path("output_prefix", f"{prefix}_{name}")


def _image_path(prefix: str, epoch: int, number: int) -> Path:
    return _path(prefix, f"{epoch}_{number}_img.png")


def _side_by_side(reals: np.ndarray, fakes: np.ndarray) -> bytes:
    from matplotlib.figure import Figure

    grids = [image_grid(images) for images in (reals, fakes)]
    factors = [-(-_GRID_SIDE // min(grid.shape[:2])) for grid in grids]
    grids = [grid.repeat(factor, 0).repeat(factor, 1) for grid, factor in zip(grids, factors, strict=True)]
    height, width = (max(grid.shape[axis] for grid in grids) / _DPI for axis in (0, 1))
    figure = Figure(figsize=(2 * width + 0.6, height + 0.4), layout="constrained")
    for axes, title, grid in zip(figure.subplots(1, 2), ("Real images", "Fake images"), grids, strict=True):
        axes.imshow(np.broadcast_to(grid, (*grid.shape[:2], 3)), interpolation="nearest")
        axes.set_title(title)
        axes.set_axis_off()
    return plots.png(figure, dpi=_DPI)
