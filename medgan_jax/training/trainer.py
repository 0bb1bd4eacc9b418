"""A training run, from top to bottom: load the data, restore or initialise, loop over the steps, save, report.

All arithmetic is in `step`. What happens every so many steps besides is in `callbacks`.
"""

import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding
from tqdm import tqdm

from medgan_jax import __version__
from medgan_jax.config import Config
from medgan_jax.data.batches import Batches, open_batches
from medgan_jax.data.classes import in_proportion
from medgan_jax.distributed import agree, from_leader, is_leader
from medgan_jax.errors import UserError
from medgan_jax.models.projected import load_frozen
from medgan_jax.progress import progress_bar
from medgan_jax.sampling import classes_in_turn, classes_listed, sample_batches, seeded_latents
from medgan_jax.sharding import check_batch_size, data_mesh, local_copy, local_mesh, replicated
from medgan_jax.training import init_from
from medgan_jax.training.callback import Action, Callback, RollBack, Stop
from medgan_jax.training.callbacks import default_callbacks
from medgan_jax.training.checkpointer import Checkpointer
from medgan_jax.training.dataset import Data, load_data
from medgan_jax.training.signals import Signals
from medgan_jax.training.state import GANState, Networks, build_networks, initial_state, with_learning_rates
from medgan_jax.training.step import metric_names, sampling_variables, train_step_at
from medgan_jax.workdir import Workdir, read_lines

STOPPED_BY_CALLBACK = 3  # exit code, mostly of an alarm
# How much work the device is given at once. Less has it wait for the host; more delays the answer to Ctrl-C.
_SECONDS_AT_ONCE = 1.0


def train(config: Config, workdir: str | Path, *, callbacks: Sequence[Callback] = (), command: str = "") -> int:
    """Trains in `workdir`, from its last checkpoint to the end that `config` sets.

    Args:
      config: of the run.
      workdir: its folder; made when missing.
      callbacks: called besides the default ones, after them.
      command: what started it, for the report.

    Returns:
      0 when the end is reached; 128 + the signal's number when one of `signals.ASKING` came and the state was saved;
      3 when a callback, such as an alarm, stopped it and the state was saved.

    Raises:
      UserError: the data, the config or the workdir do not allow it; or the training diverged.
    """
    callbacks, workdir = [*default_callbacks(), *callbacks], Path(workdir)
    with Signals() as signals:
        mesh = data_mesh()
        check_batch_size(config.batch_size, mesh)
        files = Workdir(workdir, writes=is_leader())
        files.check(config)  # like the checks below: before the images are decoded, which may take long
        is_new = not files.config.exists()
        if config.init_from and is_new:
            init_from.check_exists(config.init_from)
        if config.dis == "projected":
            load_frozen()
        for callback in callbacks:
            callback.check(config, is_new=is_new)
        data = load_data(config)
        with files.opened(config, data.describe()):
            _check_same_folder(files)
            run = Run(config, files, data, mesh, callbacks, signals)
            try:
                return run.run(command)
            except Exception as error:
                run.end_with(error)
                raise


