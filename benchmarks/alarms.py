"""How often the alarms are wrong: trainings made to fail, and sound ones of the same length, with several seeds each.

python -m benchmarks.alarms --seeds=10 --out=runs/alarms

Prints the table of docs/alarms.md. The health checks are evaluated again on the logs of trainings that are finished
already; these are not run again.
"""

import argparse
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from configs import default
from medgan_jax.config import Config, named_config, parse_config
from medgan_jax.errors import reported
from medgan_jax.models.dcgan import Generator
from medgan_jax.models.fastgan import FastGANGenerator
from medgan_jax.training.callback import Diverged
from medgan_jax.training.health.monitor import Monitor
from medgan_jax.training.trainer import train
from medgan_jax.workdir import Workdir, read_lines

# By title: what the config changes, and the alarms of which one is expected. Any alarm of a sound training is false.
SOUND: frozenset[str] = frozenset()
CASES: dict[str, tuple[dict[str, Any], frozenset[str]]] = {
    "sound SNGAN": ({}, SOUND),
    "sound DCGAN": ({"arch": "dcgan"}, SOUND),
    "sound SNGAN, hinge loss": ({"loss": "hinge"}, SOUND),
    "sound DCGAN, smoothed and flipped labels": ({"arch": "dcgan", "real_label": 0.9, "label_flip": 0.1}, SOUND),
    "lr_dis 100 times lr_gen": ({"lr_gen": 2e-6}, frozenset({"non_convergence"})),
    "lr_dis 100 times too high": ({"lr_dis": 2e-2}, frozenset({"divergence", "non_convergence"})),
    "generator that ignores its input": ({"ignore_latents": True}, frozenset({"mode_collapse"})),
    "learning rates that explode": ({"lr_dis": 0.5, "lr_gen": 0.5}, frozenset({"divergence", "non_convergence"})),
    "momentum and rates too high, simultaneous steps": (
        {"arch": "dcgan", "adam_beta1": 0.9, "lr_dis": 2e-3, "lr_gen": 2e-3, "simultaneous": True},
        frozenset({"oscillation"}),
    ),
    "lr_gen 10 times too high": ({"arch": "dcgan", "lr_gen": 2e-3}, frozenset({"non_convergence"})),
    "ten images": (
        {"num_phantoms": 20, "holdout_fraction": 0.5, "batch_size": 8},
        frozenset({"overfitting", "memorization"}),
    ),
    "sound small64": ({"config": "small64"}, SOUND),
    "small64, lr_dis 100 times lr_gen": ({"config": "small64", "lr_gen": 5e-6}, frozenset({"non_convergence"})),
    "small64, lr_dis 100 times too low": ({"config": "small64", "lr_dis": 5e-6}, frozenset({"non_convergence"})),
    "small64, generator that ignores its input": (
        {"config": "small64", "ignore_latents": True},
        frozenset({"mode_collapse"}),
    ),
    "small64, learning rates that explode": (
        {"config": "small64", "lr_dis": 0.5, "lr_gen": 0.5},
        frozenset({"divergence", "non_convergence"}),
    ),
    "small64, ten images": (
        {"config": "small64", "num_phantoms": 20, "holdout_fraction": 0.5, "batch_size": 8},
        frozenset({"overfitting", "memorization"}),
    ),
}


def main() -> None:
    """Runs the trainings that are missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="trainings of each case")
    parser.add_argument("--steps", type=int, default=1000, help="length of each training")
    parser.add_argument("--out", type=Path, default=Path("runs/alarms"), help="where their workdirs go")
    parser.add_argument("--only", default="", help="only cases with this text in their title")
    args = parser.parse_args()
    rows = []
    for title, (changes, expected) in CASES.items():
        if args.only not in title:
            continue
        workdirs = [args.out / title.replace(" ", "_") / str(seed) for seed in range(args.seeds)]
        raised = [_alarms(changes, args.steps, seed, workdir) for seed, workdir in enumerate(workdirs)]
        rows.append(_row(title, expected, raised))
    print("| training | alarms expected | misses | other alarms |\n|---|---|---|---|\n" + "\n".join(rows))


def _alarms(changes: dict[str, Any], steps: int, seed: int, workdir: Path) -> dict[str, int]:
    """The alarms of a training, with the step of the first of each; trains where `workdir` has no finished training."""
    files = Workdir(workdir)
    generator = _ignoring_latents() if "ignore_latents" in changes else contextlib.nullcontext()
    config = _config({name: value for name, value in changes.items() if name != "ignore_latents"}, steps, seed)
    if not any(line["step"] == steps for line in read_lines(files.metrics)):
        with generator, contextlib.suppress(Diverged):
            train(config, workdir)
    # A value that is not finite ends a training, and is in none of the other logs.
    raised = [(line["step"], line["alarm"]) for line in read_lines(files.alarms) if line["action"] == "stopped"]
    alarms = Monitor(config).follow(read_lines(files.metrics), read_lines(files.health))
    raised += [(alarm.step, alarm.name) for alarm in alarms]
    return {name: step for step, name in sorted(raised, reverse=True)}


def _config(changes: dict[str, Any], steps: int, seed: int) -> Config:
    """A network of 32 px that learns phantoms in 1,000 steps; the rest from the config named in `changes`."""
    c = named_config(changes["config"]) if "config" in changes else default.get_config()
    if "config" not in changes:
        c.arch, c.data.horizontal_flip = "sngan", True
    if c.dis == "patch":
        c.dis_features = 8
    c.update(
        image_size=32, latent_dim=32, gen_features=8, num_steps=steps, seed=seed,
        sample_every_steps=1000, checkpoint_every_steps=1000, report=False, tensorboard=False, guard=False,
    )  # fmt: skip
    c.data.update(source="phantom", num_phantoms=128, holdout_fraction=0.25)
    for field, value in changes.items():
        if field != "config":
            (c.data if field in c.data else c)[field] = value
    return parse_config(c)


@contextlib.contextmanager
def _ignoring_latents() -> Iterator[None]:
    """Lets every generator generate from the same latents, whatever it is given."""

    def constant(generate: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        return lambda self, latents, labels=None, *, training: generate(
            self, jnp.ones_like(latents), labels, training=training
        )

    with contextlib.ExitStack() as stack:
        for network in (Generator, FastGANGenerator):
            stack.enter_context(mock.patch.object(network, "__call__", constant(network.__call__)))
        yield


def _row(title: str, expected: frozenset[str], raised: list[dict[str, int]]) -> str:
    def counted(names: list[str]) -> str:
        counts = sorted(Counter(names).items())
        return ", ".join(f"{name} {count} of {len(raised)}" for name, count in counts) or "none"

    right = counted([name for alarms in raised for name in alarms if name in expected])
    others = counted([name for alarms in raised for name in alarms if name not in expected])
    steps = [min(alarms[name] for name in alarms.keys() & expected) for alarms in raised if alarms.keys() & expected]
    if steps:
        right += f", first at step {min(steps)} to {max(steps)}"
    misses = len(raised) - len(steps) if expected else "-"
    return f"| {title} | {right} | {misses} | {others} |"


if __name__ == "__main__":
    with reported():
        main()
