"""Trains and scores MedImageGAN's published experiments, and tabulates our scores beside the published ones.

The configs are those of configs/medimagegan.py.
"""

import dataclasses
import importlib.metadata
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from medgan_jax import __version__
from medgan_jax.checkpoint import load_generator
from medgan_jax.compat.medimagegan.published import COLUMNS, PUBLISHED, format_score, num_fakes, published_scores
from medgan_jax.config import Config
from medgan_jax.data.batches import epoch_permutation, load_dataset, steps_per_epoch
from medgan_jax.errors import UserError
from medgan_jax.evaluation.image_sets import sampled
from medgan_jax.files import replace_file
from medgan_jax.images import image_grid, write_png
from medgan_jax.metrics.paired import METRICS
from medgan_jax.report import plots
from medgan_jax.sharding import check_batch_size, data_mesh, replicated
from medgan_jax.training.callback import Diverged
from medgan_jax.training.trainer import train
from medgan_jax.workdir import Workdir, read_json, read_lines, write_json

PUBLISHED_FIGURES: dict[str, tuple[float, ...]] = {  # by experiment, those of `PUBLISHED`, in the published order
    "batch_128": (9.91, 0.04, 0.27, 0.58, 0.31),
    "batch_64": (12.46, 0.23, 0.25, 0.49, 0.35),
    "batch_16": (12.76, 0.30, 0.25, 0.49, 0.37),
    "long_training": (),
    "latent_128": (11.89, 0.29, 0.27, 0.49, 0.32),
    "latent_256": (10.82, 0.28, 0.28, 0.52, 0.31),
    "label_smoothing": (12.92, 0.35, 0.29, 0.45, 0.39),
    "spectral_norm": (12.04, 0.35, 0.27, 0.46, 0.40),
    "rate_10x": (12.05, 0.30, 0.27, 0.50, 0.37),
    "rate_100x": (12.03, 0.25, 0.26, 0.48, 0.38),
    "rate_100x_300_epochs": (12.21, 0.21, 0.26, 0.49, 0.41),
    "sngan_128px": (12.18, 0.24, 0.15, 0.52, 0.45),
    "sngan_256px": (),
    "matlab": (),
}
RECORD = "experiment.json"  # in the workdir of a finished experiment
_COLUMNS = 8  # of a picture: a row of reals, two of fakes


def run_experiments(configs: Mapping[str, Config], out: Path, settings: Mapping[str, Any]) -> int:
    """Runs experiments that are not finished yet, one after another, and writes the table after each.

    What is written where: see `medgan_jax.commands.experiments`.

    Args:
      configs: by name of the experiment, of `PUBLISHED_FIGURES`.
      out: the folder.
      settings: what all experiments in `out` share, for the caption: "data" and "class_filter", of the images; "scale",
        by which the number of epochs is multiplied; "seed"; "features", of both networks where that was changed.

    Returns:
      0 when all are finished; 128 + the signal's number when a signal stopped a training.

    Raises:
      UserError: `out` holds experiments with other settings or images, or a training is not possible.
    """
    for record in _records(out):
        before = record["settings"]
        different = [
            f"no --{name}" if before[name] in (None, "") else f"--{name}={before[name]}"
            for name in settings
            if settings[name] != before[name]
        ]
        if different:
            raise UserError(f"--out={out}: holds experiments with {', '.join(different)}; give that, or another --out")
    out.mkdir(parents=True, exist_ok=True)
    for name, config in configs.items():
        if code := _run(name, config, out / name, settings):
            return code
        _write_table(out)
    return 0


def _run(name: str, config: Config, workdir: Path, settings: Mapping[str, Any]) -> int:
    """Trains and scores one experiment, unless that is done; the exit code of a training that was stopped, or 0."""
    dataset, _ = load_dataset(config.data, image_size=config.image_size, channels=config.channels)
    record: dict[str, Any] = {"name": name, "settings": settings, "images": len(dataset.images), "problem": ""}
    try:
        epoch = steps_per_epoch(len(dataset.images), config.batch_size)
        check_batch_size(config.batch_size, data_mesh())
    except UserError as error:
        print(f"{name}: {error}")
        workdir.mkdir(exist_ok=True)
        write_json(workdir / RECORD, record | {"problem": f"not run: {error}"})
        return 0

    steps = max(1, round(settings["scale"] * config.total_steps(epoch)))
    config = dataclasses.replace(config, num_steps=steps)
    if (workdir / RECORD).exists() and Workdir(workdir).config.exists():
        Workdir(workdir).check(config, {"digest": dataset.digest, "num_images": len(dataset.images)})
        print(f"{name}: was run before")
        return 0
    print(f"{name}: {steps} steps on {len(dataset.images)} images")
    try:
        if code := train(config, workdir):
            return code
        record["scores"] = _score(workdir, dataset.images, config.seed)
    except Diverged as error:
        record["problem"] = str(error).partition(";")[0]
        print(f"{name}: {record['problem']}")
    versions = {package: importlib.metadata.version(package) for package in ("jax", "flax", "optax")}
    kind = jax.devices()[0].device_kind
    record |= {
        "steps": steps,
        "epochs": steps / epoch,
        "seconds": _seconds(workdir, config.batch_size),
        "device": f"{os.cpu_count()} CPU cores" if kind == "cpu" else f"{jax.device_count()} x {kind}",
        "versions": {"medgan_jax": __version__} | versions,
    }
    write_json(workdir / RECORD, record)
    return 0


