"""What a run does every so many steps: log, pictures, evaluation, health checks, checkpoints, report."""

import dataclasses
import logging
import shlex
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from medgan_jax.config import Config
from medgan_jax.data.batches import balanced_indices, epoch_permutation
from medgan_jax.distributed import from_leader
from medgan_jax.evaluation.quick import QuickEvaluation
from medgan_jax.images import image_grid, write_png
from medgan_jax.metrics.distribution.features import efficientnet_features
from medgan_jax.metrics.distribution.guard import Guard, guard_key
from medgan_jax.models.efficientnet_lite import load_efficientnet_lite
from medgan_jax.models.projected import FROZEN
from medgan_jax.provenance import png_text
from medgan_jax.report.card import write_card
from medgan_jax.sharding import local_mesh
from medgan_jax.training.callback import Action, Callback, Diverged, RollBack, Stop
from medgan_jax.training.health.monitor import Alarm, Monitor
from medgan_jax.training.health.probe import NUM_FAKES, Probe
from medgan_jax.training.state import GANState
from medgan_jax.training.tensorboard import TensorBoard
from medgan_jax.workdir import read_lines

if TYPE_CHECKING:
    from medgan_jax.training.trainer import Run


def default_callbacks() -> list[Callback]:
    """Those of every run, in the order in which they are called at one step.

    Pictures come before checkpoints, so that no picture of a saved step is ever missing; health checks too, so that no
    checkpoint is saved where they ask for a rollback.
    """
    logger = MetricLogger()
    health = HealthChecks(logger)
    return [logger, Pictures(logger), Evaluation(logger), health, SaveCheckpoints(health), SaveGuard(), Report()]


class MetricLogger(Callback):
    """Writes metrics.jsonl and the other logs, and TensorBoard's."""

    _tensorboard: TensorBoard | None = None

    def on_start(self, run: "Run", state: GANState) -> None:
        """Opens TensorBoard's file."""
        self._step, self._time, self._compiles = run.step, time.perf_counter(), True
        if run.files.writes and run.config.tensorboard:
            first_step = run.step if run.saved_step else -1
            self._tensorboard = TensorBoard(run.files.tensorboard, first_step=first_step)

    def on_metrics(self, run: "Run", step: int, metrics: dict[str, np.ndarray]) -> None:
        """Writes the metrics of `step`, where a line is due."""
        now = time.perf_counter()
        is_due = step % run.config.log_every_steps == 0 or step == run.total_steps
        rate = (step - self._step) * run.config.batch_size / (now - self._time)
        if is_due or self._compiles:  # what the first call took to compile does not count
            self._step, self._time, self._compiles = step, now, False
        if is_due:
            last = {name: float(values[-1]) for name, values in metrics.items()}
            line = {"step": step, "epoch": run.epoch(step), **last, "images_per_s": round(rate, 2)}
            self.write(run, run.files.metrics, line)

    def write(self, run: "Run", log: Path, line: dict[str, Any]) -> None:
        """Appends a line to one of the workdir's logs, and its numbers to TensorBoard's."""
        run.files.append(log, line)
        if self._tensorboard:
            self._tensorboard.add_scalars(line)

    def picture(self, step: int, grid: np.ndarray) -> None:
        """Shows a picture, uint8 (H, W, C), in TensorBoard."""
        if self._tensorboard:
            self._tensorboard.add_image("fixed latents", step, grid)

    def text(self, step: int, text: str) -> None:
        """Shows a text in TensorBoard."""
        if self._tensorboard:
            self._tensorboard.add_text("alarms", step, text)

    def on_roll_back(self, run: "Run", action: RollBack, to_step: int) -> None:
        """Closes TensorBoard's file; `on_start` begins another."""
        self._close()

    def on_end(self, run: "Run", state: GANState) -> None:
        """Closes TensorBoard's file."""
        self._close()

    def on_error(self, run: "Run", error: Exception) -> None:
        """Closes TensorBoard's file."""
        self._close()

    def _close(self) -> None:
        if self._tensorboard:
            self._tensorboard.close()
            self._tensorboard = None


