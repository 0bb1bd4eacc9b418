"""How often the alarms err: trainings made to fail, and sound ones of the same length, by many seeds.

python -m benchmarks.alarms --seeds=10 --out=runs/alarms

Prints the table of docs/alarms.md. A training that is there already is judged again, and not run again.
"""

import argparse
import contextlib
import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import jax

from configs import default
from medgan_jax.config import Config, parse_config
from medgan_jax.errors import reported
from medgan_jax.models.dcgan import Generator
from medgan_jax.training import loop, member, program
from medgan_jax.training.health.monitor import Monitor
from medgan_jax.training.state import Networks, build_networks
from medgan_jax.workdir import Workdir, read_lines

# What a training must raise one of; all else is a false alarm in a sound one, and told apart in the others.
SOUND: frozenset[str] = frozenset()
CASES: dict[str, tuple[dict[str, Any], frozenset[str]]] = {
    "sound SNGAN": ({}, SOUND),
    "sound DCGAN": ({"arch": "dcgan"}, SOUND),
    "sound SNGAN, hinge loss": ({"loss": "hinge"}, SOUND),
    "sound DCGAN, smoothed and flipped labels": ({"arch": "dcgan", "real_label": 0.9, "label_flip": 0.1}, SOUND),
    "lr_dis 100 times lr_gen": ({"lr_gen": 2e-6}, frozenset({"non_convergence"})),
    "lr_dis 100 times too high": ({"lr_dis": 2e-2}, frozenset({"divergence", "non_convergence"})),
    "generator that ignores its input": ({"deaf": True}, frozenset({"mode_collapse"})),
    "learning rates that explode": ({"lr_dis": 0.5, "lr_gen": 0.5}, frozenset({"divergence", "non_convergence"})),
    "momentum and rates too high, simultaneous steps": (
        {"arch": "dcgan", "adam_beta1": 0.9, "lr_dis": 2e-3, "lr_gen": 2e-3, "simultaneous": True},
        frozenset({"oscillation"}),
    ),
    "lr_gen 10 times too high": ({"arch": "dcgan", "lr_gen": 2e-3}, frozenset({"non_convergence"})),
    "ten images": (
        {"num_phantoms": 20, "holdout_fraction": 0.5, "batch_size": 8},
        frozenset({"overfitting", "copies"}),
    ),
}


class Deaf(Generator):
    """A generator whose input has no variety."""

    def __call__(self, latents: jax.Array, *, training: bool) -> jax.Array:
        """As its parent, of zeros."""
        return super().__call__(0 * latents, training=training)


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="trainings of each case")
    parser.add_argument("--out", type=Path, default=Path("runs/alarms"), help="where their workdirs go")
    parser.add_argument("--only", default="", help="a case, by a part of its name")
    args = parser.parse_args()
    rows = []
    for name, (changes, expected) in CASES.items():
        if args.only not in name:
            continue
        raised = [
            _alarms(dict(changes), seed, args.out / name.replace(" ", "_") / str(seed)) for seed in range(args.seeds)
        ]
        rows.append(_row(name, expected, raised))
    print("| training | alarms expected | misses | other alarms |\n|---|---|---|---|\n" + "\n".join(rows))


def _alarms(changes: dict[str, Any], seed: int, workdir: Path) -> dict[str, int]:
    """Names of alarms and the step of the first of each, by the rules of now on the logs of then."""
    files = Workdir(workdir)
    deaf = changes.pop("deaf", False)
    config = _config(changes, seed)
    if not any(line["step"] == config.num_steps for line in read_lines(files.metrics)):
        build = _deaf_networks if deaf else build_networks
        with mock.patch.object(program, "build_networks", build), contextlib.suppress(member.Diverged):
            loop.train(config, workdir)
    raised = [(line["step"], line["alarm"]) for line in read_lines(files.alarms) if line["action"] == "stopped"]
    judged = Monitor(config).follow(read_lines(files.metrics), read_lines(files.health))
    raised += [(alarm.step, alarm.name) for alarm in judged]
    return {name: step for step, name in sorted(raised, reverse=True)}


def _config(changes: dict[str, Any], seed: int) -> Config:
    """A network of 32 px that makes lesions of phantoms in 1,000 steps, and the defaults of everything else."""
    c = default.get_config()
    c.update(
        arch="sngan", image_size=32, latent_dim=32, gen_features=8, dis_features=8, num_steps=1000, seed=seed,
        checkpoint_every_steps=1000, report=False, tensorboard=False,
    )  # fmt: skip
    c.data.update(source="phantom", num_phantoms=128, holdout_fraction=0.25, horizontal_flip=True)
    for field, value in changes.items():
        (c.data if field in c.data else c)[field] = value
    return parse_config(c)


def _deaf_networks(config: Config) -> Networks:
    networks = build_networks(config)
    g = networks.generator
    return dataclasses.replace(networks, generator=Deaf(g.image_size, g.channels, g.features, g.dtype))


def _row(name: str, expected: frozenset[str], raised: list[dict[str, int]]) -> str:
    misses = sum(not expected & alarms.keys() for alarms in raised) if expected else "-"
    others = Counter(alarm for alarms in raised for alarm in alarms if alarm not in expected)
    spoken = ", ".join(f"{alarm} {number} of {len(raised)}" for alarm, number in sorted(others.items()))
    seen = Counter(alarm for alarms in raised for alarm in alarms if alarm in expected)
    steps = [
        min(step for alarm, step in alarms.items() if alarm in expected)
        for alarms in raised
        if expected & alarms.keys()
    ]
    told = ", ".join(f"{alarm} {number} of {len(raised)}" for alarm, number in sorted(seen.items()))
    when = f", first at step {min(steps)} to {max(steps)}" if steps else ""
    return f"| {name} | {told or 'none'}{when} | {misses} | {spoken or 'none'} |"


if __name__ == "__main__":
    with reported():
        main()
