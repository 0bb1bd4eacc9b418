"""One training's workdir while it is filled: what is logged, pictured, measured, watched, saved and said of one GAN.

Where several seeds train in one program, each is a member with a workdir of its own. A member is given its state; how
that came about, alone or in company, it does not know.
"""

import dataclasses
import functools
import shlex
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from medgan_jax import __version__
from medgan_jax.compat.medimagegan import outputs
from medgan_jax.config import Config
from medgan_jax.data.batches import balanced_indices, epoch_permutation
from medgan_jax.data.cache import CachedImages
from medgan_jax.data.classes import Classes, in_proportion
from medgan_jax.distributed import from_leader
from medgan_jax.errors import UserError
from medgan_jax.evaluation.quick import QuickEvaluation
from medgan_jax.sampling import classes_in_turn, classes_listed, sample_batches, seeded_latents
from medgan_jax.sharding import local_copy, local_mesh
from medgan_jax.training.health.monitor import Alarm, Monitor
from medgan_jax.training.health.probe import FAKES, Probe
from medgan_jax.training.journal import Journal
from medgan_jax.training.program import Program
from medgan_jax.training.state import GANState
from medgan_jax.training.store import Store
from medgan_jax.workdir import Workdir, read_lines


class Diverged(UserError):
    """A loss or a parameter is no longer finite."""


class RollBack(Exception):
    """Alarms were raised: the training is to go on from before `step`, its networks `too_fast` slowed down."""

    def __init__(self, alarms: list[Alarm], step: int, too_fast: list[str]) -> None:
        """See there; `alarms` are known in the process that writes."""
        super().__init__()
        self.alarms = alarms
        self.step = step
        self.too_fast = too_fast


@dataclasses.dataclass(frozen=True)
class Data:
    """The images of a training.

    Attributes:
      training: to train on.
      held_out: kept from training; None where there are none.
      steps_per_epoch: whole batches of `training`.
      classes: that are learned; None where the training is not conditional.
    """

    training: CachedImages
    held_out: CachedImages | None
    steps_per_epoch: int
    classes: Classes | None = None

    @property
    def num_classes(self) -> int:
        """How many classes are learned; 0 where the training is not conditional."""
        return len(self.classes.names) if self.classes else 0

    def describe(self) -> dict[str, Any]:
        """For dataset.json."""
        images = self.training
        labels = Counter(images.labels) if images.labels is not None else {}
        return {"digest": images.digest, "num_images": len(images.images), "labels": dict(sorted(labels.items()))}


