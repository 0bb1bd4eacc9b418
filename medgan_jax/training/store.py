"""What a training keeps on the disk: its states, both networks of the last one, and the best generator."""

import contextlib
from typing import Any

import jax
from jax.sharding import Sharding

from medgan_jax.checkpoint import Checkpoints, save_discriminator, save_generator
from medgan_jax.config import Config
from medgan_jax.distributed import from_leader
from medgan_jax.errors import UserError
from medgan_jax.training.state import GANState, Networks
from medgan_jax.workdir import Workdir


class Store:
    """The folders of checkpoints in a workdir."""

    def __init__(self, files: Workdir, config: Config, *, data_digest: str, classes: tuple[str, ...] = ()) -> None:
        """Opens them; none needs to be there.

        Args:
          files: the workdir.
          config: the training, which is written beside each network.
          data_digest: of the images, likewise.
          classes: that the networks learn, likewise; none where they draw and judge without.
        """
        self._config = config
        self._about = {"config": config.to_dict(), "data_digest": data_digest}
        if classes:
            self._about["classes"] = list(classes)
        self._states = Checkpoints(files.checkpoints, keep=config.keep_checkpoints)
        self._generators = Checkpoints(files.generator, keep=1)
        self._discriminators = Checkpoints(files.discriminator, keep=1)
        self._best = Checkpoints(files.best, keep=1)
        self._taken: tuple[int, Networks, dict[str, Any], dict[str, Any]] | None = None

    def latest_step(self) -> int | None:
        """The step of the newest state, as process 0 sees it; None when there is none."""
        return from_leader(self._states.latest_step())

    def steps(self) -> list[int]:
        """The steps of all states, the oldest first."""
        return self._states.steps()

    def best_step(self) -> int | None:
        """The step of the best generator; None when there is none."""
        return self._best.latest_step()

    def has_networks(self, step: int | None = None) -> bool:
        """Whether there are networks of `step`; without one: whether there is a generator at all."""
        generator = self._generators.latest_step()
        return generator is not None if step is None else {generator, self._discriminators.latest_step()} == {step}

    def restore(self, step: int, like: GANState, sharding: Sharding) -> GANState:
        """The state saved as `step`; see `Checkpoints.restore`."""
        return self._states.restore(step, like, sharding)

    def save(self, step: int, state: GANState) -> None:
        """Saves a state in the background; see `Checkpoints.save`."""
        self._states.save(step, state, {})

    def take(self, step: int, networks: Networks, generator: dict[str, Any], discriminator: dict[str, Any]) -> None:
        """Holds the variables of both networks, which nobody else may donate, for `save_networks`."""
        self._taken = step, networks, generator, discriminator

    def save_networks(self) -> None:
        """Saves what was taken, once its state is on the disk: no network without its state."""
        if self._taken:
            self._states.wait()
            (step, networks, generator, discriminator), self._taken = self._taken, None
            self._save_generator(self._generators, step, networks, generator)
            save_discriminator(
                self._discriminators, step, discriminator, networks.discriminator, self._config.channels, self._about
            )

    def save_best(self, step: int, networks: Networks, generator: dict[str, Any]) -> None:
        """Saves the best generator so far in the background."""
        self._save_generator(self._best, step, networks, generator, best_by=self._config.best_measure)

    def _save_generator(
        self, checkpoints: Checkpoints, step: int, networks: Networks, variables: dict[str, Any], *, best_by: str = ""
    ) -> None:
        about = self._about | {"best_by": best_by}
        save_generator(checkpoints, step, variables, networks.generator, self._config.latent_dim, about)

    def fall_back(self, sound: int) -> int:
        """Gives up what is newer than the last state at or before the step `sound`.

        Where that was given up for newer ones, the oldest state is fallen back to.

        Returns:
          The step fallen back to; 0 where there is no state to begin from.
        """
        self._states.wait()
        steps = self._states.steps()
        oldest = steps[0] if steps and sound >= self._config.checkpoint_every_steps else 0
        step = from_leader(max((step for step in steps if step <= sound), default=oldest))
        # The states are the last to go: a crash before that leaves the training where it stood.
        self._taken = None
        for checkpoints in (self._generators, self._discriminators, self._best, self._states):
            checkpoints.fall_back(step)
        return step

    def close(self) -> None:
        """Saves what was taken, waits until all is on the disk, and lets go. Raises UserError when a save failed."""
        self.save_networks()
        for checkpoints in (self._states, self._generators, self._discriminators, self._best):
            checkpoints.close()

    def abandon(self) -> None:
        """After an error: what is being saved still gets to the disk, as far as it can without the other processes."""
        with contextlib.suppress(UserError):
            if jax.process_count() == 1:
                self.close()
            else:
                for checkpoints in (self._states, self._generators, self._discriminators, self._best):
                    checkpoints.wait()