class Pictures(Callback):
    """Writes samples/: the fakes of the same latents at each step, and reals to compare them with."""

    def __init__(self, logger: MetricLogger) -> None:
        """`logger`: shows them in TensorBoard too."""
        self._logger = logger

    def every(self, config: Config) -> int:
        """See `Callback`."""
        return config.sample_every_steps

    def on_start(self, run: "Run", state: GANState) -> None:
        """Writes the reals and the picture before the first step."""
        if run.step == 0:
            if run.files.writes:
                write_png(run.files.reals, image_grid(_reals_to_show(run)))
            self.on_step(run, state)

    def on_step(self, run: "Run", state: GANState) -> None:
        """Writes the picture of this step."""
        variables = run.sampling_variables(state)
        if run.files.writes:
            grid = image_grid(run.sample(variables, run.config.num_sample_images))
            write_png(run.files.picture(run.step), grid, png_text())
            self._logger.picture(run.step, grid)

    def summary(self, run: "Run") -> Iterator[str]:
        """The line that says where they are."""
        yield f"pictures: {list(run.files.pictures().values())[-1]} beside {run.files.reals}"


class Evaluation(Callback):
    """Compares fakes with held-out images, in evaluations.jsonl, and keeps the best generator, in best/."""

    def __init__(self, logger: MetricLogger) -> None:
        """`logger`: writes the lines."""
        self._logger = logger
        self._quick: QuickEvaluation | None = None

    def every(self, config: Config) -> int:
        """See `Callback`."""
        return config.evaluate_every_steps

    def check(self, config: Config, *, is_new: bool) -> None:
        """See `Callback`: the weights of the features are there."""
        if config.evaluate_every_steps:
            efficientnet_features()

    def on_step(self, run: "Run", state: GANState) -> None:
        """Evaluates the generator of this step."""
        variables = run.sampling_variables(state)
        is_best = False
        if run.files.writes and run.data.held_out:
            if self._quick is None:
                training, held_out = run.data.training.images, run.data.held_out.images
                self._quick = QuickEvaluation(training, held_out, seed=run.config.seed)
            figures = self._quick.figures(run.sample(variables, self._quick.num_fakes, real_proportions=True))
            measure, features = run.config.best_measure, self._quick.features
            how = {"best_by": measure, "features": features.name}
            is_best = figures[measure] < run.files.best_value(run.checkpointer.best_step(), how)
            through = {"trained_through": FROZEN} if run.config.dis == "projected" else {}
            line = {"step": run.step, **how, "features_description": features.description, **through, **figures}
            self._logger.write(run, run.files.evaluations, line)
        if from_leader(is_best):
            run.checkpointer.save_best(run.step, variables)

    def summary(self, run: "Run") -> Iterator[str]:
        """The line that says which generator is the best."""
        if (best := run.checkpointer.best_step()) is not None:
            yield f"best by {run.config.best_measure}: of step {best}, in {run.files.best}"


