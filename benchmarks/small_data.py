"""What helps on small data: the published recipe, then one technique at a time, at equal images seen.

python -m benchmarks.small_data --data=/data/isic --labels_csv=/data/isic.csv --class_filter=malignant
python -m benchmarks.small_data ... --protocol=reduced      for a CPU: fewer feature maps, fewer images
python -m benchmarks.small_data ... --only=published,turns --parts=64/melanomas

Run it again to go on where it stopped: what is trained is not trained again, what is evaluated is not evaluated again.
OUT/small_data.md is the table, OUT/results.json has all figures of every seed, OUT/grid_SIZE_SET.webp the pictures, and
OUT/SIZE/SET/VARIANT/seed_N are workdirs, for sample.py and evaluate.py. --table_only makes them from what is there.
"""

import argparse
import dataclasses
import difflib
import itertools
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import small_data_ablation as ablation
from benchmarks import small_data_table
from benchmarks.pipe import ROOT
from medgan_jax import __version__
from medgan_jax.checkpoint import Checkpoints
from medgan_jax.config import Config, changed_fields, default_config, parse_data
from medgan_jax.data.cache import default_cache_dir
from medgan_jax.data.sources import open_source
from medgan_jax.errors import ArgumentParser, UserError, reported
from medgan_jax.evaluation import image_sets, page
from medgan_jax.evaluation.protocol import evaluate
from medgan_jax.images import image_grid, write_png
from medgan_jax.metrics.distribution.features import PYRAMID, Features
from medgan_jax.metrics.distribution.kid import kid
from medgan_jax.training.callbacks import Diverged
from medgan_jax.training.trainer import train
from medgan_jax.workdir import Workdir, read_json, read_lines, write_json

SCORES = "scores.json"  # in a workdir
_TRAINED = "trained.json"
_SCORING = 3  # counts up when scores change their meaning
_SEED = 0  # of latents, patches and resampling: the same for all, so that the real reference is too


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what is missing and writes the table.

    Returns:
      0, or the exit code of a training that was asked to stop.
    """
    args = _parser().parse_args(argv)
    if args.seeds is not None and args.seeds < 1:
        raise UserError(f"--seeds={args.seeds}: must be at least 1")
    parts = _chosen_parts(args.protocol, args.parts, args.only)
    page.prepare(args.out)
    about = {"data": Path(args.data).resolve().name, "class_filter": args.class_filter, "protocol": args.protocol}
    _check_settings(args.out, about)
    if not args.table_only:
        fields = {"source": "csv", "class_filter": args.class_filter, **_data(args)}
        open_source(parse_data(default_config().data.to_dict() | fields))  # some trainings do not ask for the class
        weights = args.inception_weights
        features = image_sets.choose_features("inception", weights) if weights else None
        for part in parts:
            for name in part.variants:
                if code := _run(part, name, features, args):
                    return code
                if not args.train_only:
                    _write(args.out, about)
    _write(args.out, about)
    print((args.out / small_data_table.TABLE).read_text())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="python -m benchmarks.small_data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="variants:\n" + "\n".join(f"  {name:14} {each.sentence}" for name, each in ablation.VARIANTS.items()),
    )
    add = parser.add_argument
    add("--data", type=os.path.expanduser, required=True, help="folder of images")
    add("--labels_csv", type=os.path.expanduser, required=True, help="table of image names and labels")
    add("--image_column", default="image", help="of the table, if it has a header")
    add("--label_column", default="label", help="of the table, if it has a header")
    add("--class_filter", required=True, help="the scarce class, such as malignant")
    add("--out", type=lambda text: Path(text).expanduser(), default=Path("runs/small_data"), help="the results")
    add("--protocol", choices=ablation.PROTOCOLS, default="full", help="how large; full by default, for a GPU")
    add("--parts", default="", help="some of the tables, such as 64/melanomas,128/all")
    add("--only", default="", help="some of the variants, with commas between")
    add("--seeds", type=int, help="trainings of each variant, in place of the protocol's number")
    add("--inception_weights", metavar="FILE", help="also evaluate by Inception's features")
    stages = parser.add_mutually_exclusive_group()
    stages.add_argument("--train_only", action="store_true", help="evaluate later")
    stages.add_argument("--table_only", action="store_true", help="train and evaluate nothing")
    return parser


def _chosen_parts(protocol: str, parts: str, only: str) -> list[ablation.Part]:
    """What to run: parts of the protocol, each with the names of its variants."""
    every = {part.name: part for part in ablation.PROTOCOLS[protocol]}
    named = _named("--only", only, list(ablation.VARIANTS))
    chosen = []
    for part in (every[name] for name in _named("--parts", parts, list(every)) or every):
        names = named or part.variants or list(ablation.VARIANTS)
        fitting = [name for name in names if part.set == "melanomas" or not ablation.VARIANTS[name].all_classes]
        chosen.append(dataclasses.replace(part, variants=tuple(fitting)))
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
            raise UserError(f"--out={out}: holds an ablation with {', '.join(changes)}; give that, or another --out")
    write_json(path, about)


def _run(part: ablation.Part, name: str, features: Features | None, args: argparse.Namespace) -> int:
    """Trains and evaluates what is missing of a variant; returns 0, or the exit code of a stopped training."""
    variant = ablation.VARIANTS[name]
    trained = variant.base if variant.best else name
    for seed in range(args.seeds or part.seeds):
        config = ablation.training_config(part, trained, seed, data=_data(args), class_filter=args.class_filter)
        workdir, out = (args.out / part.name / each / f"seed_{seed}" for each in (trained, name))
        if not _is_over(workdir, config):
            print(f"{part.name} {trained}: trains seed {seed}", flush=True)
            workdir.mkdir(parents=True, exist_ok=True)
            write_json(workdir / _TRAINED, {"commit": _commit(), "device": _device()})
            try:
                if code := train(config, workdir):
                    return code
            except Diverged as error:  # which is a result
                print(error)
        if not args.train_only:
            _score(part, name, seed, config, workdir, out, features, args)
    return 0


def _data(args: argparse.Namespace) -> dict[str, str]:
    """Where the images and their labels are, fields of a config's data."""
    return {"path": args.data} | {
        field: getattr(args, field) for field in ("labels_csv", "image_column", "label_column")
    }