class Run:
    """A run in progress; callbacks read it.

    Attributes:
      config: of the run.
      files: its workdir.
      data: its images.
      networks: its modules, optimizers and frozen weights.
      checkpointer: its checkpoints.
      rollbacks: lines of rollbacks.jsonl, so far.
      state: at `step`; its arrays are deleted by the next step.
      step: iterations given to the device so far. Their metrics come later, see `Callback.on_metrics`.
      saved_step: of the newest checkpoint; 0 where there is none.
      total_steps: at which it ends.
    """

    def __init__(
        self,
        config: Config,
        files: Workdir,
        data: Data,
        mesh: Mesh,
        callbacks: Sequence[Callback],
        signals: Signals,
    ) -> None:
        """Builds the networks; compiles nothing yet, and writes nothing."""
        self.config = config
        self.files = files
        self.data = data
        classes = data.classes.names if data.classes else ()
        self._shared = replicated(mesh)
        self.networks = jax.device_put(build_networks(config.of_steps(), len(classes)), self._shared)
        self.checkpointer = Checkpointer(
            files, config, self.networks, data_digest=data.training.digest, classes=classes
        )
        self.rollbacks: list[dict[str, Any]] = from_leader(list(read_lines(files.rollbacks)))
        self.total_steps = config.total_steps(data.steps_per_epoch)
        self.step = self.saved_step = 0
        self._mesh = mesh
        self._callbacks = callbacks
        self._signals = signals
        self._seed = np.uint32(config.seed)
        self._initial_state = self._jitted(initial_state)
        self._sampling_variables = self._jitted(_copied_sampling_variables)
        self._copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=self._shared)

    def run(self, command: str) -> int:
        """Runs to the end, or until a signal or a callback asks to stop; returns the exit code."""
        self.state = self._restore()
        self.files.record(self.config, self.data.describe())
        if self.step >= self.total_steps:
            self.checkpointer.close()
            for callback in self._callbacks:
                callback.on_end(self, self.state)
            self.say(f"{self.files.path}: already at step {self.step} of {self.total_steps}; raise num_steps to go on")
            return 0
        self.files.append(self.files.runs, {"step": self.step, "command": command, **_versions()})
        if self.data.classes:
            self.say(self.data.classes.describe(balanced=self.config.balance_classes))
        self._start_callbacks()
        self._signals.postpone()
        while isinstance(action := self._train(), RollBack):
            self._roll_back(action)
        self.checkpointer.close()
        self._signals.resume()
        for callback in self._callbacks:
            callback.on_end(self, self.state)
        return self._report(action)

    def _restore(self) -> GANState:
        """Loads the latest checkpoint, or draws the initial state; saves networks that a crash left unsaved."""
        saved = self.checkpointer.latest_step()
        self.step = self.saved_step = saved or 0
        if saved is None:
            if self.checkpointer.has_generator():  # it is saved after the state it comes from
                raise UserError(
                    f"{self.files.path}: holds a trained generator but no checkpoint to go on from; restore "
                    f"{self.files.checkpoints}, or give another workdir"
                )
            state = self._initial_state()
            if self.config.init_from:
                state, lines = init_from.load(state, self.config.init_from, self._shared)
                for line in lines:
                    self.say(line)
        else:
            state = self.checkpointer.restore(saved, jax.eval_shape(self._initial_state), self._shared)
            if not self.checkpointer.has_networks(saved):
                self.checkpointer.save_again(saved, self.sampling_variables(state), self._copy(state.dis.variables))
        if self.rollbacks:
            state = with_learning_rates(state, self.rollbacks[-1], self._shared)
        return state

    def _start_callbacks(self) -> None:
        """Also after a rollback: what the logs and pictures tell of later steps is dropped first."""
        self.files.forget_after(self.step if self.saved_step else -1)
        for callback in self._callbacks:
            callback.on_start(self, self.state)

    def _train(self) -> Action | None:
        """Trains until the end, a signal, or a callback's action; calls `Callback.on_stop` unless it is a rollback."""
        action = self._train_until_action()
        if not isinstance(action, RollBack):
            action = _first(callback.on_stop(self, self.state) for callback in self._callbacks) or action
        return action

    def _train_until_action(self) -> Action | None:
        """Gives the device some steps at a time, and runs the callbacks between them."""
        bar = progress_bar(
            self.total_steps, initial=self.step, unit="step", desc="compiling", disable=not self.files.writes
        )
        with bar, contextlib.closing(self._open_batches()) as batches:
            train = self._compiled_step(batches)
            intervals = [(callback, callback.every(self.config)) for callback in self._callbacks]
            count, running = 1, None  # the last step of those given to the device, and their metrics
            called_at = time.perf_counter()
            while self.step < self.total_steps:
                # No further than to where something is due.
                ends = [self.config.log_every_steps, *(n for _, n in intervals if n)]
                count = min([count, self.total_steps - self.step] + [n - self.step % n for n in ends])
                count, stop = agree(count, self._signals.caught)
                if stop:
                    self._signals.caught = stop
                    break
                images, indices, count, labels = batches.take(count, after=running)
                history = []
                with jax.set_mesh(self._mesh):  # so that a step divides what it draws
                    for k in range(count):
                        self.state, metrics = train(self.state, images, indices, np.int32(k), labels)
                        history.append(metrics)
                self.step += count
                # Read the steps before these while these are computed: the device never waits for the host.
                finished, running = running, (self.step, history)
                self.checkpointer.save_networks()
                action = None
                if finished:
                    action = self._take_metrics(bar, *finished)
                    now = time.perf_counter()
                    count = max(1, int(_SECONDS_AT_ONCE / ((now - called_at) / len(finished[1]))))
                    called_at = now
                due = [callback for callback, n in intervals if n and self._is_due(n)]
                if isinstance(action, Stop) or (due and not action):  # a rollback discards these steps
                    last, running = running, None
                    action = self._take_metrics(bar, *last) or action
                    if not isinstance(action, RollBack):
                        action = _first(callback.on_step(self, self.state) for callback in due) or action
                    called_at = time.perf_counter()
                if action:
                    return action
            return self._take_metrics(bar, *running) if running else None

    def _is_due(self, interval: int) -> bool:
        return self.step % interval == 0 or self.step == self.total_steps

    def _take_metrics(self, bar: tqdm, step: int, history: list[jax.Array]) -> Action | None:
        """Waits for the metrics of the steps up to `step`, shows them, and gives them to the callbacks."""
        metrics = dict(zip(metric_names(self.config), np.stack(history, axis=1), strict=True))
        shown = {
            "loss D": f"{metrics['loss_dis'][-1]:.3f}",
            "G": f"{metrics['loss_gen'][-1]:.3f}",
            "D(x)": f"{metrics['score_real'][-1]:.2f}",
            "D(G(z))": f"{metrics['score_fake_before'][-1]:.2f}/{metrics['score_fake_after'][-1]:.2f}",
        }
        if getattr(bar, "desc", "") != "training: ":  # a disabled bar has none
            bar.unpause()  # the time to compile does not count
            bar.set_description("training", refresh=False)
        bar.set_postfix(shown, refresh=False)
        bar.update(len(history))
        return _first(callback.on_metrics(self, step, metrics) for callback in self._callbacks)

    def _open_batches(self) -> Batches:
        c, classes = self.config, self.data.classes
        return open_batches(
            self.data.training.images,
            device_budget_mb=c.data.device_budget_mb,
            batch_size=c.batch_size,
            seed=c.seed,
            first_step=self.step,
            mesh=self._mesh,
            classes=classes.training if classes else None,
            balanced=c.conditional and c.balance_classes,
        )

    def _compiled_step(self, batches: Batches) -> Any:
        """`step.train_step_at`, compiled at its first call for the shapes of `batches`."""
        images, indices = batches.shapes
        labels = batches.labels and batches.labels.sharding
        shardings = *3 * (self._shared,), images.sharding, indices.sharding, self._shared, labels
        return self._jitted(train_step_at, in_shardings=shardings, donate_argnums=2)

    def _jitted(self, function: Callable[..., Any], **options: Any) -> Any:
        """`function` of the step, the state or both, jitted, with the networks, the config and the seed of this run."""
        jitted = _jitted(function, config=self.config.of_steps(), out_shardings=self._shared, **options)
        return functools.partial(jitted, self._seed, self.networks)

    def _roll_back(self, action: RollBack) -> None:
        """Goes back to a checkpoint before the alarms' evidence, with a lower learning rate."""
        to_step = self.checkpointer.roll_back(action.to_step)
        for callback in self._callbacks:
            callback.on_roll_back(self, action, to_step)
        # A crash before this line leaves the run at the earlier step with the same rates, to meet the alarm again.
        alarms = ", ".join(alarm.name for alarm in action.alarms)
        self.rollbacks.append({"step": self.step, "to_step": to_step, "alarm": alarms, **action.learning_rates})
        self.files.append(self.files.rollbacks, self.rollbacks[-1])
        self.state = self._restore()
        self._start_callbacks()

    def save(self, state: GANState) -> None:
        """Saves a checkpoint in the background."""
        generator, discriminator = self.sampling_variables(state), self._copy(state.dis.variables)
        self.checkpointer.save(self.step, state, generator, discriminator)
        self.saved_step = self.step

    def sampling_variables(self, state: GANState) -> dict[str, Any]:
        """The variables to sample with; all processes must call it."""
        return self._sampling_variables(state)

    def sample(self, variables: dict[str, Any], number: int, *, real_proportions: bool = False) -> np.ndarray:
        """Fakes of fixed latents, on this process's own devices.

        Args:
          variables: what `sampling_variables` returned.
          number: how many.
          real_proportions: of a conditional run: its classes as often as among the training images, not in turn.

        Returns:
          uint8, (number, H, W, C).
        """
        mesh = local_mesh()
        classes = self.data.classes
        labels_of = classes_in_turn(len(classes.names) if classes else 0)
        if classes and real_proportions:
            labels_of = classes_listed(in_proportion(number, classes.counts.tolist()))
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

    def epoch(self, step: int) -> int:
        """The epoch, from 0, of the iteration that ended at `step`."""
        return (step - 1) // self.data.steps_per_epoch

    def say(self, line: str, *, level: int = logging.INFO) -> None:
        """Logs a line, in the process that writes; a command prints it above the progress bar."""
        if self.files.writes:
            logging.getLogger(__name__).log(level, "%s", line)

    def end_with(self, error: Exception) -> None:
        """Tells the callbacks of an error, and waits for saves in progress."""
        for callback in self._callbacks:
            callback.on_error(self, error)
        self.checkpointer.abandon()

    def _report(self, action: Action | None) -> int:
        """Says how it ended and what to look at next; returns the exit code."""
        if self._signals.caught:
            saved = f"stopped at step {self.step} of {self.total_steps}, saved"
            self.say(f"{saved if self.step else 'stopped before the first step'}; the same command goes on from there")
            return 128 + self._signals.caught
        stopped = f"stopped by {action.reason} at" if isinstance(action, Stop) else ""
        self.say(f"{stopped or 'finished'} step {self.step}")
        for callback in self._callbacks:
            for line in callback.summary(self):
                self.say(f"  {line}")
        if stopped:
            self.say("  go on:    the same command")
        return STOPPED_BY_CALLBACK if stopped else 0


