"""Which recipe is best on small data: whole configs, compared at equal images seen and at equal minutes.

python -m benchmarks.small_data --data=/data/isic --labels_csv=/data/isic.csv --class_filter=malignant
python -m benchmarks.small_data ... --only=sngan64,small64 --seeds=1

Each training is evaluated after --images; then it goes on for --minutes in all, and is evaluated again. Run the command
again to go on where it stopped: what is trained or evaluated is not done anew. OUT/small_data.md has the tables,
OUT/results.json all figures of every seed, OUT/grid_SIZE_BUDGET.webp the pictures. OUT/RECIPE/seed_N are workdirs, for
sample.py and evaluate.py. --table_only makes tables and pictures of what is there.
"""

import argparse
import dataclasses
import itertools
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import small_data_table
from benchmarks.pipe import ROOT
from medgan_jax import __version__
from medgan_jax.checkpoint import Checkpoints
from medgan_jax.config import Config, named_config, parse_config
from medgan_jax.data.cache import default_cache_dir
from medgan_jax.data.sources import open_source
from medgan_jax.errors import ArgumentParser, UserError, reported
from medgan_jax.evaluation import image_sets, page
from medgan_jax.evaluation.protocol import evaluate
from medgan_jax.images import image_grid, write_png
from medgan_jax.metrics.distribution.features import PYRAMID
from medgan_jax.metrics.distribution.kid import kid
from medgan_jax.training.callback import Diverged
from medgan_jax.training.trainer import train
from medgan_jax.workdir import Workdir, read_json, read_lines, write_json


class Recipe(NamedTuple):
    """One row of a table: a packaged config, and the fields that differ from it."""

    config: str
    changes: Mapping[str, Any] = {}

    @property
    def sentence(self) -> str:
        """What it is, such as "small64 with dis=patch"."""
        changes = ", ".join(f"{field}={value}" for field, value in self.changes.items())
        return f"{self.config} with {changes}" if changes else self.config


