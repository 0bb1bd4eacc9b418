"""The training loop: restore, run, log, picture, save. All arithmetic is in `step`."""

import contextlib
import dataclasses
import functools
import shlex
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from medgan_jax import __version__
from medgan_jax.compilation import compiled
from medgan_jax.config import Config
from medgan_jax.data.cache import CachedImages
from medgan_jax.data.classes import Classes, in_proportion, number_classes
from medgan_jax.data.pipeline import balanced_indices, epoch_permutation, load_dataset, open_batches, steps_per_epoch
from medgan_jax.distributed import agree, from_leader, is_leader
from medgan_jax.errors import UserError
from medgan_jax.evaluation.quick import QuickEvaluation, check_enough
from medgan_jax.progress import Progress
from medgan_jax.sampling import classes_in_turn, classes_listed, sample_batches, seeded_latents
from medgan_jax.sharding import check_batch_size, data_mesh, local_copy, local_mesh, replicated
from medgan_jax.training import outputs, transfer
from medgan_jax.training.journal import Journal
from medgan_jax.training.monitor import Alarm, Monitor
from medgan_jax.training.probe import FAKES, Probe
from medgan_jax.training.signals import Signals
from medgan_jax.training.state import build_networks, initial_state
from medgan_jax.training.step import METRICS, Metrics, generator_to_sample, train_steps
from medgan_jax.training.store import Store
from medgan_jax.training.workdir import Workdir, read_lines

# Short enough for a lively progress bar and an answer to Ctrl-C. On CPU the system maps a call's workspace anew, page
# by page, which was 8 % of the time at a second a call.
_SECONDS_PER_CALL = 3.0


STOPPED_BY_ALARM = 3  # exit code


class Diverged(UserError):
    """A loss or a parameter is no longer finite."""


class _RollBack(Exception):
    """Alarms were raised: the training is to go on from before `step`, its networks `too_fast` slowed down."""

    def __init__(self, alarms: list[Alarm], step: int, too_fast: list[str]) -> None:
        super().__init__()
        self.alarms = alarms  # in the process that writes
        self.step = step
        self.too_fast = too_fast


