"""What changes the projected GAN's variety: eleven changes at once, in a Plackett-Burman design of twelve trainings.

python -m benchmarks.screening --data=/data/isic --labels_csv=/data/isic.csv --rows=0,2,4 --out=runs/screening

Each change is on in six trainings and off in the six others, and every pair of changes is balanced: so its effect is a
difference of two means of six, each training of another seed. All train for the same time. Run the command for some
rows of the design at once on one core each, and once without --rows for the table.
"""

import argparse
import json
import os
import sys
from pathlib import Path

FIRST = "+ + - + + + - - - + -".split()
DESIGN = [[FIRST[(column - row) % 11] == "+" for column in range(11)] for row in range(11)] + [[False] * 11]
CHANGES = {  # to fields of the config, or a switch of EXPERIMENT
    "a pixel discriminator beside": "pixels",
    "half the discriminator's rate": {"lr_dis": 2.5e-4},
    "256 latents, noise of strength 0.5": {"latent_dim": 256, "EXPERIMENT": "noise"},
    "batches of 32": {"batch_size": 32},
    "translation by 0.25": {"augment.translation": 0.25},
    "R1": {"r1_weight": 10.0, "r1_every_steps": 8},
    "without the finest map": "without_0",
    "without the coarsest map": "without_3",
    "projections half as wide": "half",
    "bilinear upsampling": "smooth",
    "adaptive augmentation": {"augment.adaptive_target": 0.6, "augment.adaptive_images": 20_000},
}
FIRST_STEPS = 150


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--labels_csv", required=True)
    parser.add_argument("--rows", default="")
    parser.add_argument("--minutes", type=float, default=11.0)
    parser.add_argument("--out", type=Path, default=Path("runs/screening"))
    args = parser.parse_args()
    for row in filter(None, args.rows.split(",")):
        if os.environ.get("ROW") == row:
            run(int(row), args)
        elif not (args.out / f"row_{row}" / "scores.json").exists():
            switches = [c if isinstance(c, str) else c.get("EXPERIMENT", "") for c in on(int(row)).values()]
            environment = os.environ | {"ROW": row, "EXPERIMENT": ",".join(filter(None, switches))}
            command = [sys.executable, "-m", "benchmarks.screening", *sys.argv[1:], f"--rows={row}"]
            if code := os.spawnvpe(os.P_WAIT, sys.executable, command, environment):
                sys.exit(code)
    if not args.rows:
        table(args.out)


def on(row: int) -> dict:
    return {name: change for (name, change), is_on in zip(CHANGES.items(), DESIGN[row], strict=True) if is_on}


def run(row: int, args: argparse.Namespace) -> None:
    import dataclasses

    import jax
    import numpy as np

    from benchmarks.small_data import steps_within
    from medgan_jax.config import named_config, parse_config
    from medgan_jax.data.cache import default_cache_dir
    from medgan_jax.evaluation import image_sets
    from medgan_jax.metrics.distribution.checkerboard import checkerboard_index
    from medgan_jax.metrics.distribution.features import efficientnet_features
    from medgan_jax.metrics.distribution.kid import kid
    from medgan_jax.metrics.distribution.prdc import prdc
    from medgan_jax.evaluation.protocol import evaluate
    from medgan_jax.training.callback import Diverged
    from medgan_jax.training.trainer import train
    from medgan_jax.workdir import Workdir, read_lines

    jax.config.update("jax_compilation_cache_dir", str(default_cache_dir() / "xla"))
    c = named_config("small64")
    c.update(
        seed=row,
        tensorboard=False,
        report=False,
        guard=False,
        monitor_every_steps=0,
        evaluate_every_steps=0,
        keep_checkpoints=1,
        sample_every_steps=10**9,
    )
    c.data.update(
        source="csv", path=args.data, labels_csv=args.labels_csv, class_filter="malignant", holdout_fraction=0.2
    )
    for change in on(row).values():
        if not isinstance(change, str):
            c.update_from_flattened_dict({k: v for k, v in change.items() if k != "EXPERIMENT"})
    c.num_steps = FIRST_STEPS
    config = parse_config(c)
    workdir = args.out / f"row_{row}"
    problem = ""
    if not (workdir / "steps").exists():
        train(config, workdir)
        steps = steps_within(args.minutes, list(read_lines(Workdir(workdir).metrics)), batch_size=config.batch_size)
        (workdir / "steps").write_text(str(steps))
    steps = int((workdir / "steps").read_text())
    try:
        train(dataclasses.replace(config, num_steps=steps), workdir)
    except Diverged as error:
        problem = str(error)
    data = dataclasses.asdict(config.data)
    fakes, held_out, training = image_sets.choose(
        checkpoint=str(workdir), data=data, seed=0, fakes=None, reals=None, train=None, num_images=452
    )
    vectors, reals, trained = (efficientnet_features().of(np.asarray(x.images)) for x in (fakes, held_out, training))
    parts = np.split(vectors, 4)
    number = len(parts[0])
    record = {
        "steps": steps,
        "problem": problem,
        "kid": kid(vectors, reals, seed=0).value,
        "kid_training": kid(vectors, trained, seed=0).value,
        "recall": np.mean([prdc(x, reals, replicates=2)["recall"].value for x in parts]),
        "precision": np.mean([prdc(x, reals, replicates=2)["precision"].value for x in parts]),
        "recall_training": np.mean([prdc(x, trained, replicates=2)["recall"].value for x in parts]),
        "coverage_training": np.mean([prdc(x, trained, replicates=2)["coverage"].value for x in parts]),
        "figures": evaluate(fakes, held_out, training, seed=0, progress=False).to_dict()["figures"],
    }
    (workdir / "scores.json").write_text(json.dumps(record, default=float))


def table(out: Path) -> None:
    import numpy as np

    found = {
        row: json.loads(path.read_text()) for row in range(12) if (path := out / f"row_{row}" / "scores.json").exists()
    }
    names = ["kid", "kid_training", "recall", "recall_training", "coverage_training", "precision"]
    boards = [f"checkerboard_{period}" for period in (2, 4, 8)]

    def values(record: dict) -> list[float]:
        of = lambda name: next((f["value"] for k, f in record["figures"].items() if k == name), float("nan"))
        return [record[n] for n in names] + [of(b) for b in boards] + [of("memorization")]

    print("row steps " + " ".join([*names, *boards, "memorization"]))
    for row, record in found.items():
        print(row, record["steps"], " ".join(f"{v:.3f}" for v in values(record)), ", ".join(on(row)), record["problem"])
    everything = np.array([values(found[row]) for row in found])
    for column, name in enumerate(CHANGES):
        is_on = np.array([DESIGN[row][column] for row in found])
        if is_on.any() and not is_on.all():
            effect = everything[is_on].mean(0) - everything[~is_on].mean(0)
            print(f"{name:40}", " ".join(f"{e:+.3f}" for e in effect))


if __name__ == "__main__":
    main()
