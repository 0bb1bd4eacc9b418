"""What helps on small data: the published recipe, then one technique at a time, at equal images seen.

python -m benchmarks.small_data --data=/data/isic --labels=/data/isic.csv --label=malignant --protocol=full
python -m benchmarks.small_data ... --protocol=reduced                    for a CPU: fewer feature maps, fewer images
python -m benchmarks.small_data ... --only=published,turns --parts=64/melanomas

Run it again to go on where it stopped: what is trained is not trained again, what is scored is not scored again.
OUT/small_data.md is the table, OUT/results.json all figures of every seed, OUT/grid_SIZE_SET.webp the pictures, and
OUT/SIZE/SET/RUNG/seed_N the workdirs, for sample.py and evaluate.py. With --table_only these are made of what is there.
"""

import argparse
import dataclasses
import difflib
import itertools
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import small_data_ladder as ladder
from benchmarks import small_data_table
from benchmarks.pipe import ROOT
from medgan_jax import __version__, cli
from medgan_jax.checkpoint import Checkpoints, TrainedGenerator, load_generator
from medgan_jax.config import Config, changed_fields
from medgan_jax.data.batches import load_dataset
from medgan_jax.data.labels import read_labels
from medgan_jax.data.sources import list_images
from medgan_jax.errors import ArgumentParser, UserError, abbreviate
from medgan_jax.evaluation import page
from medgan_jax.evaluation.image_sets import ImageSet, choose_features, sampled
from medgan_jax.evaluation.protocol import evaluate
from medgan_jax.images import image_grid, write_png
from medgan_jax.metrics.distribution.features import Features
from medgan_jax.sharding import data_mesh, replicated
from medgan_jax.training import loop
from medgan_jax.workdir import Workdir, read_json, read_lines, write_json