def train(config: Config, workdir: Path, *, command: str = "") -> int:
    """Trains in `workdir` from where it stands to the end that `config` sets.

    Args:
      config: the training.
      workdir: its folder.
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
        files = Workdir(workdir, writes=is_leader())
        files.check(config)  # before the images are decoded
        if config.output_prefix and is_leader():
            outputs.prepare(config.output_prefix, new=not files.config.exists())
        if config.init_from and not files.config.exists():
            transfer.check_origin(config.init_from)
        dataset, held_out = _load_dataset(config)
        epoch = steps_per_epoch(len(dataset.images), config.batch_size)
        classes = _classes(config, dataset, held_out)
        if config.evaluate_every_steps:
            check_enough(len(held_out.images), len(dataset.images))
        with files.opened(config, _describe(dataset)):
            if jax.process_count() > 1 and not files.bears(from_leader(files.mark())):
                raise UserError(
                    f"--workdir={workdir}: is not the folder that process 0 sees; give one on a shared disk"
                )
            training = _Training(config, dataset, held_out, classes, epoch, files, mesh, signals)
            try:
                return training.run(command)
            except (UserError, OSError):
                training.abandon()
                raise


class _Training:
    """One process's hold on a training: the compiled functions, the state, and where to write."""

    def __init__(
        self,
        config: Config,
        dataset: CachedImages,
        held_out: CachedImages | None,
        classes: Classes | None,
        epoch: int,
        files: Workdir,
        mesh: Mesh,
        signals: Signals,
    ) -> None:
        """Builds the networks and restores the latest checkpoint, or draws initial weights."""
        self.config = config
        self.dataset = dataset
        self.held_out = held_out
        self.classes = classes
        self.files = files
        self.mesh = mesh
        self.signals = signals
        self.steps_per_epoch = epoch
        self.total_steps = config.total_steps(epoch)
        self.store = Store(files, config, data_digest=dataset.digest, classes=classes.names if classes else ())
        self.bar: Progress | None = None
        self.journal: Journal | None = None
        self.quick: QuickEvaluation | None = None
        self.stopped_by_alarm = False
        self.rollbacks = from_leader(list(read_lines(files.rollbacks)))
        self._begin()

    def _begin(self) -> None:
        """Restores the latest checkpoint, or draws initial weights."""
        self.rates = {name: (self.rollbacks or [vars(self.config)])[-1][name] for name in ("lr_gen", "lr_dis")}
        slowed = dataclasses.replace(self.config, **self.rates)
        self.networks = build_networks(slowed, len(self.classes.names) if self.classes else 0)
        self.monitor = Monitor(slowed, slowed_at=self.rollbacks[-1]["to_step"] if self.rollbacks else -1)
        self.probe: Probe | None = None  # whose last look was at a training that may not have been this one
        bound = {"networks": self.networks, "config": self.config}
        shared = replicated(self.mesh)

        initialise = jax.jit(functools.partial(initial_state, self.networks, self.config), out_shardings=shared)
        self.saved_step = self.store.latest_step()
        if self.saved_step is None:
            if self.store.has_networks():  # a generator is saved after the state it comes from
                raise UserError(
                    f"{self.files.path}: holds a trained generator but no checkpoint to go on from; restore "
                    f"{self.files.checkpoints}, or give another --workdir"
                )
            self.state = compiled(initialise)()
            if self.config.init_from:
                self.state, lines = transfer.begin_with(self.state, self.config.init_from, shared)
                for line in lines:
                    self._say(line)
        else:
            self.state = self.store.restore(self.saved_step, jax.eval_shape(initialise), shared)
        self.step = self.saved_step or 0  # int(self.state.step), without waiting for the device
        self.train_steps = jax.jit(functools.partial(train_steps, **bound), out_shardings=shared, donate_argnums=0)
        # Copies, where they are the network in training: its state is donated to the next call.
        self.generator_to_sample = jax.jit(
            lambda state: jax.tree.map(jnp.copy, generator_to_sample(state, **bound)), out_shardings=shared
        )
        self.copied = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=shared)

    def run(self, command: str) -> int:
        """Runs to the end, or until a signal or an alarm asks to stop; the exit code."""
        self.files.record(self.config, _describe(self.dataset))
        if self.saved_step and not self.store.has_networks(self.saved_step):
            self._take_networks()  # a crash came between
        if self.step >= self.total_steps:
            self.store.close()
            self._write_outputs(again=True)
            self._say(f"{self.files.path}: already at step {self.step} of {self.total_steps}; raise num_steps to go on")
            return 0
        started_by = {"command": command} if command else {}
        self.files.append(self.files.runs, {"step": self.step, **started_by, **_versions()})
        if self.classes:
            self._say(self.classes.describe(balanced=self.config.balance_classes))
        self._open_journal()
        self.signals.postpone()
        while True:
            try:
                self._run_until_stopped()
                if self.step > (self.saved_step or 0):
                    self._save()
                break
            except _RollBack as back:
                self._roll_back(back)
        self.store.close()
        self.signals.resume()
        if self.journal:
            self.journal.close(report=True)
        self._write_outputs()
        return self._report()

    def _open_journal(self) -> None:
        """Goes on with what the training tells of itself; the monitor learns what it has missed."""
        if self.files.writes:
            self.journal = Journal(self.files, self.config, first_step=self.step if self.saved_step else -1)
            self.monitor.follow(read_lines(self.files.metrics), read_lines(self.files.health))
        if self.step == 0:
            self._write_reals()
            self._write_picture()

    def _run_until_stopped(self) -> None:
        config = self.config
        bar = Progress(
            self.total_steps, initial=self.step, unit="step", desc="compiling", disable=not self.files.writes
        )
        batches = open_batches(
            self.dataset.images,
            device_budget_mb=config.data.device_budget_mb,
            batch_size=config.batch_size,
            seed=config.seed,
            first_step=self.step,
            mesh=self.mesh,
            classes=self.classes and self.classes.training,
            balanced=config.conditional and config.balance_classes,
        )
        with bar, contextlib.closing(batches):
            steps = jax.ShapeDtypeStruct((), np.int32, sharding=replicated(self.mesh))
            run = compiled(self.train_steps, self.state, *batches.shapes, steps, batches.labels)
            self.bar = bar
            if config.monitor_every_steps and self.step % config.monitor_every_steps == 0:
                self._look(again=self.step > 0)  # what later looks are compared with
            bar.unpause()
            bar.set_description("training")
            self.logged_step, self.logged_at = self.step, time.perf_counter()
            count, running = 1, None
            called_at = time.perf_counter()
            while self.step < self.total_steps and not self.stopped_by_alarm:
                count, stop = agree(min(count, self._steps_to_next_stop()), self.signals.caught)
                if stop:
                    self.signals.caught = stop
                    break
                images, indices, count, labels = batches.take(count, after=running)
                self.state, history = run(self.state, images, indices, np.int32(count), labels)
                # Read the call before this one while this one computes: the device never waits for the host.
                finished, running = running, (self.step, count, history)
                self.step += count
                self.store.save_networks()
                if finished:
                    self._take_in(*finished)
                    now = time.perf_counter()
                    seconds_per_step = (now - called_at) / finished[1]
                    called_at = now
                    count = max(1, int(_SECONDS_PER_CALL / seconds_per_step))
                wants_picture = self._is_due(config.sample_every_steps)
                wants_evaluation = self._is_due(config.evaluate_every_steps)
                wants_look = self._is_due(config.monitor_every_steps)
                wants_checkpoint = self._is_due(config.checkpoint_every_steps)
                if wants_picture or wants_evaluation or wants_look or wants_checkpoint:
                    self._take_in(*running)
                    running = None
                    if wants_picture:  # first, so that no picture of a saved step is ever missing
                        self._write_picture()
                    if wants_evaluation:
                        self._evaluate()
                    if wants_look:
                        self._look()
                    if wants_checkpoint:
                        self._save()
                    called_at = time.perf_counter()
                if self.journal:
                    self.journal.refresh_report()
            if running:
                self._take_in(*running)

    def _is_due(self, interval: int) -> bool:
        return interval > 0 and (self.step % interval == 0 or self.step == self.total_steps)

    def _steps_to_next_stop(self) -> int:
        c = self.config
        intervals = (
            c.log_every_steps, c.sample_every_steps, c.evaluate_every_steps, c.monitor_every_steps,
            c.checkpoint_every_steps,
        )  # fmt: skip
        return min([self.total_steps - self.step] + [n - self.step % n for n in intervals if n])

    def _take_in(self, first_step: int, count: int, history: Metrics) -> None:
        """Waits for a call's metrics, stops a diverged training, shows and logs."""
        values = {name: np.asarray(history[name])[:count] for name in METRICS}
        for name in ("loss_dis", "loss_gen"):
            bad = ~np.isfinite(values[name])
            if bad.any():
                self._diverged(f"{name} is {values[name][bad.argmax()]}", first_step + int(bad.argmax()) + 1)
        step = first_step + count
        last = {name: float(value[-1]) for name, value in values.items()}
        self.bar.set_postfix(
            {
                "loss D": f"{last['loss_dis']:.3f}",
                "G": f"{last['loss_gen']:.3f}",
                "D(x)": f"{last['score_real']:.2f}",
                "D(G(z))": f"{last['score_fake_before']:.2f}/{last['score_fake_after']:.2f}",
            }
        )
        self.bar.update(count)
        if step % self.config.log_every_steps == 0 or step == self.total_steps:
            now = time.perf_counter()
            rate = (step - self.logged_step) * self.config.batch_size / (now - self.logged_at)
            self.logged_step, self.logged_at = step, now
            epoch = (step - 1) // self.steps_per_epoch
            line = {"step": step, "epoch": epoch, **last, "images_per_s": round(rate, 2)}
            self.monitor.take_metrics(line)
            if self.journal:
                self.journal.metrics(line)

    def _save(self) -> None:
        if not _all_finite(self.state):
            self._diverged("a parameter is not finite", self.step)
        self.store.save_networks()
        self.store.save(self.step, self.state)
        self.saved_step = self.step
        self._take_networks()

    def _take_networks(self) -> None:
        """Copies both networks, for folders of their own."""
        generator, discriminator = self.generator_to_sample(self.state), self.copied(self.state.dis.variables)
        self.store.take(self.step, self.networks, generator, discriminator)

    def _evaluate(self) -> None:
        """Measures the generator on held-out images, and keeps it where it is the best so far."""
        variables = self.generator_to_sample(self.state)
        best = False
        if self.files.writes:
            if self.quick is None:
                self.quick = QuickEvaluation(self.dataset.images, self.held_out.images, seed=self.config.seed)
            figures = self.quick.figures(self._sample(variables, self.quick.num_fakes, as_reals=True))
            measure = self.config.best_measure
            best = figures[measure] < self.files.value_of(self.store.best_step(), measure)
            self.journal.evaluation({"step": self.step, "best_by": measure, **figures})
        if from_leader(best):
            self.store.save_best(self.step, self.networks, variables)

    def _look(self, *, again: bool = False) -> None:
        """Looks at the training's health, and does about the alarms what `on_alarm` says.

        `again`: at a step that was looked at before the training was stopped or rolled back, and only so that the next
        look is compared with it.
        """
        generator = self.generator_to_sample(self.state)
        alarms: list[Alarm] = []
        if self.journal:
            if self.probe is None:
                held_out = self.held_out.images if self.held_out else None
                images = self.dataset.images
                self.probe = Probe(
                    self.networks, self.config, images, held_out, mesh=local_mesh(), classes=self.classes
                )
            fakes = self._sample(generator, FAKES)
            line = {"step": self.step, **self.probe.figures(fakes, generator, self.state.dis.variables)}
            if not again:
                self.journal.health(line)
                alarms = self.monitor.take_health(line)
        since, too_fast = from_leader(_gist(alarms))
        if since is None:
            return
        if self._may_roll_back():
            raise _RollBack(alarms, since, too_fast)
        self.stopped_by_alarm = self.config.on_alarm == "stop" and self.step < self.total_steps
        for alarm in alarms:
            self._tell(alarm, "stopped" if self.stopped_by_alarm else "warned")

    def _tell(self, alarm: Alarm, action: str, **about: Any) -> None:
        if self.journal:
            self.journal.alarm(alarm.line(action) | about)
        remedies = "; or ".join(alarm.remedies)
        what = f"{alarm.title}. {alarm.sentence} Evidence: {alarm.evidence}"
        self._say(f"ALARM at step {alarm.step}, {action}: {what}. Try {remedies}")

    def _may_roll_back(self) -> bool:
        return self.config.on_alarm == "rollback" and len(self.rollbacks) < self.config.max_rollbacks

    def _roll_back(self, back: _RollBack) -> None:
        """Goes back to where all was sound, with slower networks."""
        stood, step = self.step, self.store.fall_back(back.step)
        # A crash before the line in rollbacks.jsonl leaves the training at the earlier step and as fast as it was, to
        # run into the alarm once more.
        rates = self.rates | {name: self.rates[name] * self.config.rollback_factor for name in back.too_fast}
        slowed = ", ".join(f"{name}={rates[name]:g}" for name in back.too_fast)
        for alarm in back.alarms:
            about = {"rolled_back_to": step, "rollback": len(self.rollbacks) + 1}
            self._tell(alarm, f"rolled back to step {step}, {slowed}", **about)
        if self.journal:
            self.journal.close()
        names = ", ".join(alarm.name for alarm in back.alarms)
        self.rollbacks.append({"step": stood, "to_step": step, "alarm": names, **rates})
        self.files.append(self.files.rollbacks, self.rollbacks[-1])
        self._begin()
        if self.saved_step:
            self._take_networks()
        self._open_journal()

    def abandon(self) -> None:
        """After an error: what is being saved still gets to the disk."""
        if self.journal:
            self.journal.close()
        self.store.abandon()

    def _diverged(self, what: str, step: int) -> NoReturn:
        alarm = self.monitor.not_finite(what, step, self.saved_step or 0)
        if self._may_roll_back():
            raise _RollBack([alarm], *_gist([alarm]))
        if self.journal:
            self.journal.alarm(alarm.line("stopped"))
            self.journal.close(report=True)
        kept = (
            f"the checkpoint of step {self.saved_step} is kept" if self.saved_step else "no checkpoint was written yet"
        )
        raise Diverged(
            f"training diverged at step {step}: {what}; {kept}. In a new workdir, {'; or '.join(alarm.remedies)}"
        )

    def _write_picture(self) -> None:
        variables = self.generator_to_sample(self.state)
        if self.journal:
            self.journal.picture(self.step, self._sample(variables, self.config.num_sample_images))

    def _write_outputs(self, *, again: bool = False) -> None:
        """At the end of a training, what `output_prefix` asks for; `again`: where a file of it is missing."""
        c, epoch = self.config, (self.step - 1) // self.steps_per_epoch
        due = c.output_prefix and self.step >= self.total_steps and not self.signals.caught
        if due and again:
            due = outputs.missing(c.output_prefix, epoch=epoch, step=self.step, num_images=c.num_sample_images)
        if not from_leader(bool(due)):
            return
        variables = self.generator_to_sample(self.state)
        if self.files.writes:
            number = outputs.fakes_needed(len(self.dataset.images), c.num_sample_images)
            outputs.write_outputs(
                c.output_prefix,
                log=self.files.metrics,
                reals=self.dataset.images,
                fakes=self._sample(variables, number, as_reals=True),
                num_images=c.num_sample_images,
                epoch=epoch,
                step=self.step,
                seed=c.seed,
            )

    def _sample(self, variables: dict[str, Any], number: int, *, as_reals: bool = False) -> np.ndarray:
        """The same latents each time, on this process's own devices: uint8, (number, H, W, C).

        Of all classes in turn, or `as_reals` in the proportions of the training images.
        """
        mesh = local_mesh()
        labels_of = classes_in_turn(len(self.classes.names)) if self.classes else None
        if self.classes and as_reals:
            labels_of = classes_listed(in_proportion(number, self.classes.counts))
        batches = sample_batches(
            self.networks.generator,
            local_copy(variables, mesh),
            functools.partial(seeded_latents, self.config.seed, latent_dim=self.config.latent_dim),
            number,
            batch_size=self.config.batch_size,
            mesh=mesh,
            labels_of=labels_of,
        )
        return np.concatenate(list(batches))

    def _write_reals(self) -> None:
        if self.journal:
            seed, number = self.config.seed, min(self.config.num_sample_images, len(self.dataset.images))
            if self.classes:  # each where the picture of fakes has its class
                (chosen,) = balanced_indices(0, 1, classes=self.classes.training, batch_size=number, seed=seed)
            else:
                chosen = epoch_permutation(len(self.dataset.images), seed=seed, epoch=0)[:number]
            self.journal.reals(np.asarray(self.dataset.images[chosen]))

    def _report(self) -> int:
        """Says how it went and what to look at next; the exit code."""
        if self.signals.caught:
            saved = f"stopped at step {self.step} of {self.total_steps}, saved"
            self._say(f"{saved if self.step else 'stopped before the first step'}; the same command goes on from there")
            return 128 + self.signals.caught
        self._say(f"{'stopped by an alarm at' if self.stopped_by_alarm else 'finished'} step {self.step}")
        alarms = Counter(line["title"] for line in read_lines(self.files.alarms))
        if self.config.monitor_every_steps:
            raised = ", ".join(f"{title} ({number})" if number > 1 else title for title, number in alarms.items())
            self._say(f"  alarms:   {raised or 'none'}")
        if self.config.report:
            self._say(f"  look at:  {self.files.report}")
        self._say(f"  pictures: {self.files.picture(self.step)} beside {self.files.reals}")
        if (best := self.store.best_step()) is not None:
            self._say(f"  best by {self.config.best_measure}: of step {best}, in {self.files.best}")
        checkpoint = shlex.quote(f"--checkpoint={self.files.path}")
        self._say(f"  sample:   python sample.py {checkpoint} --num_images=100 --out=samples")
        if self.stopped_by_alarm:
            self._say("  go on:    the same command; this alarm is not raised again while its sign lasts")
        return STOPPED_BY_ALARM if self.stopped_by_alarm else 0

    def _say(self, line: str) -> None:
        if self.files.writes:
            (self.bar.say if self.bar else print)(line)


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
        data = dataclasses.replace(config.data, path="", labels="", cache_dir="")  # each machine has its own
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


def _describe(dataset: CachedImages) -> dict[str, Any]:
    labels = Counter(dataset.labels) if dataset.labels is not None else {}
    return {"digest": dataset.digest, "num_images": len(dataset.images), "labels": dict(sorted(labels.items()))}


def _gist(alarms: list[Alarm]) -> tuple[int | None, list[str]]:
    """The step after which the evidence of all alarms lies, and which networks are too fast."""
    return min((alarm.since for alarm in alarms), default=None), sorted({alarm.too_fast for alarm in alarms})


def _versions() -> dict[str, Any]:
    device = jax.devices()[0]
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
        "jax": jax.__version__,
        "device": device.device_kind,
        "num_devices": jax.device_count(),
    }


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))