def _score(workdir: Path, reals: np.ndarray, seed: int) -> dict[str, Any]:
    """The scores of a finished training; writes its picture."""
    mesh = data_mesh()
    generator = load_generator(workdir, replicated(mesh))
    fakes = sampled(generator, num_fakes(len(reals)), seed=seed, mesh=mesh, title="", progress=False).images
    shown = epoch_permutation(len(reals), seed=seed, epoch=0)[:_COLUMNS]  # classes lie together
    above = np.zeros((_COLUMNS, *reals.shape[1:]), np.uint8)
    above[: len(shown)] = reals[shown]
    picture = image_grid(np.concatenate([above, fakes[: 2 * _COLUMNS]]), columns=_COLUMNS)
    write_png(workdir.with_suffix(".png"), picture)
    return dataclasses.asdict(published_scores(fakes, reals, seed=seed))


def _seconds(workdir: Path, batch_size: int) -> float:
    """How long the training took, by the rates in its log: interrupted or not, and without compiling."""
    lines = [{"step": 0}, *read_lines(Workdir(workdir).metrics)]
    return sum(
        (line["step"] - before["step"]) * batch_size / line["images_per_s"]
        for before, line in itertools.pairwise(lines)
        if line["images_per_s"]
    )


def _records(out: Path) -> list[dict[str, Any]]:
    """The finished experiments in `out`, in the published order."""
    paths = [out / name / RECORD for name in PUBLISHED_FIGURES]
    return [read_json(path, remedy="delete it to run it again") for path in paths if path.exists()]


def _write_table(out: Path) -> None:
    records = _records(out)
    rows = [record | {"published": PUBLISHED_FIGURES[record["name"]]} for record in records]
    replace_file(out / "table.md", table(records).encode())
    write_json(out / "table.json", {"experiments": rows})
    if names := [record["name"] for record in records if "scores" in record]:
        replace_file(out / "table.png", _picture(out, names))


def _picture(out: Path, names: Sequence[str]) -> bytes:
    """PNG of a row of reals, and of the first fakes of each experiment."""
    from matplotlib.figure import Figure

    rows: dict[str, np.ndarray] = {}
    for name in names:
        with Image.open(out / f"{name}.png") as image:
            reals, fakes, _ = np.array_split(np.asarray(image.convert("RGB")), 3)
        rows |= {name: fakes} if rows else {"reals": reals, name: fakes}
    figure = Figure(figsize=(7, 0.75 * len(rows)), layout="constrained")
    for axes, (name, row) in zip(figure.subplots(len(rows), 1), rows.items(), strict=True):
        axes.imshow(row)
        axes.set_ylabel(name, rotation=0, ha="right", va="center")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    return plots.png(figure, dpi=100)


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """The experiments as Markdown: a caption, our scores beside the published ones, and how they were run.

    Args:
      records: of each experiment "name", "settings", "images" and "problem"; where a training was begun, "steps",
        "epochs", "seconds", "device" and "versions"; where it finished, "scores", the fields of `PublishedScores`.
    """
    lines = [
        *_caption(records),
        "",
        f"| experiment | metric | published | {' | '.join(COLUMNS.values())} |",
        "|---|---|---|---|---|---|---|",
    ]
    for record in records:
        published = dict(zip(PUBLISHED, PUBLISHED_FIGURES[record["name"]], strict=False))
        means = record["scores"]["means"] if "scores" in record else dict.fromkeys(COLUMNS, {})
        for i, name in enumerate(PUBLISHED):
            scores = [format_score(column, name) for column in (published, *(means[column] for column in COLUMNS))]
            lines.append(f"| {' | '.join(['' if i else record['name'], METRICS[name].title, *scores])} |")
    lines += ["", "| experiment | steps | epochs | images | training | |", "|---|---|---|---|---|---|"]
    for record in records:
        remarks = [record["problem"] or "finished", *record.get("scores", {}).get("skipped", ())]
        run = [str(record["steps"]), f"{record['epochs']:.4g}"] if "steps" in record else ["-", "-"]
        time = _duration(record["seconds"]) if "seconds" in record else "-"
        cells = [record["name"], *run, str(record["images"]), time, "; ".join(remarks).replace("|", "/")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _duration(seconds: float) -> str:
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _caption(records: Sequence[Mapping[str, Any]]) -> list[str]:
    settings = records[0]["settings"]
    images = sorted({record["images"] for record in records})
    devices = sorted({record["device"] for record in records if "device" in record}) or ["nothing was run"]
    packages = sorted({f"{name} {v}" for record in records for name, v in record.get("versions", {}).items()})
    data = ", ".join(filter(None, (settings["data"], settings["class_filter"])))
    lines = [
        f"MedImageGAN's experiments on {' or '.join(map(str, images))} images ({data}); scale {settings['scale']:g}, "
        f"seed {settings['seed']}; {', '.join(devices)}; {', '.join(packages)}."
    ]
    reductions = []
    if settings["scale"] != 1:
        reductions.append(f"each training took {settings['scale']:g} times its number of epochs")
    if settings["features"]:
        reductions.append(f"both networks have {settings['features']} feature maps in place of 64")
    if reductions:
        lines += [
            "",
            f"**Not the full experiments:** {', and '.join(reductions)}. These figures can be compared neither with "
            "the published ones nor with those of full runs.",
        ]
    lines += ["", "PSNR in dB, SSIM and HaarPSI: higher is better; MS-GMSD and MDSI: lower. Means over pairs."]
    if scores := next((record["scores"] for record in records if "scores" in record), None):
        lines += [
            f"Original's protocol: {scores['num_pairs']} fakes and unrelated training images, each stretched to its "
            "own range; such pairs tell little of a generator, and the published ones were fewer than a batch.",
            f"Nearest real: {scores['num_each']} fakes, each with the nearest of {scores['num_reference']} training "
            f"images. Reals: {scores['num_each']} other training images in place of the fakes, the real reference. "
            "Memorized images can score better, and so can images without detail.",
        ]
    return lines
