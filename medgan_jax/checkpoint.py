"""Checkpoints, by Orbax: the state of a training, and self-contained folders of one network.

Knows pytrees and the two networks, nothing of a training. A network may also come from a PyTorch file. Each step is a
folder of its own that Orbax commits by renaming, so an interrupted save leaves the previous one untouched.
"""

import contextlib
import dataclasses
import functools
import hashlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Sharding
from orbax.checkpoint._src.serialization import tensorstore_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy

from medgan_jax.errors import UserError
from medgan_jax.files import is_local
from medgan_jax.metrics.distribution.guard import GUARD
from medgan_jax.models.dcgan import Discriminator, Generator
from medgan_jax.models.fastgan import FastGANGenerator
from medgan_jax.models.projected import FROZEN, ProjectedDiscriminator, load_frozen, map_shapes
from medgan_jax.models.resnet import ResidualDiscriminator, ResidualGenerator
from medgan_jax.provenance import Provenance

GENERATOR_FOLDER, DISCRIMINATOR_FOLDER = "generator", "discriminator"  # in a workdir
AnyGenerator = Generator | ResidualGenerator | FastGANGenerator
AnyDiscriminator = Discriminator | ResidualDiscriminator | ProjectedDiscriminator

# TensorStore locks the files that it writes, and a disk of NFS or Lustre may have no locks. Orbax has no option for it.
tensorstore_utils._DEFAULT_OCDBT_TS_CONTEXT["file_io_locking"] = {"mode": "lockfile"}
# Orbax warns of each folder that is opened to be read only, as we ask it to.
logging.getLogger("absl").addFilter(lambda record: not re.search("read[ _]only", str(record.msg)))

_TRIES = 20  # to read a network that a training replaces again and again
_SAVING_REMEDY = "earlier checkpoints are untouched: make room and run the same command again"