class Member:
    """One GAN's hold on its workdir."""

    def __init__(
        self,
        config: Config,
        files: Workdir,
        data: Data,
        say: Callable[[str], None],
        *,
        number: int = 0,
        name: str = "",
    ) -> None:
        """Looks at what is there; changes nothing.

        Args:
          config: its training, with its own seed.
          files: its workdir.
          data: its images.
          say: prints a line.
          number: its place among the members.
          name: what to call it; empty where it is alone.
        """
        self.config = config
        self.files = files
        self.data = data
        self.total_steps = config.total_steps(data.steps_per_epoch)
        self.store = Store(
            files, config, data_digest=data.training.digest, classes=data.classes.names if data.classes else ()
        )
        self.rollbacks = from_leader(list(read_lines(files.rollbacks)))
        self.saved_step = self.store.latest_step()
        self.stopped_by_alarm = False
        self._number = number
        self._name = name
        self._say = say
        self._journal: Journal | None = None
        self._quick: QuickEvaluation | None = None

    @property
    def rates(self) -> dict[str, float]:
        """Both learning rates, as rollbacks have left them."""
        return {name: (self.rollbacks or [vars(self.config)])[-1][name] for name in ("lr_gen", "lr_dis")}

    def begin(self, program: Program, initial: Callable[[GANState], GANState], sharding: Any) -> GANState:
        """The latest checkpoint, or, where there is none, what `initial` makes of freshly drawn weights."""
        self.program = program
        slowed = dataclasses.replace(self.config, **self.rates)
        self.monitor = Monitor(slowed, slowed_at=self.rollbacks[-1]["to_step"] if self.rollbacks else -1)
        self._probe: Probe | None = None  # whose last look was at a training that may not have been this one
        self.saved_step = self.store.latest_step()
        if self.saved_step is not None:
            return self.store.restore(self.saved_step, program.like, sharding)
        if self.store.has_networks():  # a generator is saved after the state it comes from
            raise UserError(
                f"{self.files.path}: holds a trained generator but no checkpoint to go on from; restore "
                f"{self.files.checkpoints}, or give another --workdir"
            )
        return initial(program.initial_state(self._number))

    def record(self) -> None:
        """Writes down what is trained on what."""
        self.files.record(self.config, self.data.describe())

    def mend(self, state: GANState) -> None:
        """Saves the networks of the checkpoint that `state` was restored from, where a crash came between."""
        if self.saved_step and not self.store.has_networks(self.saved_step):
            self._take_networks(state)

    def append_run(self, **about: Any) -> None:
        """A line of runs.jsonl: `about` and the versions of everything."""
        self.files.append(self.files.runs, {"step": self.saved_step or 0, **about, **_versions()})

    def open(self, state: GANState) -> None:
        """Goes on with what the training tells of itself; the monitor learns what it has missed."""
        step = self.saved_step or 0
        if self.files.writes:
            self._journal = Journal(self.files, self.config, first_step=step if self.saved_step else -1)
            self.monitor.follow(read_lines(self.files.metrics), read_lines(self.files.health))
        if step == 0:
            self._write_reals()
            self.write_picture(step, state)

    def start_clock(self, step: int) -> None:
        """From here on it trains."""
        self._logged_step, self._logged_at = step, time.perf_counter()

    def check_finite(self, first_step: int, values: dict[str, np.ndarray]) -> None:
        """Stops a training whose losses, METRICS of the steps from `first_step` on, are not finite."""
        for name in ("loss_dis", "loss_gen"):
            bad = ~np.isfinite(values[name])
            if bad.any():
                self._diverged(f"{name} is {values[name][bad.argmax()]}", first_step + int(bad.argmax()) + 1)

    def log(self, step: int, last: dict[str, float]) -> None:
        """Writes the METRICS of the step that ended at `step`, where they are due."""
        if step % self.config.log_every_steps == 0 or step == self.total_steps:
            now = time.perf_counter()
            rate = (step - self._logged_step) * self.config.batch_size / (now - self._logged_at)
            self._logged_step, self._logged_at = step, now
            line = {"step": step, "epoch": self._epoch(step), **last, "images_per_s": round(rate, 2)}
            self.monitor.take_metrics(line)
            if self._journal:
                self._journal.metrics(line)

    def refresh_report(self) -> None:
        """Makes the report anew where the last one is old enough."""
        if self._journal:
            self._journal.refresh_report()

    def save(self, step: int, state: GANState) -> None:
        """Saves a checkpoint in the background; the networks in it follow with `Store.save_networks`."""
        if not _all_finite(state):
            self._diverged("a parameter is not finite", step)
        self.store.save(step, state)
        self.saved_step = step
        self._take_networks(state)

    def _take_networks(self, state: GANState) -> None:
        """Copies both networks, for folders of their own."""
        generator, discriminator = self._generator_to_sample(state), self.program.discriminator(state)
        self.store.take(self.saved_step, self.program.networks, generator, discriminator)

    def _generator_to_sample(self, state: GANState) -> dict[str, Any]:
        return self.program.generator_to_sample(state, self._number)

    def evaluate(self, step: int, state: GANState) -> None:
        """Measures the generator on held-out images, and keeps it where it is the best so far."""
        variables = self._generator_to_sample(state)
        best = False
        if self.files.writes:
            if self._quick is None:
                training, held_out = self.data.training.images, self.data.held_out.images
                self._quick = QuickEvaluation(training, held_out, seed=self.config.seed)
            figures = self._quick.figures(self._sample(variables, self._quick.num_fakes, as_reals=True))
            measure = self.config.best_measure
            best = figures[measure] < self.files.value_of(self.store.best_step(), measure)
            self._journal.evaluation({"step": step, "best_by": measure, **figures})
        if from_leader(best):
            self.store.save_best(step, self.program.networks, variables)

    def look(self, step: int, state: GANState, *, again: bool = False) -> None:
        """Looks at the training's health, and does about the alarms what `on_alarm` says.

        `again`: at a step that was looked at before the training was stopped or rolled back, and only so that the next
        look is compared with it.
        """
        generator = self._generator_to_sample(state)
        alarms: list[Alarm] = []
        if self._journal:
            if self._probe is None:
                held_out = self.data.held_out.images if self.data.held_out else None
                networks, training = self.program.networks, self.data.training.images
                classes = self.data.classes
                self._probe = Probe(networks, self.config, training, held_out, mesh=local_mesh(), classes=classes)
            fakes = self._sample(generator, FAKES)
            line = {"step": step, **self._probe.figures(fakes, generator, state.dis.variables)}
            if not again:
                self._journal.health(line)
                alarms = self.monitor.take_health(line)
        since, too_fast = from_leader(_gist(alarms))
        if since is None:
            return
        if self._may_roll_back():
            raise RollBack(alarms, since, too_fast)
        self.stopped_by_alarm = self.config.on_alarm == "stop" and step < self.total_steps
        for alarm in alarms:
            self._tell(alarm, "stopped" if self.stopped_by_alarm else "warned")

    def _tell(self, alarm: Alarm, action: str, **about: Any) -> None:
        if self._journal:
            self._journal.alarm(alarm.line(action) | about)
        remedies = "; or ".join(alarm.remedies)
        what = f"{alarm.title}. {alarm.sentence} Evidence: {alarm.evidence}"
        whose = f"{self._name}: " if self._name else ""
        self._say(f"{whose}ALARM at step {alarm.step}, {action}: {what}. Try {remedies}")

    def _may_roll_back(self) -> bool:
        return self.config.on_alarm == "rollback" and len(self.rollbacks) < self.config.max_rollbacks

    def roll_back(self, stood: int, back: RollBack) -> None:
        """Goes back from the step `stood` to where all was sound, with slower networks; it has to begin anew."""
        step = self.store.fall_back(back.step)
        # A crash before the line in rollbacks.jsonl leaves the training at the earlier step and as fast as it was, to
        # run into the alarm once more.
        rates = self.rates | {name: self.rates[name] * self.config.rollback_factor for name in back.too_fast}
        slowed = ", ".join(f"{name}={rates[name]:g}" for name in back.too_fast)
        for alarm in back.alarms:
            about = {"rolled_back_to": step, "rollback": len(self.rollbacks) + 1}
            self._tell(alarm, f"rolled back to step {step}, {slowed}", **about)
        if self._journal:
            self._journal.close()
        names = ", ".join(alarm.name for alarm in back.alarms)
        self.rollbacks.append({"step": stood, "to_step": step, "alarm": names, **rates})
        self.files.append(self.files.rollbacks, self.rollbacks[-1])

    def close(self) -> None:
        """Ends what the training tells of itself, and leaves the report, where it is wanted."""
        if self._journal:
            self._journal.close(report=True)

    def abandon(self) -> None:
        """After an error: what is being saved still gets to the disk."""
        if self._journal:
            self._journal.close()
        self.store.abandon()

    def _diverged(self, what: str, step: int) -> NoReturn:
        alarm = self.monitor.not_finite(what, step, self.saved_step or 0)
        if self._may_roll_back():
            raise RollBack([alarm], *_gist([alarm]))
        if self._journal:
            self._journal.alarm(alarm.line("stopped"))
            self._journal.close(report=True)
        kept = (
            f"the checkpoint of step {self.saved_step} is kept" if self.saved_step else "no checkpoint was written yet"
        )
        of = f" of {self._name}" if self._name else ""
        raise Diverged(
            f"training{of} diverged at step {step}: {what}; {kept}. In a new workdir, {'; or '.join(alarm.remedies)}"
        )

    def write_picture(self, step: int, state: GANState) -> None:
        """Writes the fakes of the fixed latents."""
        variables = self._generator_to_sample(state)
        if self._journal:
            self._journal.picture(step, self._sample(variables, self.config.num_sample_images))

    def write_outputs(self, step: int, state: GANState, *, again: bool = False) -> None:
        """At the end of a training, what `output_prefix` asks for; `again`: where a file of it is missing."""
        c, epoch = self.config, self._epoch(step)
        due = c.output_prefix and step >= self.total_steps
        if due and again:
            due = outputs.missing(c.output_prefix, epoch=epoch, step=step, num_images=c.num_sample_images)
        if not from_leader(bool(due)):
            return
        variables = self._generator_to_sample(state)
        if self.files.writes:
            reals = self.data.training.images
            number = outputs.fakes_needed(len(reals), c.num_sample_images)
            outputs.write_outputs(
                c.output_prefix,
                log=self.files.metrics,
                reals=reals,
                fakes=self._sample(variables, number, as_reals=True),
                num_images=c.num_sample_images,
                epoch=epoch,
                step=step,
                seed=c.seed,
            )

    def _epoch(self, step: int) -> int:
        return (step - 1) // self.data.steps_per_epoch

    def _sample(self, variables: dict[str, Any], number: int, *, as_reals: bool = False) -> np.ndarray:
        """The same latents each time, on this process's own devices: uint8, (number, H, W, C).

        Of all classes in turn, or `as_reals` in the proportions of the training images.
        """
        mesh = local_mesh()
        labels_of = classes_in_turn(self.data.num_classes)
        if self.data.classes and as_reals:
            labels_of = classes_listed(in_proportion(number, self.data.classes.counts))
        batches = sample_batches(
            self.program.networks.generator,
            local_copy(variables, mesh),
            functools.partial(seeded_latents, self.config.seed, latent_dim=self.config.latent_dim),
            number,
            batch_size=self.config.batch_size,
            mesh=mesh,
            labels_of=labels_of,
        )
        return np.concatenate(list(batches))

    def _write_reals(self) -> None:
        if self._journal:
            images, classes, seed = self.data.training.images, self.data.classes, self.config.seed
            number = min(self.config.num_sample_images, len(images))
            if classes:  # each where the picture of fakes has its class
                (chosen,) = balanced_indices(0, 1, classes=classes.training, batch_size=number, seed=seed)
            else:
                chosen = epoch_permutation(len(images), seed=seed, epoch=0)[:number]
            self._journal.reals(np.asarray(images[chosen]))

    def raised(self) -> str:
        """The alarms so far, for people."""
        alarms = Counter(line["title"] for line in read_lines(self.files.alarms))
        return ", ".join(f"{title} ({number})" if number > 1 else title for title, number in alarms.items()) or "none"

    def report(self, step: int) -> None:
        """Says what there is to look at."""
        if self.config.monitor_every_steps:
            self._say(f"  alarms:   {self.raised()}")
        if self.config.report:
            self._say(f"  look at:  {self.files.report}")
        self._say(f"  pictures: {self.files.picture(step)} beside {self.files.reals}")
        if (best := self.store.best_step()) is not None:
            self._say(f"  best by {self.config.best_measure}: of step {best}, in {self.files.best}")
        checkpoint = shlex.quote(f"--checkpoint={self.files.path}")
        self._say(f"  sample:   python sample.py {checkpoint} --num_images=100 --out=samples")


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
