"""The training loop: restore, run, and what is due between the calls. All arithmetic is in `step`."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from medgan_jax.compat.medimagegan import outputs
from medgan_jax.config import Config
from medgan_jax.data.batches import load_dataset, steps_per_epoch
from medgan_jax.data.cache import CachedImages
from medgan_jax.data.classes import Classes, number_classes
from medgan_jax.distributed import agree, from_leader, is_leader
from medgan_jax.errors import UserError
from medgan_jax.evaluation.quick import check_enough
from medgan_jax.progress import progress_bar
from medgan_jax.sharding import check_batch_size, data_mesh, replicated
from medgan_jax.training import init_from
from medgan_jax.training.member import Data, Member, RollBack
from medgan_jax.training.seeds import Seeds
from medgan_jax.training.signals import Signals
from medgan_jax.training.state import GANState
from medgan_jax.training.step import Metrics

# Short enough for a lively progress bar and an answer to Ctrl-C. On CPU the system maps a call's workspace anew, page
# by page, which was 8 % of the time at a second a call.
_SECONDS_PER_CALL = 3.0


STOPPED_BY_ALARM = 3  # exit code


def train(config: Config, workdir: Path, *, seeds: int = 1, command: str = "") -> int:
    """Trains in `workdir` from where it stands to the end that `config` sets.

    Args:
      config: the training.
      workdir: its folder.
      seeds: how many GANs, of `config.seed` and those that follow; of several each has a folder in `workdir`.
      command: what started it, for the report.

    Returns:
      0 when the end is reached; 128 + the signal's number when SIGINT or SIGTERM asked to stop and the state was saved;
      3 when an alarm stopped it, and the state was saved.

    Raises:
      UserError: the data, the config or the workdir do not allow it.
      Diverged: the training diverged.
    """
    with Signals() as signals:
        mesh = data_mesh()
        check_batch_size(config.batch_size, mesh)
        company = Seeds(config, workdir, seeds)
        for member, files in company.workdirs:
            files.check(member)  # before the images are decoded
            if member.output_prefix and is_leader():
                outputs.prepare(member.output_prefix, new=not files.config.exists())
            if member.init_from and not files.config.exists():
                init_from.check_origin(member.init_from)
        dataset, held_out = _load_dataset(config)
        epoch = steps_per_epoch(len(dataset.images), config.batch_size)
        data = Data(dataset, held_out, epoch, _classes(config, dataset, held_out))
        if config.evaluate_every_steps:
            check_enough(len(held_out.images), len(dataset.images))
        company.check_memory(data, mesh)
        with contextlib.ExitStack() as opened:
            for member, files in company.workdirs:
                opened.enter_context(files.opened(member, data.describe()))
                if jax.process_count() > 1 and not files.bears(from_leader(files.mark())):
                    raise UserError(
                        f"--workdir={workdir}: is not the folder that process 0 sees; give one on a shared disk"
                    )
            training = _Training(company, data, mesh, signals)
            try:
                return training.run(command)
            except (UserError, OSError):
                training.abandon()
                raise


class _Training:
    """One process's hold on a training: the program, the state, and when what is due."""

    def __init__(self, company: Seeds, data: Data, mesh: Mesh, signals: Signals) -> None:
        """Builds the networks and restores the latest checkpoint, or draws initial weights."""
        self.company = company
        self.data = data
        self.mesh = mesh
        self.signals = signals
        self.members = company.members(data)
        self.config = self.members[0].config
        self.total_steps = self.members[0].total_steps
        self.said_of_origin: list[str] = []
        self._begin()

    def _begin(self) -> None:
        """Restores the latest checkpoint, or draws initial weights."""
        self.program = self.company.program(self.data, self.mesh, **self.members[0].rates)
        shared = replicated(self.mesh)
        self.state = self.program.joined(member.begin(self.program, self._initial, shared) for member in self.members)
        self.step = self.members[0].saved_step or 0  # int(self.state.step), without waiting for the device

    def _initial(self, state: GANState) -> GANState:
        if self.config.init_from:
            state, lines = init_from.begin_with(state, self.config.init_from, replicated(self.mesh))
            if lines != self.said_of_origin:  # which all seeds share
                for line in lines:
                    self.company.say(line)
                self.said_of_origin = lines
        return state

    def _each(self) -> Iterator[tuple[Member, GANState]]:
        """The members, each with its own state: made when it is its turn."""
        return ((member, self.program.member_state(self.state, i)) for i, member in enumerate(self.members))

    def run(self, command: str) -> int:
        """Runs to the end, or until a signal or an alarm asks to stop; the exit code."""
        for member, state in self._each():
            member.record()
            member.mend(state)
        if self.step >= self.total_steps:
            for member, state in self._each():
                member.store.close()
                member.write_outputs(self.step, state, again=True)
            self.company.write_spread()
            self.company.say(
                f"{self.company.path}: already at step {self.step} of {self.total_steps}; raise num_steps to go on"
            )
            return 0
        started_by = {"command": command} if command else {}
        for member in self.members:
            member.append_run(**started_by, **self.company.described())
        if self.data.classes:
            self.company.say(self.data.classes.describe(balanced=self.config.balance_classes))
        self._open()
        self.signals.postpone()
        while True:
            try:
                self._run_until_stopped()
                if self.step > (self.members[0].saved_step or 0):
                    self._save()
                break
            except RollBack as back:
                self._roll_back(back)
        for member in self.members:
            member.store.close()
        self.signals.resume()
        for member in self.members:
            member.close()
        if not self.signals.caught:
            for member, state in self._each():
                member.write_outputs(self.step, state)
        return self._report()

    def _open(self) -> None:
        for member, state in self._each():
            member.open(state)

    def _run_until_stopped(self) -> None:
        config = self.config
        leads = self.members[0].files.writes
        bar = progress_bar(self.total_steps, initial=self.step, unit="step", desc="compiling", disable=not leads)
        with bar, contextlib.closing(self.company.open_batches(self.data, self.step, self.mesh)) as batches:
            self.program.compile(*batches.shapes, batches.labels)
            self.company.tell_user = bar.write
            if config.monitor_every_steps and self.step % config.monitor_every_steps == 0:
                for member, state in self._each():
                    member.look(self.step, state, again=self.step > 0)  # what later looks are compared with
            bar.unpause()
            bar.set_description("training")
            for member in self.members:
                member.start_clock(self.step)
            count, running = 1, None
            called_at = time.perf_counter()
            while self.step < self.total_steps and not self._stopped_by_alarm:
                count, stop = agree(min(count, self._steps_to_next_stop()), self.signals.caught)
                if stop:
                    self.signals.caught = stop
                    break
                images, indices, count, labels = batches.take(count, after=running)
                self.state, history = self.program.run(self.state, images, indices, count, labels)
                # Read the call before this one while this one computes: the device never waits for the host.
                finished, running = running, (self.step, count, history)
                self.step += count
                for member in self.members:
                    member.store.save_networks()
                if finished:
                    self._take_in(bar, *finished)
                    now = time.perf_counter()
                    seconds_per_step = (now - called_at) / finished[1]
                    called_at = now
                    count = max(1, int(_SECONDS_PER_CALL / seconds_per_step))
                wants_picture = self._is_due(config.sample_every_steps)
                wants_evaluation = self._is_due(config.evaluate_every_steps)
                wants_look = self._is_due(config.monitor_every_steps)
                wants_checkpoint = self._is_due(config.checkpoint_every_steps)
                if wants_picture or wants_evaluation or wants_look or wants_checkpoint:
                    self._take_in(bar, *running)
                    running = None
                    for member, state in self._each():
                        if wants_picture:  # first, so that no picture of a saved step is ever missing
                            member.write_picture(self.step, state)
                        if wants_evaluation:
                            member.evaluate(self.step, state)
                        if wants_look:
                            member.look(self.step, state)
                    if wants_checkpoint:
                        self._save()
                    called_at = time.perf_counter()
                for member in self.members:
                    member.refresh_report()
            if running:
                self._take_in(bar, *running)

    @property
    def _stopped_by_alarm(self) -> bool:
        return any(member.stopped_by_alarm for member in self.members)

    def _is_due(self, interval: int) -> bool:
        return interval > 0 and (self.step % interval == 0 or self.step == self.total_steps)

    def _steps_to_next_stop(self) -> int:
        c = self.config
        intervals = (
            c.log_every_steps, c.sample_every_steps, c.evaluate_every_steps, c.monitor_every_steps,
            c.checkpoint_every_steps,
        )  # fmt: skip
        return min([self.total_steps - self.step] + [n - self.step % n for n in intervals if n])

    def _take_in(self, bar: tqdm, first_step: int, count: int, history: Metrics) -> None:
        """Waits for a call's metrics, stops a diverged training, shows and logs."""
        figures = self.program.figures(history, count)
        for member, values in zip(self.members, figures, strict=True):
            member.check_finite(first_step, values)
        last = [{name: float(value[-1]) for name, value in values.items()} for values in figures]
        mean = {name: np.mean([values[name] for values in last]) for name in last[0]}
        bar.set_postfix(
            {
                "loss D": f"{mean['loss_dis']:.3f}",
                "G": f"{mean['loss_gen']:.3f}",
                "D(x)": f"{mean['score_real']:.2f}",
                "D(G(z))": f"{mean['score_fake_before']:.2f}/{mean['score_fake_after']:.2f}",
            },
            refresh=False,
        )
        bar.update(count)
        for member, values in zip(self.members, last, strict=True):
            member.log(first_step + count, values)

    def _save(self) -> None:
        """Saves all members, once what they saved before is on the disk: they always have a step in common."""
        for member in self.members:
            member.store.save_networks()
        for member, state in self._each():
            member.save(self.step, state)

    def _roll_back(self, back: RollBack) -> None:
        (member,) = self.members
        member.roll_back(self.step, back)
        self._begin()
        member.mend(self.state)
        self._open()

    def abandon(self) -> None:
        """After an error: what is being saved still gets to the disk."""
        for member in self.members:
            member.abandon()

    def _report(self) -> int:
        """Says how it went and what to look at next; the exit code."""
        say = self.company.say
        if self.signals.caught:
            saved = f"stopped at step {self.step} of {self.total_steps}, saved"
            say(f"{saved if self.step else 'stopped before the first step'}; the same command goes on from there")
            return 128 + self.signals.caught
        say(f"{'stopped by an alarm at' if self._stopped_by_alarm else 'finished'} step {self.step}")
        self.company.report(self.members, self.step)
        if self._stopped_by_alarm:
            say("  go on:    the same command; this alarm is not raised again while its sign lasts")
        return STOPPED_BY_ALARM if self._stopped_by_alarm else 0


def _load_dataset(config: Config) -> tuple[CachedImages, CachedImages | None]:
    """Images to train on, and held out: process 0 first, so that others which share its disk find them decoded."""

    def load() -> tuple[CachedImages, CachedImages | None]:
        return load_dataset(
            config.data,
            image_size=config.image_size,
            channels=config.channels,
            conditional=config.conditional,
            progress=is_leader(),
        )

    def agreed(digest: str) -> list[Any]:
        data = dataclasses.replace(config.data, path="", labels_csv="", cache_dir="")  # each machine has its own
        return [digest, dataclasses.replace(config, data=data).to_dict()]

    dataset = load() if is_leader() else None
    theirs = from_leader(dataset and agreed(dataset[0].digest))
    dataset = dataset or load()
    digest = dataset[0].digest
    if agreed(digest) != theirs:
        what = "images" if digest != theirs[0] else "hyperparameters"
        raise UserError(f"other {what} than in process 0: start all processes with the same config and data")
    return dataset


def _classes(config: Config, dataset: CachedImages, held_out: CachedImages | None) -> Classes | None:
    """What a conditional training learns; None for another one."""
    if not config.conditional:
        return None
    return number_classes(dataset.labels, held_out and held_out.labels, config.data.path or config.data.source)