def digest(tree: Any) -> str:
    """16 hexadecimal digits that change with any name, shape, type or number in a pytree of arrays."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        values = np.asarray(jax.device_get(leaf), order="C")
        sha.update(f"{jax.tree_util.keystr(path)} {values.dtype} {values.shape} ".encode())
        sha.update(values.reshape(-1).view(np.uint8).data)
    return sha.hexdigest()[:16]


def name_frozen(frozen: dict[str, Any]) -> str:
    """How checkpoints name the frozen network that `models.projected.load_frozen` returned."""
    return f"{FROZEN}, {digest(frozen)}"


def check_folder(name: str, folder: Path) -> None:
    """Raises UserError where checkpoints cannot be kept in `folder`, which the user gave as `name`."""
    absolute = str(folder.absolute())
    # TensorStore takes a backslash for a slash, and all names for UTF-8: it would write elsewhere.
    if not is_local(str(folder)) or "\\" in absolute or os.fsencode(absolute) != absolute.encode(errors="replace"):
        raise UserError(
            f"{name}={folder}: checkpoints can be kept on this machine only, below names in UTF-8 without backslashes; "
            "give another path"
        )


class _LiteralPath(type(epath.Path())):  # type: ignore[misc]  # etils' class of paths on this system
    """etils globs below a path as if the path itself were a pattern, and Orbax loses arrays below `run [1]`."""

    def glob(self, pattern: str) -> Iterator["_LiteralPath"]:
        return map(type(self), Path(self).glob(pattern))


class Checkpoints:
    """The numbered checkpoints in one folder, each a pytree of arrays and a JSON-able dictionary beside it."""

    def __init__(self, folder: Path, *, keep: int | None) -> None:
        """Opens `folder`, made by the first save; the `keep` latest steps stay. With None it is only read."""
        check_folder("checkpoints", folder)
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
        self._manager = ocp.CheckpointManager(_LiteralPath(folder.absolute()), options=options)

    def latest_step(self) -> int | None:
        """The newest committed step, None when there is none."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """All committed steps, the oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, tree: Any, about: dict[str, Any]) -> None:
        """Saves in the background; the arrays are copied before this returns, so they may be donated.

        Raises UserError when this save or the one before it failed, for instance because the disk is full.
        """
        with self._explained(f"cannot save step {step}", _SAVING_REMEDY):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._forget_from(step)  # a training that fell back writes its later steps again
            about = about | {"digest": digest(tree)}
            self._manager.save(
                step, args=ocp.args.Composite(tree=ocp.args.StandardSave(tree), about=ocp.args.JsonSave(about))
            )

    def fall_back(self, step: int) -> None:
        """Deletes the checkpoints after `step`."""
        self.wait()
        with self._explained(f"cannot fall back to step {step}", _SAVING_REMEDY):
            self._forget_from(step + 1)

    def _forget_from(self, step: int) -> None:
        for stale in reversed(self.steps()):  # at each moment the newest is to be trusted
            if stale >= step:
                if jax.process_index() == 0:  # half deleted it would look whole; by this name Orbax clears it away
                    folder = self.folder / str(stale)
                    folder.rename(f"{folder}{ocp.utils.TMP_DIR_SUFFIX}")
                self._manager.delete(stale)

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
        """The pytree saved as `step`, every array with `sharding`.

        Raises UserError when it is damaged, or differs from `like`, a pytree of arrays or ShapeDtypeStructs, in
        structure, shapes or types.
        """
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like)
        reason = f"the checkpoint of step {step} is damaged or of another architecture"
        with self._explained(reason, self._remedy(step)):
            tree = self._manager.restore(step, args=ocp.args.Composite(tree=ocp.args.StandardRestore(target)))["tree"]
            if digest(tree) != self.about(step)["digest"]:
                raise ValueError("its numbers are not those that were saved")
        return tree

    def check_frozen(self, step: int, installed: str | None) -> None:
        """Raises UserError where `step` was trained with another frozen network than `installed`, see `name_frozen`."""
        if (saved := self.about(step).get("frozen")) != installed:
            raise UserError(
                f"{self.folder}: step {step} was trained with the frozen network {saved}, and installed is "
                f"{installed}; install the packages that it was trained with (that of the weights, or numpy, which "
                "draws the random matrices), or give another run"
            )

    def close(self) -> None:
        """Waits until all saves are committed, and lets go. Raises UserError when one failed."""
        self.wait()
        self._manager.close()

    def _remedy(self, step: int) -> str:
        if self._read_only:
            return "run its training again to write it anew, or give another"
        return f"delete {self.folder / str(step)} to fall back to the checkpoint before it, or give another workdir"

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

    module: AnyGenerator
    variables: dict[str, Any]
    latent_dim: int
    step: int
    about: dict[str, Any]  # what was saved beside it
    digest: str  # of the variables, see `digest`
    classes: tuple[str, ...] = ()  # their names, by label; none where it is not conditional
    guard: Path | None = None  # the file of its `Guard`, if it carries one

    def provenance(
        self, *, seed: int | None, index: int, label: str, truncation: float | None = None, attempt: int = 0
    ) -> Provenance:
        """Of one of its images."""
        training_set = str(self.about.get("data_digest") or "")
        origin = self.digest, self.step, seed, index, label, truncation, training_set
        return Provenance(*origin, attempt=attempt, trained_through=self.trained_through)

    @property
    def trained_through(self) -> str:
        """The frozen network that the training saw its images through; "" where there is none, or none known."""
        return FROZEN if (self.about.get("config") or {}).get("dis") == "projected" else ""


@dataclasses.dataclass(frozen=True)
class TrainedDiscriminator:
    """A discriminator to go on with, and where it comes from."""

    module: AnyDiscriminator
    variables: dict[str, Any]
    channels: int  # of its images
    step: int
    about: dict[str, Any]
    digest: str


_MODULES: dict[str, dict[str, type]] = {  # by the names under which they are saved
    GENERATOR_FOLDER: {"dcgan": Generator, "resnet": ResidualGenerator, "fastgan": FastGANGenerator},
    DISCRIMINATOR_FOLDER: {
        "dcgan": Discriminator,
        "resnet": ResidualDiscriminator,
        "projected": ProjectedDiscriminator,
    },
}