def _device() -> str:
    """For the caption."""
    kind = jax.devices()[0].device_kind
    return f"{os.cpu_count()} CPU cores" if kind == "cpu" else f"{jax.device_count()} x {kind}"


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
    part: ablation.Part,
    name: str,
    seed: int,
    config: Config,
    workdir: Path,
    out: Path,
    features: Features | None,
    args: argparse.Namespace,
) -> None:
    """Writes the scores of one generator and a row of its images, unless that is done."""
    origin = workdir / "best" if ablation.VARIANTS[name].best else workdir / "generator"
    diverged = _diverged_at(workdir)
    key = {"scoring": _SCORING, "generator": "" if diverged else _latest(origin)[1]}
    path = out / SCORES
    before = read_json(path, remedy="delete it to make it anew") if path.exists() else {}
    if all(before.get(field) == value for field, value in key.items()) and (not features or before["inception"]):
        return
    out.mkdir(parents=True, exist_ok=True)
    record = key | {
        "size": part.size,
        "set": part.set,
        "variant": name,
        "seed": seed,
        "maps": part.maps,
        "steps": config.num_steps,
        "batch_size": config.batch_size,
        "seconds": round(_seconds(workdir, config.batch_size), 1),
        **read_json(workdir / _TRAINED),
        "scored_at": _commit(),
        "versions": {"medgan_jax": __version__, "jax": jax.__version__},
        "problem": f"diverged at step {diverged}" if diverged else "",
        "figures": {},
        "inception": {},
    }
    if not diverged:
        print(f"{part.name} {name}: evaluates seed {seed}", flush=True)
        fakes, held_out, training = _sets(origin, config, args)
        found = page.as_json(evaluate(fakes, held_out, training, seed=_SEED, progress=False))
        record |= {"protocol": found["protocol"], "figures": found["figures"]}
        by_pyramid = [PYRAMID.of(np.asarray(each.images)) for each in (fakes, training, held_out)]
        of_fakes, of_reals = (dataclasses.asdict(kid(each, by_pyramid[2], seed=_SEED)) for each in by_pyramid[:2])
        record["figures"]["kid_pyramid"] = of_fakes | {"reals": of_reals}
        if features:
            by_inception = evaluate(fakes, held_out, training, features=features, seed=_SEED, progress=False)
            record["inception"] = page.as_json(by_inception)["figures"]
        columns = small_data_table.SHOWN
        write_png(out / small_data_table.STRIP, image_grid(fakes.images[:columns], columns=columns))
        reals = held_out.images[np.random.default_rng(_SEED).permutation(len(held_out.images))[:columns]]
        write_png(args.out / part.name / small_data_table.REALS, image_grid(reals, columns=columns))
    write_json(path, record)


def _sets(origin: Path, config: Config, args: argparse.Namespace) -> list[image_sets.ImageSet]:
    """Fakes, held-out and training images; of a conditional training those of the scarce class alone."""
    sets = image_sets.choose(
        checkpoint=str(origin),
        fakes=None,
        reals=None,
        train=None,
        data=default_config().data.to_dict() | _data(args),
        num_images=None,
        seed=_SEED,
        label=args.class_filter if config.conditional else None,
    )
    titles = ("fakes", "held out", "trained on")
    return [dataclasses.replace(images, title=title) for images, title in zip(sets, titles, strict=True)]


def _seconds(workdir: Path, batch_size: int) -> float:
    """How long the training took, by the rates of its log: interrupted or not, and without compiling."""
    lines = itertools.pairwise([{"step": 0}, *read_lines(Workdir(workdir).metrics)])
    return sum(
        (line["step"] - before["step"]) * batch_size / line["images_per_s"]
        for before, line in lines
        if line["images_per_s"]
    )


def _write(out: Path, about: Mapping[str, Any]) -> None:
    """The table and pictures of all that has been evaluated, whatever was asked for this time."""
    records = [
        read_json(path, remedy="delete it to make it anew")
        for part in ablation.PROTOCOLS[about["protocol"]]
        for name in ablation.VARIANTS
        for path in sorted((out / part.name / name).glob(f"seed_*/{SCORES}"), key=_seed_of)
    ]
    small_data_table.write(out, records, about, ablation.VARIANTS)


def _seed_of(scores: Path) -> int:
    return int(scores.parent.name.removeprefix("seed_"))


if __name__ == "__main__":
    jax.config.update("jax_compilation_cache_dir", str(default_cache_dir() / "xla"))
    with reported():
        sys.exit(main())