@functools.lru_cache(maxsize=32)
def _jitted(function: Callable[..., Any], *, config: Config, out_shardings: Sharding, **options: Any) -> Any:
    """`function`, jitted, with a seed and the networks as its first arguments.

    The same object for equal arguments: runs in one process that differ in their seeds, or in what no step depends on,
    compile once.
    """

    def seeded(seed: Any, networks: Networks, *arguments: Any) -> Any:
        return function(*arguments, networks=networks, config=dataclasses.replace(config, seed=seed))

    return jax.jit(seeded, out_shardings=out_shardings, **options)


def _copied_sampling_variables(state: GANState, *, networks: Networks, config: Config) -> dict[str, Any]:
    """Copies, as the state is donated to the next step."""
    return jax.tree.map(jnp.copy, sampling_variables(state, networks=networks, config=config))


def _first(actions: Iterable[Action | None]) -> Action | None:
    """The first action that is one; what comes after it is not called."""
    return next((action for action in actions if action), None)


def _check_same_folder(files: Workdir) -> None:
    """Raises UserError where the workdir of this process is not the folder of process 0."""
    if jax.process_count() > 1 and not files.has_token(from_leader(files.write_token())):
        raise UserError(f"workdir={files.path}: is not the folder that process 0 sees; give one on a shared disk")


def _versions() -> dict[str, Any]:
    device = jax.devices()[0]
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
        "jax": jax.__version__,
        "device": device.device_kind,
        "num_devices": jax.device_count(),
    }