def save_generator(
    checkpoints: Checkpoints,
    step: int,
    variables: dict[str, Any],
    module: AnyGenerator,
    latent_dim: int,
    record: dict[str, Any],
) -> None:
    """Saves all that sampling needs: parameters, batch statistics, architecture.

    `record` goes along: "config", a `Config.to_dict()`; "data_digest", of the images trained on; "best_by", by which
    measure on held-out images this step was chosen, if it was. Or "imported_from", the name of a PyTorch file.
    A conditional generator needs "classes", their names by label: ValueError when there are more or fewer.
    """
    if len(record.get("classes", ())) != module.num_classes:
        raise ValueError(f"a generator of {module.num_classes} classes cannot be saved with {record.get('classes')!r}")
    checkpoints.save(step, variables, {GENERATOR_FOLDER: _architecture(module) | {"latent_dim": latent_dim}, **record})


def save_discriminator(
    checkpoints: Checkpoints,
    step: int,
    variables: dict[str, Any],
    module: AnyDiscriminator,
    channels: int,
    record: dict[str, Any],
) -> None:
    """Saves parameters, batch statistics, spectral norm's vectors and architecture; `record` as in `save_generator`."""
    checkpoints.save(step, variables, {DISCRIMINATOR_FOLDER: _architecture(module) | {"channels": channels}, **record})


def _architecture(module: Any) -> dict[str, Any]:
    """A network's name and fields, as they are saved."""
    (name,) = [name for modules in _MODULES.values() for name, kind in modules.items() if kind is type(module)]
    fields = [field.name for field in dataclasses.fields(module) if field.name not in ("parent", "name")]
    values = {field: getattr(module, field) for field in fields}
    return {"network": name} | values | {"dtype": jnp.dtype(module.dtype).name}


def load_generator(path: Path, sharding: Sharding) -> TrainedGenerator:
    """Loads the newest generator of a workdir or generator folder, or a PyTorch file.

    Raises UserError when nothing is there, or it is damaged.
    """
    return _load(path, [GENERATOR_FOLDER], sharding)


def load_discriminator(path: Path, sharding: Sharding) -> TrainedDiscriminator:
    """Loads the newest of a folder with a `discriminator/`, of a discriminator folder itself, or a PyTorch file.

    Raises UserError when nothing is there, or it is damaged.
    """
    return _load(path, [DISCRIMINATOR_FOLDER], sharding)


def load_networks(path: Path, sharding: Sharding) -> list[TrainedGenerator | TrainedDiscriminator]:
    """Loads the newest generator, discriminator, or both, of a workdir or of what the others load.

    A crash may have left one of a workdir's folders without a step; then the other is loaded alone.
    Raises UserError when nothing is there, or it is damaged.
    """
    folders = [path / name for name in _MODULES if (path / name).is_dir() and _has_step(path / name)]
    networks = [_load(folder, list(_MODULES), sharding) for folder in folders or [path]]
    if path.is_file() and isinstance(networks[0], TrainedGenerator):
        with contextlib.suppress(UserError):  # most files hold one network
            networks.append(load_discriminator(path, sharding))
    return networks


def _has_step(folder: Path) -> bool:
    with contextlib.closing(Checkpoints(folder, keep=None)) as checkpoints:
        return checkpoints.latest_step() is not None


def _load(path: Path, wanted: list[str], sharding: Sharding) -> Any:
    """Of the newest step; of the next one where a training replaces it meanwhile."""
    for tries_left in reversed(range(_TRIES)):
        steps = _listed(path, wanted)
        try:
            return _load_newest(path, wanted, sharding)
        except (OSError, UserError):
            if not tries_left or steps == _listed(path, wanted):
                raise


def _listed(path: Path, wanted: list[str]) -> set[tuple[str, int]]:
    """The steps of the networks in a workdir or folder, by which one sees that a training has replaced any."""
    listed = set()
    for folder in (path, *(path / name for name in wanted)):
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            listed |= {(entry.name, entry.inode()) for entry in entries if entry.name.isdecimal()}
    return listed


