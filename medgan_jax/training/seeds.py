"""Several seeds of one training, side by side: their workdirs, what they must have in common, and their spread."""

import contextlib
import dataclasses
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from medgan_jax.config import Config
from medgan_jax.data.batches import Batches, open_batches
from medgan_jax.distributed import is_leader
from medgan_jax.errors import UserError
from medgan_jax.memory import memory_available, memory_needed
from medgan_jax.training.member import Data, Member
from medgan_jax.training.program import Program
from medgan_jax.workdir import Workdir, read_lines, write_json

_LAST_SEED = 2**32 - 1
_MOST = 1000  # whose workdirs can be prepared before it is known whether they fit
_SHOWN = ("loss_dis", "loss_gen", "swd", "swd_floor", "kid", "kid_floor")


class Seeds:
    """The trainings that go on together: one in the workdir itself, or several, each in a folder of its own there."""

    def __init__(self, config: Config, path: Path, number: int) -> None:
        """Touches nothing.

        Args:
          config: the training of the first seed; the others follow.
          path: the workdir.
          number: how many.

        Raises:
          UserError: so many cannot be trained, or the other kind of training is in `path`.
        """
        self.path = path
        self.config = config
        self._program: Program | None = None
        self.tell_user: Callable[[str], None] = print
        _check_seeds(config, number)
        several = number > 1
        if several and (path / "config.json").exists():
            raise UserError(
                f"--workdir={path}: holds the training of one seed; leave out --seeds to go on with it, or give another"
            )
        if not several and (present := sorted(path.glob("seed_*/config.json"))):
            raise UserError(
                f"--workdir={path}: holds trainings of several seeds; give --seeds to go on with all of them, or "
                f"--workdir={present[0].parent} --config.seed={present[0].parent.name.removeprefix('seed_')} with one"
            )
        self.workdirs = [(config, Workdir(path, writes=is_leader()))]
        if several:
            configs = [_with_seed(config, config.seed + i) for i in range(number)]
            self.workdirs = [(c, Workdir(path / _name(c), writes=is_leader())) for c in configs]

    @property
    def numbers(self) -> list[int]:
        """The seeds."""
        return [config.seed for config, _ in self.workdirs]

    def open_batches(self, data: Data, first_step: int, mesh: Mesh) -> Batches:
        """The batches from `first_step` on, in the order of each seed. Raises UserError where they cannot be shared."""
        return _open_batches(self.config, self.numbers, data, first_step, mesh)

    def check_memory(self, data: Data, mesh: Mesh) -> None:
        """Compiles the program of several seeds, and checks that the devices have room for it; of one it does nothing.

        Raises:
          UserError: they do not; it says how many seeds would fit.
        """
        number = len(self.numbers)
        if number == 1:
            return

        def needed(seeds: list[int]) -> tuple[Program, int]:
            program = Program(self.config, seeds, mesh, num_classes=data.num_classes)
            with contextlib.closing(_open_batches(self.config, seeds, data, 0, mesh)) as batches:
                return program, memory_needed(program.compile(*batches.shapes, batches.labels))

        self.say(f"compiling the program of {number} seeds")
        self._program, all_need = needed(self.numbers)
        available = memory_available(mesh.local_devices[0])
        if available is None or all_need <= available:
            return
        _, one_needs = needed(self.numbers[:1])
        each_more = max((all_need - one_needs) / (number - 1), 1)
        fit = min(max(int((available - one_needs) // each_more) + 1, 0), number - 1)
        raise UserError(
            f"--seeds={number}: they need {all_need / 2**20:,.0f} MiB on each device, where "
            f"{available / 2**20:,.0f} MiB are left; {fit or 'not even 1'} would fit. Give fewer, or lower batch_size, "
            "feature maps or image_size"
        )

    def program(self, data: Data, mesh: Mesh, **rates: float) -> Program:
        """What trains them, with these learning rates; of several, what was compiled to see whether it fits."""
        return self._program or Program(self.config, self.numbers, mesh, num_classes=data.num_classes, **rates)

    def members(self, data: Data) -> list[Member]:
        """Takes hold of the workdirs, which must be opened. Where there are several, they stand at the same step after.

        Raises:
          UserError: one of them was trained on alone, so that they cannot go on together.
        """
        if len(self.workdirs) == 1:
            return [Member(*self.workdirs[0], data, self.say)]
        members = [
            Member(config, files, data, self.say, number=i, name=_name(config))
            for i, (config, files) in enumerate(self.workdirs)
        ]
        for member in members:
            if member.rollbacks:
                raise UserError(
                    f"{member.files.path}: a rollback slowed its networks down when it was trained alone; go on with "
                    "it alone, or give another --workdir"
                )
        self._align(members)
        return members

    def _align(self, members: list[Member]) -> None:
        """Undoes the last save of those that had time for it before a crash."""
        steps = [member.saved_step or 0 for member in members]
        common = min(steps)
        ahead = [member for member, step in zip(members, steps, strict=True) if step > common]
        for member in ahead:
            runs = list(read_lines(member.files.runs))
            together = runs and runs[-1].get("seeds") == self.numbers
            if not together or common not in (0, *member.store.steps()):
                behind = members[steps.index(common)]
                raise UserError(
                    f"{member.files.path}: stands at step {member.saved_step}, and {behind.files.path} at step "
                    f"{common}; bring that to step {member.saved_step} by itself first (--workdir={behind.files.path} "
                    f"--config.seed={behind.config.seed} --config.num_steps={member.saved_step}, without --seeds)"
                )
        for member in ahead:
            member.store.fall_back(common)
        if ahead:
            self.say(f"all seeds go on from step {common}, the last that all of them had saved")

    def described(self) -> dict[str, Any]:
        """For runs.jsonl: which seeds go on together."""
        return {"seeds": self.numbers} if len(self.workdirs) > 1 else {}

    def report(self, members: list[Member], step: int) -> None:
        """Says what there is to look at."""
        if len(members) == 1:
            members[0].report(step)
            return
        if members[0].config.monitor_every_steps:
            self.say(f"  alarms:   {'; '.join(f'{_name(member.config)}: {member.raised()}' for member in members)}")
        spread = self.write_spread()
        self.say(f"  workdirs: {', '.join(str(files.path) for _, files in self.workdirs)}")
        self.say(f"  spread:   {self.path / 'seeds.json'}; mean and standard deviation over {len(members)} seeds:")
        figures = spread["metrics"] | spread["evaluations"]
        for name in _SHOWN:
            if name in figures:
                self.say(f"    {name:<9}  {figures[name]['mean']:10.4g} +- {figures[name]['std']:.2g}")
        checkpoint = shlex.quote(f"--checkpoint={self.workdirs[0][1].path}")
        self.say(f"  sample:   python sample.py {checkpoint} --num_images=100 --out=samples")

    def write_spread(self) -> dict[str, Any]:
        """Of several, the spread over seeds of each figure in the last lines of the logs, which seeds.json gets too."""
        if len(self.workdirs) == 1:
            return {}
        spread = {
            "seeds": self.numbers,
            "metrics": _spread([files.metrics for _, files in self.workdirs]),
            "evaluations": _spread([files.evaluations for _, files in self.workdirs]),
        }
        write_json(self.path / "seeds.json", spread)
        return spread

    def say(self, line: str) -> None:
        """Prints a line, in the process that writes."""
        if is_leader():
            self.tell_user(line)


def _open_batches(config: Config, seeds: list[int], data: Data, first_step: int, mesh: Mesh) -> Batches:
    return open_batches(
        data.training.images,
        device_budget_mb=config.data.device_budget_mb,
        batch_size=config.batch_size,
        seed=seeds[0] if len(seeds) == 1 else seeds,
        first_step=first_step,
        mesh=mesh,
        classes=data.classes and data.classes.training,
        balanced=config.conditional and config.balance_classes,
    )


def _check_seeds(config: Config, number: int) -> None:
    if not 1 <= number <= _MOST:
        raise UserError(f"--seeds={number}: must be from 1 to {_MOST}")
    if number == 1:
        return
    if config.seed + number - 1 > _LAST_SEED:
        raise UserError(f"--seeds={number}: from config.seed={config.seed} on they pass {_LAST_SEED}; lower it")
    if config.on_alarm != "warn":
        raise UserError(
            f"--seeds={number}: several seeds go on together, so none can {config.on_alarm} alone; set on_alarm=warn"
        )
    if jax.process_count() > 1:
        raise UserError(f"--seeds={number}: several seeds train in one process; start each seed by itself instead")


def _with_seed(config: Config, seed: int) -> Config:
    config = dataclasses.replace(config, seed=seed)
    prefix = config.output_prefix and f"{config.output_prefix}_{_name(config)}"
    # Two checkpoints at least: a crash comes where some members have saved and others have not.
    return dataclasses.replace(config, output_prefix=prefix, keep_checkpoints=max(config.keep_checkpoints, 2))


def _name(config: Config) -> str:
    return f"seed_{config.seed}"


def _spread(logs: list[Path]) -> dict[str, Any]:
    """Mean, standard deviation and values, in the order of the seeds, at the newest step that all logs tell of."""
    lines = [{line["step"]: line for line in read_lines(log)} for log in logs]
    steps = set.intersection(*map(set, lines))
    if not steps:
        return {}
    step = max(steps)
    last = [by_step[step] for by_step in lines]
    names = [name for name, value in last[0].items() if isinstance(value, float)]
    values = {name: [line[name] for line in last] for name in names}
    spread = {
        name: {"mean": float(np.mean(found)), "std": float(np.std(found, ddof=1)), "values": found}
        for name, found in values.items()
    }
    return {"step": step, **spread}