SCORES = "scores.json"  # in a workdir
_TRAINED = "trained.json"
_SCORING = 1  # counts up when scores change their meaning
_SEED = 0  # of latents, patches and resampling: the same for all, so that floors are equal


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what is missing and writes the table.

    Returns:
      0, or the exit code of a training that was asked to stop.
    """
    args = _arguments(argv)
    parts = _chosen_parts(args.protocol, args.parts, args.only)
    page.prepare(args.out)
    about = {"data": Path(args.data).resolve().name, "label": args.label, "protocol": args.protocol}
    _check_settings(args.out, about)
    if not args.table_only:
        _check_data(args)
        features = choose_features(None, args.inception_weights) if args.inception_weights else None
        for part in parts:
            for name in part.rungs:
                if code := _run(part, name, features, args):
                    return code
                if not args.train_only:
                    _write(args.out, about)
    _write(args.out, about)
    print((args.out / small_data_table.TABLE).read_text())
    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="python -m benchmarks.small_data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="rungs:\n" + "\n".join(f"  {name:12} {rung.sentence}" for name, rung in ladder.RUNGS.items()),
    )
    parser.add_argument("--data", type=os.path.expanduser, required=True, help="folder of images")
    parser.add_argument("--labels", type=os.path.expanduser, required=True, help="table of image names and labels, CSV")
    parser.add_argument("--image_column", default="image", help="of the table, if it has a header")
    parser.add_argument("--label_column", default="label", help="of the table, if it has a header")
    parser.add_argument("--label", required=True, help="the scarce class, such as malignant")
    parser.add_argument("--out", type=lambda text: Path(text).expanduser(), default=Path("runs/small_data"))
    parser.add_argument("--protocol", choices=ladder.PROTOCOLS, default="full", help="how large")
    parser.add_argument("--parts", default="", help="some of it, such as 64/melanomas,128/all")
    parser.add_argument("--only", default="", help="rungs with commas between")
    parser.add_argument("--seeds", type=int, help="trainings of each rung, in place of the protocol's number")
    parser.add_argument("--at_once", action="store_true", help="train the seeds of a rung in one program, for a GPU")
    parser.add_argument("--inception_weights", metavar="FILE", help="also score by Inception's features")
    stages = parser.add_mutually_exclusive_group()
    stages.add_argument("--train_only", action="store_true", help="leave the scores for later")
    stages.add_argument("--table_only", action="store_true", help="train and score nothing")
    args = parser.parse_args(argv)
    if args.seeds is not None and args.seeds < 1:
        raise UserError(f"--seeds={args.seeds}: must be at least 1")
    return args


def _check_data(args: argparse.Namespace) -> None:
    """In the words of this door."""
    list_images(args.data, field="--data")
    labels = read_labels(args.labels, image_column=args.image_column, label_column=args.label_column, prefix="--")
    if args.label not in (there := sorted(set(labels.values()))):
        raise UserError(f"--label={args.label}: {args.labels} has {abbreviate(there, 8)}")


def _chosen_parts(protocol: str, parts: str, only: str) -> list[ladder.Part]:
    """What to run: parts of the protocol, each with the names of its rungs."""
    every = {part.name: part for part in ladder.PROTOCOLS[protocol]}
    wanted = _named("--parts", parts, list(every)) or list(every)
    rungs = _named("--only", only, list(ladder.RUNGS))
    chosen = []
    for part in (every[name] for name in wanted):
        names = rungs or part.rungs or tuple(ladder.RUNGS)
        names = tuple(name for name in names if part.set == "melanomas" or not ladder.RUNGS[name].all_classes)
        chosen.append(dataclasses.replace(part, rungs=names))
    return chosen


def _named(flag: str, given: str, known: list[str]) -> list[str]:
    """The names in a list with commas, in the order in which they are known."""
    names = [name.strip() for name in given.split(",") if name.strip()]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise UserError(f"{flag}={name}: there is none of this name; {hint}")
    return [name for name in known if name in names]


def _check_settings(out: Path, about: Mapping[str, Any]) -> None:
    path = out / "settings.json"
    if path.exists():
        before = read_json(path, remedy="give another --out")
        changes = [f"--{name}={before.get(name)}" for name in about if before.get(name) != about[name]]
        if changes:
            raise UserError(f"--out={out}: holds a ladder with {', '.join(changes)}; give that, or another --out")
    write_json(path, about)


def _run(part: ladder.Part, name: str, features: Features | None, args: argparse.Namespace) -> int:
    """Trains and scores all seeds of a rung, as far as that is not done; the exit code of a training stopped, or 0."""
    rung, folder = ladder.RUNGS[name], args.out / part.name
    trained = rung.base if rung.best else name
    seeds = range(args.seeds or part.seeds)
    data = {
        "path": args.data,
        "labels_csv": args.labels,
        "image_column": args.image_column,
        "label_column": args.label_column,
    }
    configs = {seed: ladder.training_config(part, trained, seed, data=data, label=args.label) for seed in seeds}
    missing = [seed for seed in seeds if not _is_over(folder / trained / f"seed_{seed}", configs[seed])]
    if missing:
        print(f"{part.name} {trained}: trains {', '.join(f'seed {seed}' for seed in missing)}", flush=True)
        train = _train_at_once if args.at_once else _train_in_turn
        if code := train(folder / trained, {seed: configs[seed] for seed in missing}):
            return code
    if not args.train_only:
        for seed in seeds:
            workdir, out = (folder / each / f"seed_{seed}" for each in (trained, name))
            _score(part, name, seed, configs[seed], workdir, out, features, args)
    return 0


def _train_in_turn(folder: Path, configs: Mapping[int, Config]) -> int:
    for seed, config in configs.items():
        workdir = folder / f"seed_{seed}"
        if code := _train(config, workdir, [workdir]):
            return code
    return 0


def _train_at_once(folder: Path, configs: Mapping[int, Config]) -> int:
    """In one program; what a seed that diverges leaves unfinished goes on by itself."""
    seeds = list(configs)
    consecutive = seeds == list(range(seeds[0], seeds[0] + len(seeds)))
    if len(seeds) > 1 and consecutive and not any(map(_diverged_at, folder.glob("seed_*"))):
        workdirs = [folder / f"seed_{seed}" for seed in seeds]
        if code := _train(configs[seeds[0]], folder, workdirs, seeds=len(seeds)):
            return code
        configs = {seed: config for seed, config in configs.items() if not _is_over(folder / f"seed_{seed}", config)}
    return _train_in_turn(folder, configs)


def _train(config: Config, path: Path, workdirs: list[Path], **together: int) -> int:
    """The exit code of a training; 0 also where it diverged, which is a result."""
    for workdir in workdirs:
        _note(workdir)
    try:
        return loop.train(config, path, **together)
    except UserError as error:
        if not any(map(_diverged_at, workdirs)):
            raise
        print(error)
        return 0


def _note(workdir: Path) -> None:
    """Where and by which code a training runs, for the caption."""
    workdir.mkdir(parents=True, exist_ok=True)
    kind = jax.devices()[0].device_kind
    device = f"{os.cpu_count()} CPU cores" if kind == "cpu" else f"{jax.device_count()} x {kind}"
    write_json(workdir / _TRAINED, {"commit": _commit(), "device": device})


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _is_over(workdir: Path, config: Config) -> bool:
    """Whether the training is finished, or has diverged. What is there must be what would be run."""
    files = Workdir(workdir)
    if not files.config.exists():
        return False
    changes = changed_fields(read_json(files.config), config)
    step = _latest(files.generator)[0]
    if step > config.num_steps:
        changes.append(f"num_steps: {step} -> {config.num_steps}")
    if changes:
        raise UserError(f"{workdir}: the training there differs in {'; '.join(changes)}; undo that, or delete it")
    return step == config.num_steps or _diverged_at(workdir) is not None


def _latest(folder: Path) -> tuple[int, str]:
    """The newest step of a generator's folder and its digest; 0 and nothing when there is none."""
    checkpoints = Checkpoints(folder, keep=None)
    step = checkpoints.latest_step()
    found = (0, "") if step is None else (step, checkpoints.about(step)["digest"])
    checkpoints.close()
    return found