RECIPES = {
    "dcgan64": Recipe("dcgan64"),
    "sngan64": Recipe("sngan64"),
    "sngan_small64": Recipe("sngan_small64"),
    "fastgan_patch": Recipe("small64", {"dis": "patch"}),
    "dcgan_projected": Recipe("small64", {"arch": "dcgan", "gen_features": 64}),
    "small64": Recipe("small64"),
    "small128": Recipe("small128"),
}
_STEPS = "steps.json"  # in a workdir: at how many steps each budget ends
_SEED = 0  # of latents, patches and resampling: the same for all, so that the real reference is too
_REMEDY = "delete its folder to train it anew"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what is missing and writes the tables.

    Returns:
      0, or the exit code of a training that was asked to stop.
    """
    args = _parser().parse_args(argv)
    if args.seeds < 1:
        raise UserError(f"--seeds={args.seeds}: must be at least 1")
    if args.minutes <= 0:
        raise UserError(f"--minutes={args.minutes:g}: must be above 0")
    page.prepare(args.out)
    about = {field: getattr(args, field) for field in ("class_filter", "images", "minutes")}
    about["data"] = Path(args.data).resolve().name
    data = {field: getattr(args, field) for field in ("labels_csv", "image_column", "label_column", "class_filter")}
    data |= {"source": "csv", "path": args.data}
    trainings = [
        (name, training_config(name, seed, images=args.images, data=data))
        for seed in range(args.seeds)  # one seed of all recipes comes first: a table that can be read
        for name in _chosen(args.only)
    ]
    open_source(trainings[0][1].data)  # before wrong images become the settings of the folder
    _check_settings(args.out, about)
    for name, config in [] if args.table_only else trainings:
        if code := _run(name, config, args.minutes, args.out):
            return code
        small_data_table.write(args.out, _records(args.out), about)
    small_data_table.write(args.out, _records(args.out), about)
    print((args.out / small_data_table.TABLE).read_text())
    return 0


def _parser() -> argparse.ArgumentParser:
    recipes = "\n".join(f"  {name:16} {recipe.sentence}" for name, recipe in RECIPES.items())
    parser = ArgumentParser(
        prog="python -m benchmarks.small_data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"recipes:\n{recipes}",
    )
    add = parser.add_argument
    add("--data", type=os.path.expanduser, required=True, help="folder of images")
    add("--labels_csv", type=os.path.expanduser, required=True, help="table of image names and labels")
    add("--image_column", default="image", help="of the table, if it has a header")
    add("--label_column", default="label", help="of the table, if it has a header")
    add("--class_filter", required=True, help="the scarce class, such as malignant")
    add("--out", type=lambda text: Path(text).expanduser(), default=Path("runs/small_data"), help="the results")
    add("--only", default="", help="some of the recipes, with commas between")
    add("--seeds", type=int, default=3, help="trainings of each recipe; 3 by default")
    add("--images", type=int, default=8000, help="the first budget: images seen; 8000 by default")
    add("--minutes", type=float, default=15.0, help="the second: minutes of training, without compiling; 15 by default")
    add("--table_only", action="store_true", help="train and evaluate nothing")
    return parser


def _chosen(only: str) -> list[str]:
    """The recipes in a list with commas, in the order in which they are known; all where none is named."""
    names = [name.strip() for name in only.split(",") if name.strip()]
    for name in names:
        if name not in RECIPES:
            raise UserError(f"--only={name}: there is none of this name; there are {', '.join(RECIPES)}")
    return [name for name in RECIPES if name in names or not names]


def training_config(name: str, seed: int, *, images: int, data: Mapping[str, str]) -> Config:
    """The recipe as it is, for a number of images seen, without what takes time and changes no weight.

    Args:
      name: of the recipe.
      seed: of the training.
      images: how many reals the discriminator sees.
      data: which images, fields of the config's data.

    Raises:
      UserError: the images are fewer than a batch.
    """
    c = named_config(RECIPES[name].config)
    c.update(
        seed=seed, tensorboard=False, report=False, guard=False, monitor_every_steps=0, evaluate_every_steps=0,
        keep_checkpoints=1, sample_every_steps=10**9,
    )  # fmt: skip
    c.data.update(data, holdout_fraction=0.2)
    c.update_from_flattened_dict(RECIPES[name].changes)
    if images < c.batch_size:
        raise UserError(f"--images={images}: must be at least {c.batch_size}, a batch of {name}")
    c.num_steps = images // c.batch_size
    return parse_config(c)


def _check_settings(out: Path, about: Mapping[str, Any]) -> None:
    path = out / "settings.json"
    if path.exists():
        before = read_json(path, remedy="give another --out")
        changes = [f"--{name}={before.get(name)}" for name in about if before.get(name) != about[name]]
        if changes:
            raise UserError(f"--out={out}: holds a comparison with {', '.join(changes)}; give that, or another --out")
    write_json(path, about)


def _run(name: str, config: Config, minutes: float, out: Path) -> int:
    """Trains and evaluates what is missing of one seed; returns 0, or the exit code of a stopped training."""
    workdir = out / name / f"seed_{config.seed}"
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / _STEPS
    steps = read_json(path, remedy=_REMEDY) if path.exists() else {"images": config.num_steps}
    for budget in small_data_table.BUDGETS:
        if budget not in steps:
            lines = list(read_lines(Workdir(workdir).metrics))
            within = 0 if _diverged_at(workdir) else steps_within(minutes, lines, batch_size=config.batch_size)
            steps[budget] = max(steps["images"], within)
        write_json(path, steps)  # so that a stopped benchmark goes on to the same step
        config = dataclasses.replace(config, num_steps=steps[budget])
        if code := _train(config, workdir):
            return code
        _score(name, config, workdir, out)
    return 0


def steps_within(minutes: float, lines: Sequence[Mapping[str, Any]], *, batch_size: int) -> int:
    """How many steps a training makes in so many minutes, at its mean speed so far; lines are of metrics.jsonl."""
    return int(60 * minutes * lines[-1]["step"] / training_seconds(lines, batch_size=batch_size))


def training_seconds(lines: Iterable[Mapping[str, Any]], *, batch_size: int) -> float:
    """How long a training took by the rates in its metrics.jsonl: interrupted or not, and without compiling."""
    return sum(
        (line["step"] - before["step"]) * batch_size / line["images_per_s"]
        for before, line in itertools.pairwise([{"step": 0}, *lines])
        if line["images_per_s"]
    )


def _train(config: Config, workdir: Path) -> int:
    """Trains to the end, unless that is done; returns the exit code. What is there must be what would be run."""
    Workdir(workdir).check(config)
    if _latest(workdir)[0] >= config.num_steps or _diverged_at(workdir):
        return 0
    print(f"{workdir}: trains to step {config.num_steps}", flush=True)
    try:
        return train(config, workdir)
    except Diverged as error:  # which is a result
        print(error)
        return 0


def _latest(workdir: Path) -> tuple[int, str]:
    """The step of the generator and its digest; 0 and nothing when there is none."""
    checkpoints = Checkpoints(Workdir(workdir).generator, keep=None)
    step = checkpoints.latest_step()
    found = (0, "") if step is None else (step, checkpoints.about(step)["digest"])
    checkpoints.close()
    return found


def _diverged_at(workdir: Path) -> int:
    """The step at which the training diverged; 0 where it did not."""
    stopped = (line["step"] for line in read_lines(Workdir(workdir).alarms) if line["action"] == "stopped")
    return next(stopped, 0)


def _score(name: str, config: Config, workdir: Path, out: Path) -> None:
    """Writes the scores of the generator and a row of its images, unless that is done."""
    path = _scores(workdir, config.num_steps)
    step, digest = _latest(workdir)
    if path.exists() and (step != config.num_steps or read_json(path, remedy="delete it")["generator"] == digest):
        return  # a training that has gone on has overwritten the generator that was scored
    if step > config.num_steps:
        raise UserError(f"{path}: is missing, and the generator of that step is overwritten; {_REMEDY}")
    lines = read_lines(Workdir(workdir).metrics)
    record = {
        "size": config.image_size,
        "recipe": name,
        "sentence": RECIPES[name].sentence,
        "seed": config.seed,
        "steps": config.num_steps,
        "batch_size": config.batch_size,
        "seconds": round(training_seconds(lines, batch_size=config.batch_size), 1),
        "generator": digest,
        "commit": _commit(),
        "device": _device(),
        "versions": {"medgan_jax": __version__, "jax": jax.__version__},
        "problem": "" if step == config.num_steps else f"diverged at step {_diverged_at(workdir)}",
        "figures": {},
    }
    if not record["problem"]:
        print(f"{workdir}: evaluates step {step}", flush=True)
        fakes, held_out, training = _sets(config, workdir)
        found = evaluate(fakes, held_out, training, seed=_SEED, progress=False).to_dict()
        by_pyramid = [PYRAMID.of(np.asarray(each.images)) for each in (fakes, training, held_out)]
        of_fakes, of_reals = (dataclasses.asdict(kid(each, by_pyramid[2], seed=_SEED)) for each in by_pyramid[:2])
        record["figures"] = found["figures"] | {"kid_pyramid": of_fakes | {"reals": of_reals}}
        record["protocol"] = found["protocol"]
        shown = small_data_table.SHOWN
        write_png(small_data_table.strip(out, record), image_grid(fakes.images[:shown], columns=shown))
        reals = held_out.images[np.random.default_rng(_SEED).permutation(len(held_out.images))[:shown]]
        write_png(small_data_table.reals_strip(out, record), image_grid(reals, columns=shown))
    write_json(path, record)


def _scores(workdir: Path, steps: int) -> Path:
    return workdir / f"scores_{steps}.json"


def _sets(config: Config, workdir: Path) -> list[image_sets.ImageSet]:
    """Fakes, held-out and training images."""
    data = dataclasses.asdict(config.data)
    nothing = {"fakes": None, "reals": None, "train": None, "num_images": None}
    sets = image_sets.choose(checkpoint=str(workdir), data=data, seed=_SEED, **nothing)
    titles = ("fakes", "held out", "trained on")
    return [dataclasses.replace(images, title=title) for images, title in zip(sets, titles, strict=True)]


def _device() -> str:
    kind = jax.devices()[0].device_kind
    return f"{os.cpu_count()} CPU cores" if kind == "cpu" else f"{jax.device_count()} x {kind}"


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _records(out: Path) -> list[dict[str, Any]]:
    """The scores of all generators, whatever was asked for this time, in the order of the tables."""
    found = [
        read_json(scores, remedy="delete it to make it anew") | {"budget": budget}
        for name in RECIPES
        for path in (out / name).glob(f"seed_*/{_STEPS}")
        for budget, steps in read_json(path, remedy=_REMEDY).items()
        if (scores := _scores(path.parent, steps)).exists()
    ]
    budgets, names = small_data_table.BUDGETS, list(RECIPES)
    return sorted(found, key=lambda r: (r["size"], budgets.index(r["budget"]), names.index(r["recipe"]), r["seed"]))


if __name__ == "__main__":
    jax.config.update("jax_compilation_cache_dir", str(default_cache_dir() / "xla"))
    with reported():
        sys.exit(main())
