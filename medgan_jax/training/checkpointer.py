"""The checkpoints of a run: its states, both networks of the last state, and the best generator."""

import contextlib
from typing import Any

import jax
from jax.sharding import Sharding

from medgan_jax.checkpoint import Checkpoints, name_frozen, save_discriminator, save_generator
from medgan_jax.config import Config
from medgan_jax.distributed import from_leader
from medgan_jax.errors import UserError
from medgan_jax.training.state import GANState, Networks
from medgan_jax.workdir import Workdir


class Checkpointer:
    """Saves and restores in a workdir's folders."""

    def __init__(
        self, files: Workdir, config: Config, networks: Networks, *, data_digest: str, classes: tuple[str, ...]
    ) -> None:
        """Opens the folders; none needs to exist.

        Args:
          files: the workdir.
          config: of the run; saved beside each network.
          networks: the modules; a frozen network is not saved, but named.
          data_digest: of the images; likewise.
          classes: that the networks learn; likewise. Empty where they are unconditional.
        """
        self._config = config
        self._networks = networks
        self._frozen = {} if networks.frozen is None else {"frozen": name_frozen(networks.frozen)}
        self._about: dict[str, Any] = {"config": config.to_dict(), "data_digest": data_digest} | self._frozen
        if classes:
            self._about["classes"] = list(classes)
        self._states = Checkpoints(files.checkpoints, keep=config.keep_checkpoints)
        self._generators = Checkpoints(files.generator, keep=1)
        self._discriminators = Checkpoints(files.discriminator, keep=1)
        self._best = Checkpoints(files.best, keep=1)
        self._all = (self._generators, self._discriminators, self._best, self._states)
        self._pending: tuple[int, dict[str, Any], dict[str, Any]] | None = None

    def latest_step(self) -> int | None:
        """The step of the newest state, as process 0 sees it; None when there is none."""
        return from_leader(self._states.latest_step())

    def best_step(self) -> int | None:
        """The step of the best generator; None when there is none."""
        return self._best.latest_step()

    def has_generator(self) -> bool:
        """Whether a generator is saved, as process 0 sees it."""
        return from_leader(self._generators.latest_step() is not None)

    def has_networks(self, step: int) -> bool:
        """Whether both networks of `step` are saved, as process 0 sees it."""
        return from_leader(self._generators.latest_step() == self._discriminators.latest_step() == step)

    def restore(self, step: int, like: GANState, sharding: Sharding) -> GANState:
        """The state saved at `step`; see `Checkpoints.restore`.

        Raises UserError also where it was trained with another frozen network.
        """
        self._states.check_frozen(step, self._frozen.get("frozen"))
        return self._states.restore(step, like, sharding)

    def save(self, step: int, state: GANState, generator: dict[str, Any], discriminator: dict[str, Any]) -> None:
        """Saves a state in the background; the networks follow with `save_networks`.

        Args:
          step: finished iterations.
          state: copied before this returns, so it may be donated.
          generator: the variables to sample with; not to be donated.
          discriminator: its variables; not to be donated.

        Raises:
          UserError: this save or the one before it failed.
        """
        self.save_networks()
        self._states.save(step, state, self._frozen)
        self._pending = step, generator, discriminator

    def save_again(self, step: int, generator: dict[str, Any], discriminator: dict[str, Any]) -> None:
        """Saves the networks of a saved state, where a crash came between the two."""
        self._pending = step, generator, discriminator

    def save_networks(self) -> None:
        """Saves the networks of the last state once it is on the disk: no network without its state."""
        if self._pending:
            self._states.wait()
            (step, generator, discriminator), self._pending = self._pending, None
            self._save_generator(self._generators, step, generator)
            save_discriminator(
                self._discriminators,
                step,
                discriminator,
                self._networks.discriminator,
                self._config.channels,
                self._about,
            )

    def save_best(self, step: int, generator: dict[str, Any]) -> None:
        """Saves the best generator so far in the background."""
        self._save_generator(self._best, step, generator, best_by=self._config.best_measure)

    def _save_generator(
        self, checkpoints: Checkpoints, step: int, variables: dict[str, Any], *, best_by: str = ""
    ) -> None:
        about = self._about | {"best_by": best_by}
        save_generator(checkpoints, step, variables, self._networks.generator, self._config.latent_dim, about)

    def roll_back(self, step: int) -> int:
        """Deletes what is newer than the last state at or before `step`; or than the oldest, where that is gone.

        Returns:
          The step of the state that is now the newest; 0 where there is none.
        """
        self._states.wait()
        steps = self._states.steps()
        oldest = steps[0] if steps and step >= self._config.checkpoint_every_steps else 0
        target = from_leader(max((saved for saved in steps if saved <= step), default=oldest))
        self._pending = None
        for checkpoints in self._all:  # the states last: a crash before that leaves the run where it was
            checkpoints.fall_back(target)
        return target

    def close(self) -> None:
        """Waits until all is on the disk. Raises UserError when a save failed."""
        self.save_networks()
        for checkpoints in self._all:
            checkpoints.close()

    def abandon(self) -> None:
        """After an error: what is being saved still gets to the disk, as far as it can without other processes."""
        with contextlib.suppress(UserError):
            if jax.process_count() == 1:
                self.close()
            else:
                for checkpoints in self._all:
                    checkpoints.wait()
