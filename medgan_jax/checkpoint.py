"""Checkpoints, by Orbax: the state of a training, and the self-contained generator folder.

Knows pytrees, and of the networks the generator alone; nothing of a training. Each step is a folder of its own that
Orbax commits by renaming, so an interrupted save leaves the previous one untouched.
"""

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Sharding
from orbax.checkpoint.checkpoint_managers import preservation_policy

from medgan_jax.errors import UserError
from medgan_jax.models.dcgan import Generator

GENERATOR_FOLDER = "generator"  # in a workdir
_SAVING_REMEDY = "earlier checkpoints are untouched: make room and run the same command again"


def digest(tree: Any) -> str:
    """16 hexadecimal digits that change with any name, shape, type or number in a pytree of arrays."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        values = np.asarray(jax.device_get(leaf), order="C")
        sha.update(f"{jax.tree_util.keystr(path)} {values.dtype} {values.shape} ".encode())
        sha.update(values.reshape(-1).view(np.uint8))
    return sha.hexdigest()[:16]


class Checkpoints:
    """The numbered checkpoints in one folder, each a pytree of arrays and a JSON-able dictionary beside it."""

    def __init__(self, folder: Path, *, keep: int | None) -> None:
        """Opens `folder`, which is created by the first save.

        Args:
          folder: where the steps are.
          keep: how many of the latest steps stay; None opens for reading only and touches nothing.
        """
        self.folder = folder
        self._read_only = keep is None
        writes = not self._read_only
        options = ocp.CheckpointManagerOptions(
            # Not max_to_keep: with a best_fn it deletes the latest step, and resuming needs that one.
            preservation_policy=preservation_policy.LatestN(keep) if writes else None,
            cleanup_tmp_directories=writes and folder.exists(),
            read_only=not writes,
            create=False,
            # Of several processes: two folders that are saved at once would wait at barriers of the same names.
            multiprocessing_options=ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=folder.name),
        )
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def latest_step(self) -> int | None:
        """The newest committed step, None when there is none."""
        return self._manager.latest_step()

    def save(self, step: int, tree: Any, about: dict[str, Any]) -> None:
        """Saves in the background; the arrays are copied before this returns, so they may be donated.

        Raises:
          UserError: this save or the one before it failed, for instance because the disk is full.
        """
        with self._explained(f"cannot save step {step}", _SAVING_REMEDY):
            self.folder.mkdir(parents=True, exist_ok=True)
            for stale in self._manager.all_steps():  # a training that fell back writes its later steps again
                if stale >= step:
                    self._manager.delete(stale)
            about = about | {"digest": digest(tree)}
            self._manager.save(
                step, args=ocp.args.Composite(tree=ocp.args.StandardSave(tree), about=ocp.args.JsonSave(about))
            )

    def wait(self) -> None:
        """Returns when all saves are committed. Raises UserError when one failed."""
        with self._explained("a save failed", _SAVING_REMEDY):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def about(self, step: int) -> dict[str, Any]:
        """The dictionary saved beside `step`. Raises UserError when it cannot be read."""
        with self._explained(f"the checkpoint of step {step} is damaged", self._remedy(step)):
            restored = self._manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))
            return restored["about"]

    def restore(self, step: int, like: Any, sharding: Sharding) -> Any:
        """The pytree saved as `step`.

        Args:
          step: a saved step.
          like: a pytree of arrays or ShapeDtypeStructs: the structure, shapes and types expected.
          sharding: where every array goes.

        Raises:
          UserError: the checkpoint is damaged, or holds something else than `like`.
        """
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like)
        reason = f"the checkpoint of step {step} is damaged or of another architecture"
        with self._explained(reason, self._remedy(step)):
            tree = self._manager.restore(step, args=ocp.args.Composite(tree=ocp.args.StandardRestore(target)))["tree"]
            if digest(tree) != self.about(step)["digest"]:
                raise ValueError("its numbers are not those that were saved")
        return tree

    def close(self) -> None:
        """Waits until all saves are committed, and lets go. Raises UserError when one failed."""
        self.wait()
        self._manager.close()

    def _remedy(self, step: int) -> str:
        if self._read_only:
            return "run its training again to write it anew, or give another"
        return f"delete {self.folder / str(step)} to fall back to the checkpoint before it, or give another --workdir"

    @contextlib.contextmanager
    def _explained(self, problem: str, remedy: str) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # Orbax and TensorStore raise many kinds, with messages of many lines
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            reason = reason if len(reason) <= 120 else reason[:117] + "..."
            raise UserError(f"{self.folder}: {problem} ({reason}); {remedy}") from error


@dataclasses.dataclass(frozen=True)
class TrainedGenerator:
    """A generator ready to sample from, and where it comes from."""

    module: Generator
    variables: dict[str, Any]
    latent_dim: int
    step: int
    about: dict[str, Any]

    digest: str  # of the variables, see `digest`


def save_generator(
    checkpoints: Checkpoints,
    step: int,
    variables: dict[str, Any],
    module: Generator,
    latent_dim: int,
    record: dict[str, Any],
) -> None:
    """Saves all that sampling needs: parameters, batch statistics, architecture.

    `record` goes along: "config", a `Config.to_dict()`; "data_digest", of the images trained on; "best_by", by which
    measure on held-out images this step was chosen, if it was.
    """
    architecture = {
        "image_size": module.image_size,
        "channels": module.channels,
        "features": module.features,
        "dtype": jnp.dtype(module.dtype).name,
        "latent_dim": latent_dim,
    }
    checkpoints.save(step, variables, {"generator": architecture, **record})


def load_generator(path: Path, sharding: Sharding) -> TrainedGenerator:
    """Loads the newest generator of a workdir, or of a generator folder itself.

    Raises:
      UserError: nothing is there, or it is damaged.
    """
    if not path.exists():
        raise UserError(f"{path}: no such folder; give a training's workdir or a generator folder")
    folder = path / GENERATOR_FOLDER if (path / GENERATOR_FOLDER).is_dir() else path
    checkpoints = Checkpoints(folder, keep=None)
    step = checkpoints.latest_step() if folder.is_dir() else None
    if step is None:
        raise UserError(f"{path}: holds no generator; give a workdir with a saved step, or a generator folder")
    about = checkpoints.about(step)
    try:
        architecture = dict(about["generator"])
        latent_dim = architecture.pop("latent_dim")
        module = Generator(**architecture | {"dtype": jnp.dtype(architecture["dtype"])})
        latents = jax.ShapeDtypeStruct((1, latent_dim), jnp.float32)
        like = jax.eval_shape(functools.partial(module.init, training=True), jax.random.key(0), latents)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder}: step {step} does not describe a generator ({error!r}); give another") from error
    variables = checkpoints.restore(step, like, sharding)
    checkpoints.close()
    return TrainedGenerator(
        module=module, variables=variables, latent_dim=latent_dim, step=step, about=about, digest=about["digest"]
    )
