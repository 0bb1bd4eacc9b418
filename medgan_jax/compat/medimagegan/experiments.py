"""Runs MedImageGAN's published experiments on a folder of images, one after another, and puts ours into its table.

    python -m medgan_jax.compat.medimagegan.experiments --data=/data/isic --out=runs/experiments
    python -m medgan_jax.compat.medimagegan.experiments --data=/data/isic --only=batch_16,latent_128 --scale=0.05

Run it again to go on where it stopped. OUT/table.md and OUT/table.json are the table, OUT/table.png the first fakes of
each, OUT/NAME.png reals above fakes, and OUT/NAME the workdir of a training, for sample.py and evaluate.py.
"""

import argparse
import contextlib
import dataclasses
import difflib
import importlib.metadata
import io
import itertools
import math
import os
import runpy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from medgan_jax import __version__, cli
from medgan_jax.errors import ArgumentParser, UserError
from medgan_jax.images import image_grid, replace_file, write_png

if TYPE_CHECKING:
    from medgan_jax.config import Config
    from medgan_jax.data.cache import CachedImages

PUBLISHED_FIGURES: dict[str, tuple[float, ...]] = {  # PSNR, SSIM, MS-GMSD, MDSI, HaarPSI
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
RECORD = "experiment.json"  # in the workdir, once the experiment is over
TABLE, TABLE_JSON, TABLE_PICTURE = "table.md", "table.json", "table.png"
_SETTINGS = "settings.json"
_NOT_RUN_KEYS = {"name", "images", "problem"}  # of a record
_RUN_KEYS = {"steps", "epochs", "seconds", "device", "versions", "digest"}  # besides
_SHOWN_REALS, _SHOWN_FAKES, _COLUMNS = 8, 16, 8


def main(argv: list[str] | None = None) -> int:
    """Runs the experiments that the command line names.

    Returns:
      0 when all are over; 128 + the signal's number when a signal asked to stop.
    """
    from medgan_jax.data.sources import open_source

    args = _arguments(argv)
    if not args.out:
        raise UserError("give --out=...")
    _check_data(args)
    configs = {name: _config(name, args) for name in _chosen(Path(args.configs), args.only)}
    open_source(next(iter(configs.values())).data)  # the class, and the table against the folder
    out = Path(args.out)
    about = {
        "data": Path(args.data).resolve().name,
        "label": args.label,
        "scale": args.scale,
        "seed": args.seed,
        "features": args.features,
    }
    _prepare(out, about)
    for name, config in configs.items():
        if code := _run(name, config, args.scale, out / name):
            return code
        _write_table(out, about)
    print((out / TABLE).read_text())
    return 0


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="python -m medgan_jax.compat.medimagegan.experiments",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    path = os.path.expanduser
    parser.add_argument("--data", type=path, required=True, help="folder of images")
    parser.add_argument("--labels", type=path, default="", help="table of image names and labels, CSV; for --label")
    parser.add_argument("--image_column", default="image", help="of the table, if it has a header")
    parser.add_argument("--label_column", default="label", help="of the table, if it has a header")
    parser.add_argument("--label", default="", help="train on this class alone")
    parser.add_argument("--out", type=path, default="runs/experiments", help="where everything goes")
    parser.add_argument("--only", default="", help="names with commas between, such as batch_16,latent_128")
    parser.add_argument("--scale", type=_above_0, default=1.0, help="multiplies the epochs; 0.05 is a twentieth")
    parser.add_argument("--features", type=_at_least_1, help="feature maps of both networks, in place of 64")
    parser.add_argument("--seed", type=int, default=0, help="decides weights, order, latents, and halves of the reals")
    parser.add_argument("--configs", type=path, default="configs/experiments", help="folder of config files")
    return parser.parse_args(argv)


def _above_0(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (value := float(text)) < math.inf:
            return value
    raise argparse.ArgumentTypeError(f"{text} must be a number above 0")


def _at_least_1(text: str) -> int:
    with contextlib.suppress(ValueError):
        if (value := int(text)) >= 1:
            return value
    raise argparse.ArgumentTypeError(f"{text} must be a whole number, at least 1")


def _chosen(folder: Path, only: str) -> list[str]:
    """The experiments to run, in the published order; others after them."""
    names = sorted((path.stem for path in folder.glob("*.py")), key=_place)
    if not names:
        raise UserError(f"--configs={folder}: holds no config files; run this where the repository is, or give another")
    wanted = [name.strip() for name in only.split(",") if name.strip()]
    for name in wanted:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
            raise UserError(f"--only={name}: there is no such experiment; {hint}")
    return [name for name in names if name in wanted or not wanted]


def _place(name: str) -> tuple[int, str]:
    known = list(PUBLISHED_FIGURES)
    return (known.index(name) if name in known else len(known)), name


def _config(name: str, args: argparse.Namespace) -> "Config":
    """An experiment on the data of the command line. Raises UserError when its file is no config, or not for them."""
    from medgan_jax.config import parse_config

    path = Path(args.configs, f"{name}.py")
    try:
        fields = runpy.run_path(str(path))["get_config"]()
    except Exception as error:  # whatever the file raised
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"--configs: {path} is not a working config file ({reason})") from error
    fields.seed = args.seed
    if args.features:
        fields.gen_features = fields.dis_features = args.features
    fields.data.update(
        source="csv" if args.labels else "folder",
        path=args.data,
        labels_csv=args.labels,
        class_filter=args.label,
        image_column=args.image_column,
        label_column=args.label_column,
    )
    return parse_config(fields)


def _check_data(args: argparse.Namespace) -> None:
    """Before anything is written, and in the words of this door."""
    from medgan_jax.data.labels import read_labels
    from medgan_jax.data.sources import list_images

    list_images(args.data, field="--data")
    if args.labels:
        read_labels(args.labels, image_column=args.image_column, label_column=args.label_column, prefix="--")


def _prepare(out: Path, settings: Mapping[str, Any]) -> None:
    """Makes the folder, or checks that the experiments in it were begun with the same settings: one caption has all."""
    from medgan_jax.evaluation import page

    page.prepare(out)
    path = out / _SETTINGS
    if path.exists() and any(entry.is_dir() for entry in out.iterdir()):
        before = _read(path)
        changes = [
            f"no --{name}" if before.get(name) in (None, "") else f"--{name}={before[name]}"
            for name in settings
            if before.get(name) != settings[name]
        ]
        if changes:
            raise UserError(f"--out={out}: holds experiments with {', '.join(changes)}; give that, or another --out")
    else:
        _write(path, settings)


def _run(name: str, config: "Config", scale: float, workdir: Path) -> int:
    """Trains and scores one experiment, unless that is done; the exit code of a training that was stopped, or 0."""
    from medgan_jax.data.batches import load_dataset, steps_per_epoch
    from medgan_jax.sharding import check_batch_size, data_mesh
    from medgan_jax.training.loop import train
    from medgan_jax.training.member import Diverged

    dataset, _ = load_dataset(config.data, image_size=config.image_size, channels=config.channels)
    record = {"name": name, "images": len(dataset.images), "problem": ""}
    try:
        epoch = steps_per_epoch(len(dataset.images), config.batch_size)
        check_batch_size(config.batch_size, data_mesh())
    except UserError as error:
        print(f"{name}: {error}")
        workdir.mkdir(exist_ok=True)
        _write(workdir / RECORD, record | {"problem": f"not run: {error}"})
        return 0

    steps = max(1, round(scale * config.total_steps(epoch)))
    if scale != 1:
        config = dataclasses.replace(config, num_steps=steps)
    if _is_over(workdir, config, dataset, steps):
        print(f"{name}: was run before")
        return 0
    print(f"{name}: {steps} steps on {len(dataset.images)} images")
    record |= {
        "steps": steps,
        "epochs": steps / epoch,
        "config": config.to_dict(),
        "digest": dataset.digest,
        "device": _device(),
        "versions": {"medgan_jax": __version__}
        | {package: importlib.metadata.version(package) for package in ("jax", "flax", "optax")},
    }
    try:
        if code := train(config, workdir):
            return code
    except Diverged as error:
        record["problem"] = str(error).partition(";")[0]
        print(f"{name}: {record['problem']}")
    else:
        record |= _scored(workdir, dataset, config.seed)
    record["seconds"] = _seconds(workdir, config.batch_size)
    _write(workdir / RECORD, record)
    return 0


def _is_over(workdir: Path, config: "Config", dataset: "CachedImages", steps: int) -> bool:
    """Whether the experiment has its record; what is recorded must be what would be run."""
    from medgan_jax.config import changed_fields

    if not (workdir / RECORD).exists():
        return False
    record = _read_record(workdir / RECORD)
    if "config" not in record:  # it could not be run
        return False
    changes = changed_fields(record["config"], config)
    if record["digest"] != dataset.digest:
        changes.append("the images")
    if record["steps"] != steps:
        changes.append(f"steps: {record['steps']} -> {steps}")
    if changes:
        raise UserError(
            f"{workdir}: the experiment that was run differs in {'; '.join(changes)}. Undo the change, or give "
            "another --out"
        )
    return True


def _scored(workdir: Path, dataset: "CachedImages", seed: int) -> dict[str, Any]:
    """The scores of a finished training; writes its picture."""
    from medgan_jax.checkpoint import load_generator
    from medgan_jax.compat.medimagegan.published import num_fakes, published_scores
    from medgan_jax.data.batches import epoch_permutation
    from medgan_jax.evaluation.image_sets import sampled
    from medgan_jax.sharding import data_mesh, replicated

    mesh = data_mesh()
    reals = dataset.images
    generator = load_generator(workdir, replicated(mesh))
    fakes = sampled(generator, num_fakes(len(reals)), seed=seed, mesh=mesh, title="", progress=False).images
    shown = epoch_permutation(len(reals), seed=seed, epoch=0)[:_SHOWN_REALS]  # classes lie together
    above = np.zeros((_SHOWN_REALS, *reals.shape[1:]), np.uint8)
    above[: len(shown)] = reals[shown]
    picture = image_grid(np.concatenate([above, fakes[:_SHOWN_FAKES]]), columns=_COLUMNS)
    write_png(workdir.with_suffix(".png"), picture)
    return {"scores": dataclasses.asdict(published_scores(fakes, reals, seed=seed))}


def _seconds(workdir: Path, batch_size: int) -> float:
    """How long the training took, by the rates of its log: interrupted or not, and without compiling."""
    from medgan_jax.workdir import Workdir, read_lines

    log = Workdir(workdir).metrics
    lines = list(read_lines(log)) if log.exists() else []
    pairs = itertools.pairwise([{"step": 0}, *lines])
    return sum(
        (line["step"] - before["step"]) * batch_size / line["images_per_s"]
        for before, line in pairs
        if line["images_per_s"]
    )


def _device() -> str:
    import jax

    kind = jax.devices()[0].device_kind
    return f"{os.cpu_count()} CPU cores" if kind == "cpu" else f"{jax.device_count()} x {kind}"


def _write_table(out: Path, about: Mapping[str, Any]) -> None:
    """Of all experiments in `out`, whichever were asked for this time."""
    records = sorted(map(_read_record, out.glob(f"*/{RECORD}")), key=lambda record: _place(record["name"]))
    replace_file(out / TABLE, table(records, about).encode())
    rows = [record | {"published": PUBLISHED_FIGURES.get(record["name"], ())} for record in records]
    _write(out / TABLE_JSON, {**about, "experiments": rows})
    pictures = {record["name"]: out / f"{record['name']}.png" for record in records if "scores" in record}
    if pictures:
        replace_file(out / TABLE_PICTURE, _picture(pictures))


def _picture(pictures: Mapping[str, Path]) -> bytes:
    """The first row of fakes of each experiment, one below the other, beneath the reals."""
    from matplotlib.figure import Figure

    rows = {}
    for name, path in pictures.items():
        with Image.open(path) as image:
            reals, fakes, _ = np.array_split(np.asarray(image.convert("RGB")), 3)
        rows |= {name: fakes} if rows else {"reals": reals, name: fakes}
    figure = Figure(figsize=(7, 0.75 * len(rows)), layout="constrained")
    for axes, (name, row) in zip(figure.subplots(len(rows), 1), rows.items(), strict=True):
        axes.imshow(row)
        axes.set_ylabel(name, rotation=0, ha="right", va="center")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100, bbox_inches="tight", pad_inches=0.1)
    return file.getvalue()