class HealthChecks(Callback):
    """Raises alarms, in alarms.jsonl, and answers them as `on_alarm` says. Ends a diverged run, or rolls it back."""

    def __init__(self, logger: MetricLogger) -> None:
        """`logger`: writes the lines."""
        self._logger = logger

    def every(self, config: Config) -> int:
        """See `Callback`."""
        return config.monitor_every_steps

    def on_start(self, run: "Run", state: GANState) -> None:
        """Rebuilds the monitor from the logs so far, and measures what the next check is compared with."""
        # A probe compares with its last check, which may have been of weights that a rollback discarded.
        self._probe: Probe | None = None
        rates = run.rollbacks[-1] if run.rollbacks else vars(run.config)
        config = dataclasses.replace(run.config, lr_gen=rates["lr_gen"], lr_dis=rates["lr_dis"])
        self._monitor = Monitor(config, slowed_at=run.rollbacks[-1]["to_step"] if run.rollbacks else -1)
        if run.files.writes:
            self._monitor.follow(read_lines(run.files.metrics), read_lines(run.files.health))
        interval = run.config.monitor_every_steps
        if interval and run.step % interval == 0:
            line = self._measure(run, state)  # the next check compares with this one
            if run.step == 0:
                self._log_and_check(run, line)

    def on_metrics(self, run: "Run", step: int, metrics: dict[str, np.ndarray]) -> Action | None:
        """Ends a run whose losses are not finite, or rolls it back; gives the metrics to the monitor."""
        for name in ("loss_dis", "loss_gen"):
            bad = ~np.isfinite(metrics[name])
            if bad.any():
                first_bad = step - len(bad) + 1 + int(bad.argmax())
                return self.on_divergence(run, f"{name} is {metrics[name][bad.argmax()]}", first_bad)
        if step % run.config.log_every_steps == 0 or step == run.total_steps:
            self._monitor.add_metrics({"step": step} | {name: float(values[-1]) for name, values in metrics.items()})
        return None

    def on_step(self, run: "Run", state: GANState) -> Action | None:
        """Checks the health of this step."""
        alarms = self._log_and_check(run, self._measure(run, state))
        if not from_leader(bool(alarms)):
            return None
        if _may_roll_back(run):
            return _roll_back(run, alarms)
        stops = run.config.on_alarm == "stop" and run.step < run.total_steps
        for alarm in alarms:
            self._report_alarm(run, alarm, "stopped" if stops else "warned")
        return Stop("an alarm") if stops else None

    def _measure(self, run: "Run", state: GANState) -> dict[str, Any]:
        """A line of health.jsonl, in the process that writes."""
        generator = run.sampling_variables(state)
        if not run.files.writes:
            return {}
        if self._probe is None:
            held_out = run.data.held_out.images if run.data.held_out else None
            self._probe = Probe(
                run.networks,
                run.config,
                run.data.training.images,
                held_out,
                mesh=local_mesh(),
                classes=run.data.classes,
            )
        fakes = run.sample(generator, NUM_FAKES)
        return {"step": run.step, **self._probe.measure(fakes, generator, state.dis.variables)}

    def _log_and_check(self, run: "Run", line: dict[str, Any]) -> list[Alarm]:
        if not line:
            return []
        self._logger.write(run, run.files.health, line)
        return self._monitor.add_health(line)

    def _report_alarm(self, run: "Run", alarm: Alarm, action: str, **more: Any) -> None:
        run.files.append(run.files.alarms, alarm.line(action) | more)
        what = f"{alarm.title}. {alarm.sentence} Evidence: {alarm.evidence}"
        self._logger.text(alarm.step, f"{what}. {'; '.join(alarm.remedies)}.")
        line = f"ALARM at step {alarm.step}, {action}: {what}. Try {'; or '.join(alarm.remedies)}"
        run.say(line, level=logging.WARNING)

    def on_roll_back(self, run: "Run", action: RollBack, to_step: int) -> None:
        """Writes the alarms that led to it."""
        rates = {name: rate for name, rate in action.learning_rates.items() if rate != _rates(run)[name]}
        lowered = ", ".join(f"{name}={rate:g}" for name, rate in rates.items())
        for alarm in action.alarms:
            more = {"rolled_back_to": to_step, "rollback": len(run.rollbacks) + 1}
            self._report_alarm(run, alarm, f"rolled back to step {to_step}, {lowered}", **more)

    def on_divergence(self, run: "Run", what: str, step: int) -> Action:
        """Rolls back from a number that is not finite, found at `step`; or logs the alarm and raises Diverged."""
        alarm = self._monitor.not_finite(what, step, run.saved_step)
        if _may_roll_back(run):
            return _roll_back(run, [alarm])
        if run.files.writes:
            run.files.append(run.files.alarms, alarm.line("stopped"))
        kept = f"the checkpoint of step {run.saved_step} is kept" if run.saved_step else "no checkpoint was written yet"
        raise Diverged(
            f"training diverged at step {step}: {what}; {kept}. In a new workdir, {'; or '.join(alarm.remedies)}"
        )

    def summary(self, run: "Run") -> Iterator[str]:
        """The line that lists the alarms so far."""
        if run.config.monitor_every_steps:
            alarms = Counter(line["title"] for line in read_lines(run.files.alarms))
            counts = (f"{title} ({number})" if number > 1 else title for title, number in alarms.items())
            yield f"alarms:   {', '.join(counts) or 'none'}"


class SaveCheckpoints(Callback):
    """Saves the state and both networks."""

    def __init__(self, health: HealthChecks) -> None:
        """`health`: answers a state that is not finite, which is never saved."""
        self._health = health

    def every(self, config: Config) -> int:
        """See `Callback`."""
        return config.checkpoint_every_steps

    def on_step(self, run: "Run", state: GANState) -> Action | None:
        """Saves in the background."""
        if not _all_finite(state):
            return self._health.on_divergence(run, "a parameter is not finite", run.step)
        run.save(state)
        return None

    def on_stop(self, run: "Run", state: GANState) -> Action | None:
        """Saves where the run stops between two checkpoints."""
        return self.on_step(run, state) if run.step > run.saved_step else None

    def summary(self, run: "Run") -> Iterator[str]:
        """The line that says how to sample."""
        checkpoint = shlex.quote(f"--checkpoint={run.files.path}")
        command = "python sample.py" if sys.argv[0].endswith("train.py") else "medgan sample"
        yield f"sample:   {command} {checkpoint} --num_images=100 --out=samples"


