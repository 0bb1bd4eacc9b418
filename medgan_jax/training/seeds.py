"""Several seeds of one training: several runs, one after the other, and the spread of their figures."""

import dataclasses
import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from medgan_jax.config import Config
from medgan_jax.distributed import is_leader
from medgan_jax.errors import UserError
from medgan_jax.training.callback import Diverged
from medgan_jax.training.trainer import train
from medgan_jax.workdir import Workdir, read_lines, write_json

_LAST_SEED = 2**32 - 1
_SHOWN = ("loss_dis", "loss_gen", "swd", "swd_reals", "kid", "kid_reals")


def train_seeds(number: int) -> Callable[..., int]:
    """`trainer.train` for `number` seeds, `config.seed` and those that follow; each run has a folder in the workdir.

    Started again, it goes on with the first run that has not ended. In the end seeds.json holds the mean, the standard
    deviation and the values of each figure, of the runs that did not diverge.
    """
    return functools.partial(_train_seeds, number)


def _train_seeds(number: int, config: Config, workdir: Path, **options: Any) -> int:
    if config.seed + number - 1 > _LAST_SEED:
        raise UserError(f"--seeds={number}: from config.seed={config.seed} on they pass {_LAST_SEED}; lower it")
    if (workdir / "config.json").exists():
        raise UserError(
            f"--workdir={workdir}: holds the run of one seed; leave out --seeds to go on with it, or give another"
        )
    folders, diverged = [], []
    for seed in range(config.seed, config.seed + number):
        name = f"seed_{seed}"
        prefix = config.output_prefix and f"{config.output_prefix}_{name}"
        try:
            code = train(dataclasses.replace(config, seed=seed, output_prefix=prefix), workdir / name, **options)
        except Diverged as error:
            diverged.append(f"{name}: {error}")
            continue
        if code:
            return code
        folders.append(workdir / name)
    if is_leader() and folders:
        _write_summary(workdir, folders)
    if diverged:
        raise UserError("; ".join(diverged))
    return 0


def _write_summary(workdir: Path, folders: list[Path]) -> None:
    files = [Workdir(folder) for folder in folders]
    summary: dict[str, Any] = {
        "seeds": [int(folder.name.removeprefix("seed_")) for folder in folders],
        "metrics": _spread([f.metrics for f in files]),
        "evaluations": _spread([f.evaluations for f in files]),
    }
    write_json(workdir / "seeds.json", summary)
    log = logging.getLogger(__name__)
    log.info("%s: mean and standard deviation over %d seeds:", workdir / "seeds.json", len(folders))
    figures = summary["metrics"] | summary["evaluations"]
    for name in _SHOWN:
        if name in figures:
            log.info("  %-9s  %10.4g +- %.2g", name, figures[name]["mean"], figures[name]["std"])


def _spread(logs: list[Path]) -> dict[str, Any]:
    """Mean, standard deviation and values, in the order of the seeds, at the newest step that all logs have.

    Texts, such as what the features are, are the same for all seeds.
    """
    lines = [{line["step"]: line for line in read_lines(log)} for log in logs]
    steps = set.intersection(*map(set, lines))
    if not steps:
        return {}
    last = [by_step[max(steps)] for by_step in lines]
    spread: dict[str, Any] = {"step": max(steps)}
    for name, value in last[0].items():
        if isinstance(value, float):
            values = [line[name] for line in last]
            std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
            spread[name] = {"mean": float(np.mean(values)), "std": std, "values": values}
        elif isinstance(value, str):
            spread[name] = value
    return spread