def _load_newest(path: Path, wanted: list[str], sharding: Sharding) -> Any:
    if not path.exists():
        raise UserError(f"{path}: no such folder or file; {_remedy(wanted)}")
    if path.is_file():
        return _load_file(path, wanted, sharding)
    others = []
    for name in wanted:
        folder = path / name if (path / name).is_dir() else path
        with contextlib.closing(Checkpoints(folder, keep=None)) as checkpoints:
            step = checkpoints.latest_step()
            about = {} if step is None else checkpoints.about(step)
            if step is not None and name in about:
                return _load_step(checkpoints, step, name, about, sharding)
            others += [other for other in _MODULES if other in about]
    holds = f"holds a {others[0]} and" if others else "holds"
    seeds = sorted(folder.parent for name in wanted for folder in path.glob(f"seed_*/{name}"))
    remedy = f"give one of its seeds, such as {seeds[0]}" if seeds else _remedy(wanted)
    raise UserError(f"{path}: {holds} no {' or '.join(wanted)}; {remedy}")


def _load_step(checkpoints: Checkpoints, step: int, name: str, about: dict[str, Any], sharding: Sharding) -> Any:
    classes = tuple(about.get("classes", ())) if name == GENERATOR_FOLDER else ()
    try:
        fields = dict(about[name])
        inputs = fields.pop("latent_dim" if name == GENERATOR_FOLDER else "channels")
        dtype = jnp.dtype(fields.pop("dtype"))
        module = _MODULES[name][fields.pop("network")](**fields, dtype=dtype)
        if name == GENERATOR_FOLDER and len(classes) != module.num_classes:
            raise ValueError(f"{module.num_classes} classes named {classes}")
        shape = (1, inputs) if name == GENERATOR_FOLDER else (1, module.image_size, module.image_size, inputs)
        is_projected = isinstance(module, ProjectedDiscriminator)
        like = jax.eval_shape(
            functools.partial(module.init, training=True),
            {"params": jax.random.key(0), "dropout": jax.random.key(0)},
            map_shapes(module.image_size) if is_projected else jax.ShapeDtypeStruct(shape, jnp.float32),
            jax.ShapeDtypeStruct((1,), jnp.int32) if module.num_classes else None,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{checkpoints.folder}: step {step} does not describe a {name} ({error!r}); give another"
        ) from error
    if is_projected:
        checkpoints.check_frozen(step, name_frozen(load_frozen()))
    variables = checkpoints.restore(step, like, sharding)
    if name == DISCRIMINATOR_FOLDER:
        return TrainedDiscriminator(module, variables, inputs, step, about, about["digest"])
    places = (folder / GUARD for folder in (checkpoints.folder, checkpoints.folder.parent))  # the latter a workdir
    guard = next((place for place in places if place.exists()), None)
    return TrainedGenerator(module, variables, inputs, step, about, about["digest"], classes, guard)


def _load_file(path: Path, wanted: list[str], sharding: Sharding) -> Any:
    try:  # the one place outside `compat` and `commands` that needs it: all else works without that folder
        from medgan_jax.compat.torch.convert import described, read_network
    except ModuleNotFoundError as error:
        raise UserError(f"{path}: is a file, and reading one needs medgan_jax/compat; {_remedy(wanted)}") from error

    kinds = {GENERATOR_FOLDER: Generator, DISCRIMINATOR_FOLDER: Discriminator}
    found = read_network(path, kinds=tuple(kinds[name] for name in wanted))
    name = GENERATOR_FOLDER if isinstance(found.module, Generator) else DISCRIMINATOR_FOLDER
    if name not in wanted:
        raise UserError(f"{path}: holds a {name} and no {wanted[0]}; {_remedy(wanted)}")
    if found.key:
        logging.getLogger(__name__).warning("%s: its %s is taken, %s", path, found.key, described(found.module))
    variables, about = jax.device_put(found.variables, sharding), {"imported_from": path.name}
    if isinstance(found.module, Generator):
        return TrainedGenerator(found.module, variables, found.inputs, 0, about, digest(found.variables))
    return TrainedDiscriminator(found.module, variables, found.inputs, 0, about, digest(found.variables))


def _remedy(wanted: list[str]) -> str:
    start = "a training's workdir with a saved step, " if GENERATOR_FOLDER in wanted else ""
    return f"give {start}a {' or '.join(wanted)} folder, or a PyTorch state dict (.pth, .safetensors)"