class SaveGuard(Callback):
    """Writes guard.npz when the run reaches its end; not earlier, because it takes longer than a checkpoint.

    It depends on the images alone. It is in no generator's folder, which may be given to others.
    """

    def check(self, config: Config, *, is_new: bool) -> None:
        """See `Callback`: the weights of the features are there."""
        if config.guard:
            load_efficientnet_lite("lite1")

    def on_end(self, run: "Run", state: GANState) -> None:
        """Writes it where it is missing; removes it where it is not wanted any more."""
        file = run.files.guard
        if not run.files.writes:
            return
        if not run.config.guard:
            file.unlink(missing_ok=True)
        elif run.step >= run.total_steps and not file.exists():
            training, held_out = run.data.training, run.data.held_out
            run.say(f"hashing {len(training.images)} training images, for {file.name}")  # which may take minutes
            groups = np.unique(training.groups or training.names, return_inverse=True)[1]
            apart = held_out.images if held_out else training.images[:0]
            Guard.calibrated(training.images, groups, apart, key=guard_key(training.digest)).save(file)

    def summary(self, run: "Run") -> Iterator[str]:
        """The line that says what not to share."""
        if run.files.guard.exists():
            yield f"guard:    {run.files.guard} tells copies, and who was trained on: keep it, see docs/privacy.md"


class Report(Callback):
    """Writes report.html while training and at the end, and plots/ and the model cards at the end."""

    _written_at: float | None = None  # None: this process has not trained

    def on_start(self, run: "Run", state: GANState) -> None:
        """Starts the clock."""
        self._written_at = time.monotonic()

    def on_metrics(self, run: "Run", step: int, metrics: dict[str, np.ndarray]) -> None:
        """Writes the report where the last one is old enough."""
        minutes, now = run.config.report_every_minutes, time.monotonic()
        if minutes and now - (self._written_at or now) > 60 * minutes:
            self._write(run)
            self._written_at = now

    def on_end(self, run: "Run", state: GANState) -> None:
        """Writes report, plots and cards."""
        if run.files.writes:
            write_card(run.files)
        if self._written_at is not None:
            self._write(run, plots=True)

    def on_error(self, run: "Run", error: Exception) -> None:
        """Writes report and plots of a run that diverged."""
        if isinstance(error, Diverged):
            if run.files.writes:
                write_card(run.files)
            self._write(run, plots=True)

    def _write(self, run: "Run", *, plots: bool = False) -> None:
        if not (run.config.report and run.files.writes):
            return
        from medgan_jax.report.page import write_report
        from medgan_jax.report.plots import write_plots

        try:
            if plots:
                write_plots(run.files)
            write_report(run.files)
        except Exception as error:  # hours of training must not end for want of a page
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            warnings.warn(f"{run.files.report}: could not be written ({reason})", stacklevel=2)

    def summary(self, run: "Run") -> Iterator[str]:
        """The line that says where it is."""
        if run.config.report:
            yield f"look at:  {run.files.report}"


def _reals_to_show(run: "Run") -> np.ndarray:
    """Training images, uint8 (N, H, W, C); of a conditional run each has the class of the fake in its place."""
    images, classes, seed = run.data.training.images, run.data.classes, run.config.seed
    number = min(run.config.num_sample_images, len(images))
    if classes:
        (chosen,) = balanced_indices(0, 1, classes=classes.training, batch_size=number, seed=seed)
    else:
        chosen = epoch_permutation(len(images), seed=seed, epoch=0)[:number]
    return np.asarray(images[chosen])


def _rates(run: "Run") -> dict[str, float]:
    """Both learning rates, as rollbacks have left them."""
    rates = run.rollbacks[-1] if run.rollbacks else vars(run.config)
    return {name: rates[name] for name in ("lr_gen", "lr_dis")}


def _may_roll_back(run: "Run") -> bool:
    return run.config.on_alarm == "rollback" and len(run.rollbacks) < run.config.max_rollbacks


def _roll_back(run: "Run", alarms: Sequence[Alarm]) -> RollBack:
    """The rollback to before the evidence of all alarms, with a lower rate for the networks at fault."""
    found = min((alarm.since for alarm in alarms), default=0), sorted({alarm.lower_lr for alarm in alarms})
    to_step, lower = from_leader(found)
    rates = {name: rate * (run.config.rollback_factor if name in lower else 1) for name, rate in _rates(run).items()}
    return RollBack(to_step, rates, alarms)


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))