def table(records: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> str:
    """The experiments as Markdown: a caption, the scores beside the published ones, and how they were run.

    Args:
      records: what RECORD holds of each: "name", "images" and "problem"; "steps", "epochs", "seconds", "device" and
        "versions" where a training was begun; "scores", the fields of `PublishedScores`, where there are any.
      about: "data", "label", "scale", "seed" and "features", the settings of all.
    """
    from medgan_jax.compat.medimagegan.published import COLUMNS, PUBLISHED, format_score
    from medgan_jax.metrics.paired import METRICS

    lines = [
        *_caption(records, about),
        "",
        f"| experiment | metric | published | {' | '.join(COLUMNS.values())} |",
        "|---|---|---|---|---|---|---|",
    ]
    for record in records:
        published = dict(zip(PUBLISHED, PUBLISHED_FIGURES.get(record["name"], ()), strict=False))
        scores = record.get("scores", {})
        for i, name in enumerate(PUBLISHED):
            columns = [published, *(scores.get(column, {}) for column in COLUMNS)]
            title = "" if i else record["name"]
            cells = (title, METRICS[name].title, *(format_score(column, name) for column in columns))
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| experiment | steps | epochs | images | training | |", "|---|---|---|---|---|---|"]
    for record in records:
        remarks = [record["problem"] or "finished", *record.get("scores", {}).get("skipped", ())]
        cells = (
            record["name"],
            str(record.get("steps", "-")),
            f"{record['epochs']:.4g}" if "epochs" in record else "-",
            str(record["images"]),
            _spoken(record["seconds"]) if "seconds" in record else "-",
            "; ".join(remarks).replace("|", "/"),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _spoken(seconds: float) -> str:
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _caption(records: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> list[str]:
    images = sorted({record["images"] for record in records})
    run = [record for record in records if "versions" in record]
    devices = sorted({record["device"] for record in run})
    packages = sorted({f"{name} {version}" for record in run for name, version in record["versions"].items()})
    scores = next((record["scores"] for record in records if "scores" in record), None)
    data = ", ".join(filter(None, (about["data"], about["label"])))
    lines = [
        f"MedImageGAN's experiments on {' or '.join(map(str, images))} images ({data}); "
        f"scale {about['scale']:g}, seed {about['seed']}; {', '.join(devices) or 'nothing was run'}; "
        f"{', '.join(packages)}.",
    ]
    reductions = []
    if about["scale"] != 1:
        reductions.append(f"each training took {about['scale']:g} times its number of epochs")
    if about["features"]:
        reductions.append(f"both networks have {about['features']} feature maps in place of 64")
    if reductions:
        lines += [
            "",
            f"**Not the full experiments:** {', and '.join(reductions)}. These figures can be compared neither with "
            "the published ones nor with those of full runs.",
        ]
    lines += ["", "PSNR in dB, SSIM and HaarPSI: higher is better; MS-GMSD and MDSI: lower. Means over pairs."]
    if scores:
        lines += [
            f"Original's protocol: {scores['num_as_published']} fakes and unrelated training images, each stretched to "
            "its own range; such pairs tell little of a generator, and the published ones were fewer than a batch.",
            f"Nearest real: {scores['num_each']} fakes, each with the nearest of {scores['num_reference']} training "
            f"images. Reals: {scores['num_each']} other training images in the place of the fakes, the floor. A "
            "generator that copies can be beyond it, and so can one without detail.",
        ]
    return lines


def _read_record(path: Path) -> dict[str, Any]:
    record = _read(path)
    needed = _NOT_RUN_KEYS | (_RUN_KEYS if "config" in record else set())
    if needed - record.keys():
        raise UserError(f"{path}: is no record of an experiment; delete it to make it anew")
    return record


def _read(path: Path) -> dict[str, Any]:
    from medgan_jax.workdir import read_json

    return read_json(path, remedy="delete it to make it anew")


def _write(path: Path, values: Mapping[str, Any]) -> None:
    from medgan_jax.workdir import write_json

    write_json(path, values)


if __name__ == "__main__":
    cli.run(main)