def _diverged_at(workdir: Path) -> int | None:
    stopped = (line["step"] for line in read_lines(Workdir(workdir).alarms) if line["action"] == "stopped")
    return next(stopped, None)


def _score(
    part: ladder.Part,
    name: str,
    seed: int,
    config: Config,
    workdir: Path,
    out: Path,
    features: Features | None,
    args: argparse.Namespace,
) -> None:
    """Writes the scores of one generator and a row of its images, unless that is done."""
    origin = workdir / "best" if ladder.RUNGS[name].best else workdir / "generator"
    diverged = _diverged_at(workdir)
    key = {"scoring": _SCORING, "generator": "" if diverged else _latest(origin)[1]}
    path = out / SCORES
    before = read_json(path, remedy="delete it to make it anew") if path.exists() else {}
    if all(before.get(field) == value for field, value in key.items()) and (not features or before["inception"]):
        return
    out.mkdir(parents=True, exist_ok=True)
    runs = [*read_lines(Workdir(workdir).runs), {}]
    trained = read_json(workdir / _TRAINED) if (workdir / _TRAINED).exists() else {}
    record = key | {
        "size": part.size,
        "set": part.set,
        "rung": name,
        "seed": seed,
        "maps": part.maps,
        "steps": config.num_steps,
        "batch_size": config.batch_size,
        "seconds": round(_seconds(workdir, config.batch_size), 1),
        "at_once": len(runs[0].get("seeds", [seed])),
        "device": trained.get("device") or runs[0].get("device", "unknown"),
        "commit": trained.get("commit", "unknown"),
        "scored_at": _commit(),
        "versions": {"medgan_jax": __version__, "jax": runs[0].get("jax", jax.__version__)},
        "problem": f"diverged at step {diverged}" if diverged else "",
        "figures": {},
        "inception": {},
    }
    if not diverged:
        print(f"{part.name} {name}: scores seed {seed}", flush=True)
        generator = load_generator(origin, replicated(data_mesh()))
        train, held_out = _judges(generator, config, args.label)
        fakes = _sampled(generator, len(train.images), args.label)
        found = page.as_json(evaluate(fakes, held_out, train, seed=_SEED, progress=False))
        record |= {"step": generator.step, "protocol": found["protocol"], "figures": found["figures"]}
        if features:
            by_inception = evaluate(fakes, held_out, train, features=features, seed=_SEED, progress=False)
            record["inception"] = page.as_json(by_inception)["figures"]
        columns = small_data_table.SHOWN
        write_png(out / small_data_table.STRIP, image_grid(fakes.images[:columns], columns=columns))
        reals = held_out.images[np.random.default_rng(_SEED).permutation(len(held_out.images))[:columns]]
        write_png(args.out / part.name / small_data_table.REALS, image_grid(reals, columns=columns))
    write_json(path, record)


def _judges(generator: TrainedGenerator, config: Config, label: str) -> tuple[ImageSet, ImageSet]:
    """What the training saw, and what it held out; of a conditional one, those of the class alone."""
    train, held_out = load_dataset(config.data, image_size=config.image_size, channels=config.channels, progress=False)
    if train.digest != generator.about["data_digest"]:
        raise UserError(f"--data={config.data.path}: the images are no longer those of the trainings; restore them")
    sets = []
    for title, found in (("trained on", train), ("held out", held_out)):
        images = found.images
        if config.conditional:
            images = images[np.flatnonzero(np.asarray(found.labels) == label)]
        sets.append(ImageSet(title, np.asarray(images)))
    return sets[0], sets[1]


def _sampled(generator: TrainedGenerator, number: int, label: str) -> ImageSet:
    of_class = {"label": label} if getattr(generator, "classes", ()) else {}
    return sampled(generator, number, seed=_SEED, mesh=data_mesh(), title="fakes", progress=False, **of_class)


def _seconds(workdir: Path, batch_size: int) -> float:
    """How long the training took, by the rates of its log: interrupted or not, and without compiling."""
    lines = itertools.pairwise([{"step": 0}, *read_lines(Workdir(workdir).metrics)])
    return sum(
        (line["step"] - before["step"]) * batch_size / line["images_per_s"]
        for before, line in lines
        if line["images_per_s"]
    )


def _write(out: Path, about: Mapping[str, Any]) -> None:
    """The table and pictures of all that has been scored, whatever was asked for this time."""
    parts = [
        (part, [name for name in ladder.RUNGS if (out / part.name / name).is_dir()])
        for part in ladder.PROTOCOLS[about["protocol"]]
    ]
    records = [
        read_json(path, remedy="delete it to make it anew")
        for part, names in parts
        for name in names
        for path in sorted((out / part.name / name).glob(f"seed_*/{SCORES}"), key=_seed_of)
    ]
    rungs = {name: (rung.base, rung.sentence) for name, rung in ladder.RUNGS.items()}
    small_data_table.write(out, records, about, rungs)


def _seed_of(scores: Path) -> int:
    return int(scores.parent.name.removeprefix("seed_"))


if __name__ == "__main__":
    cli.run(main)
