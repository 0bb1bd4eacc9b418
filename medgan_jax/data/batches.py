"""From a config to images, the order in which training sees them, and their way to the devices.

The order is a pure function of the seed and the step, so a resumed training needs no iterator state. A data set lies
on the devices whole, or is streamed to them; the batches are the same.
"""

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from medgan_jax.data.cache import CachedImages, content_ids, load_cached
from medgan_jax.data.classes import check_labels
from medgan_jax.data.sources import open_source
from medgan_jax.data.split import hold_out
from medgan_jax.errors import UserError, naming
from medgan_jax.sharding import replicated, sharded

if TYPE_CHECKING:
    from medgan_jax.config import DataConfig

_MAX_STEPS = 256  # taken at once
_CHUNK_BYTES = 64 * 2**20  # of streamed images; two chunks are on the devices at a time


def load_dataset(
    data: "DataConfig", *, image_size: int, channels: int, conditional: bool = False, progress: bool = True
) -> tuple[CachedImages, CachedImages | None]:
    """Opens the source that the config names, and decodes it or finds it decoded.

    Args:
      data: which images.
      image_size: height and width in pixels.
      channels: 1 (grey) or 3 (RGB).
      conditional: whether to refuse images without two classes, before any is decoded.
      progress: whether to show progress bars on stderr.

    Returns:
      The images to train on, and those held out: None where `data.holdout_fraction` is 0.

    Raises:
      UserError: the source or its images cannot be read or divided, or the cache cannot be written.
    """
    load = functools.partial(
        load_cached,
        image_size=image_size,
        channels=channels,
        cache_dir=data.cache_dir,
        on_bad_image=data.on_bad_image,
        progress=progress,
    )
    source = open_source(data)
    if conditional:
        check_labels(source.labels, source.root)
    if not data.holdout_fraction:
        return load(source), None
    ids = content_ids(source, cache_dir=data.cache_dir, progress=progress)
    training, held_out = hold_out(source, data.holdout_fraction, ids)
    return load(training), load(held_out)


def epoch_permutation(num_images: int, *, seed: int, epoch: int, of_class: int | None = None) -> np.ndarray:
    """The order of one epoch, or of one round of a class: int32, (num_images,), each of 0 to num_images - 1 once."""
    entropy = [seed, epoch] if of_class is None else [seed, epoch, of_class + 1]  # to NumPy, a last 0 is none
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))
    return generator.permutation(num_images).astype(np.int32)


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """How many whole batches an epoch has; a last partial batch is dropped.

    Raises:
      UserError: there are fewer images than a batch holds.
    """
    if num_images < batch_size:
        raise UserError(
            f"batch_size={batch_size} is more than the {num_images} images of the data set: lower it, or add images"
        )
    return num_images // batch_size


def batch_indices(first_step: int, num_steps: int, *, num_images: int, batch_size: int, seed: int) -> np.ndarray:
    """The images of consecutive training steps.

    Step s is in epoch s // steps_per_epoch.

    Args:
      first_step: from 0.
      num_steps: how many steps.
      num_images: size of the data set.
      batch_size: images a step.
      seed: of the training.

    Returns:
      int32, (num_steps, batch_size), each from 0 to num_images - 1.

    Raises:
      UserError: there are fewer images than a batch holds.
    """
    steps = np.arange(first_step, first_step + num_steps)
    steps_in_epoch = steps_per_epoch(num_images, batch_size)
    epochs, steps = np.divmod(steps, steps_in_epoch)
    indices = np.empty((num_steps, batch_size), np.int32)
    for epoch in np.unique(epochs):
        order = epoch_permutation(num_images, seed=seed, epoch=int(epoch))
        batches = order[: steps_in_epoch * batch_size].reshape(steps_in_epoch, batch_size)
        indices[epochs == epoch] = batches[steps[epochs == epoch]]
    return indices


def balanced_indices(first_step: int, num_steps: int, *, classes: np.ndarray, batch_size: int, seed: int) -> np.ndarray:
    """The images of consecutive training steps that see all classes equally often.

    Over all steps, one after the other, classes take turns. So each batch has as many images of each class as can be,
    and what is left over goes round. Of its class, each image is seen once before any is seen again.

    Args:
      first_step: from 0.
      num_steps: how many steps.
      classes: int32, (M,), of each image of the data set; each from 0 to the largest has an image.
      batch_size: images a step.
      seed: of the training.

    Returns:
      int32, (num_steps, batch_size), each from 0 to M - 1.
    """
    num_classes = int(classes.max()) + 1
    places = np.arange(first_step * batch_size, (first_step + num_steps) * batch_size)
    indices = np.empty(len(places), np.int32)
    for number in range(num_classes):
        here = places % num_classes == number
        members = np.flatnonzero(classes == number)
        rounds, turns = np.divmod(places[here] // num_classes, len(members))
        drawn = np.empty(len(turns), np.int32)
        for epoch in np.unique(rounds):
            order = epoch_permutation(len(members), seed=seed, epoch=int(epoch), of_class=number)
            drawn[rounds == epoch] = members[order[turns[rounds == epoch]]]
        indices[here] = drawn
    return indices.reshape(num_steps, batch_size)


def _order(
    num_images: int, *, batch_size: int, classes: np.ndarray | None, balanced: bool
) -> Callable[..., np.ndarray]:
    """`batch_indices` or `balanced_indices` of a data set; wants first_step, num_steps and seed."""
    if balanced:
        return functools.partial(balanced_indices, batch_size=batch_size, classes=classes)
    return functools.partial(batch_indices, batch_size=batch_size, num_images=num_images)


class Batches(Protocol):
    """The images of a training's steps, in order, on the devices, as `training.step.train_steps` takes them.

    Attributes:
      shapes: of images and indices as `take` returns them, shardings included; they never change, so one compiled
        program serves all.
      labels: the same of labels; None where classes do not matter.
    """

    shapes: tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]
    labels: jax.ShapeDtypeStruct | None

    def take(self, count: int, after: Any = None) -> tuple[jax.Array, np.ndarray, int, np.ndarray | None]:
        """The batches of the next steps.

        Args:
          count: for how many steps, at least 1.
          after: results of the call that was given what was taken last, a pytree; None when that call is over. Memory
            is not used again before they are there.

        Returns:
          Images and indices, see `train_steps`; for how many steps they are: at least 1, at most `count`; and labels,
          see there.

        Raises:
          OSError: the images cannot be read.
        """
        ...

    def close(self) -> None:
        """Lets go of threads and files."""
        ...


class ResidentBatches:
    """The whole data set on each device; a step's images are picked there."""

    def __init__(
        self,
        images: np.ndarray,
        *,
        batch_size: int,
        seed: int | Sequence[int],
        first_step: int,
        mesh: Mesh,
        classes: np.ndarray | None = None,
        balanced: bool = False,
    ) -> None:
        """Copies `images`, uint8 (M, H, W, C), to the devices when the first are taken.

        For several seeds there are indices, and labels, of each: (S, K, N). See also `open_batches`.
        """
        self._order = _order(len(images), batch_size=batch_size, classes=classes, balanced=balanced)
        self._seeds = [seed] if isinstance(seed, int) else seed
        self._classes = classes
        self._step = first_step
        self._host_images = images
        lead = () if isinstance(seed, int) else (len(seed),)
        order = (*lead, _MAX_STEPS, batch_size)
        self.shapes = (
            jax.ShapeDtypeStruct(images.shape, images.dtype, sharding=replicated(mesh)),
            jax.ShapeDtypeStruct(order, np.int32, sharding=sharded(mesh, axis=len(order) - 1)),
        )
        self.labels = _label_shape(order, classes, mesh)

    def take(self, count: int, after: Any = None) -> tuple[jax.Array, np.ndarray, int, np.ndarray | None]:
        """See `Batches`."""
        count = min(count, _MAX_STEPS)
        indices = np.zeros((len(self._seeds), *self.shapes[1].shape[-2:]), np.int32)
        for rows, seed in zip(indices, self._seeds, strict=True):
            rows[:count] = self._order(self._step, count, seed=seed)
        self._step += count
        indices = indices.reshape(self.shapes[1].shape)
        return self._images, indices, count, None if self._classes is None else self._classes[indices]

    @functools.cached_property
    def _images(self) -> jax.Array:
        return jax.device_put(np.asarray(self._host_images), self.shapes[0].sharding)

    def close(self) -> None:
        """See `Batches`."""


class StreamedBatches:
    """Chunks of batches: while the devices compute on one, a thread reads the next from the cache and sends it.

    A process reads only the rows of its own devices. They are read, not mapped: mapped pages would count as this
    process's memory, and a failing disk would kill it instead of raising an error.
    """

    def __init__(
        self,
        images: np.memmap,
        *,
        batch_size: int,
        seed: int,
        first_step: int,
        mesh: Mesh,
        classes: np.ndarray | None = None,
        balanced: bool = False,
    ) -> None:
        """Starts to read. `images`, uint8 (M, H, W, C), must fill a file of their own; see also `open_batches`."""
        self._order = _order(len(images), batch_size=batch_size, classes=classes, balanced=balanced)
        self._seed = seed
        self._classes = classes
        shape = images.shape[1:]
        steps = max(1, min(_MAX_STEPS, _CHUNK_BYTES // (batch_size * int(np.prod(shape)))))
        self.shapes = (
            jax.ShapeDtypeStruct((steps, batch_size, *shape), images.dtype, sharding=sharded(mesh, axis=1)),
            jax.ShapeDtypeStruct((steps,), np.int32, sharding=replicated(mesh)),
        )
        self.labels = _label_shape((steps, batch_size), classes, mesh)
        self._path = images.filename
        self._file = open(self._path, "rb")  # noqa: SIM115 - a cache may be deleted at any time
        self._chunk: jax.Array | None = None
        self._taken = steps  # of the chunk at hand
        self._step = first_step
        self._next_step = first_step  # of the chunk to read next
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="read-batches")
        self._next = self._read_ahead(None)

    def take(self, count: int, after: Any = None) -> tuple[jax.Array, np.ndarray, int, np.ndarray | None]:
        """See `Batches`."""
        (steps,) = self.shapes[1].shape
        if self._taken == steps:
            self._chunk = None  # before the next: two at a time
            self._chunk = self._next.result()
            self._taken = 0
            self._next = self._read_ahead(after)
        count = min(count, steps - self._taken)
        indices = np.minimum(self._taken + np.arange(steps, dtype=np.int32), steps - 1)
        labels = None
        if self._classes is not None:
            labels = self._classes[self._order(self._step, steps, seed=self._seed)]
        self._taken += count
        self._step += count
        return self._chunk, indices, count, labels

    def close(self) -> None:
        """See `Batches`."""
        self._reader.shutdown(cancel_futures=True)
        self._file.close()

    def _read_ahead(self, after: Any) -> Future[jax.Array]:
        first_step = self._next_step
        self._next_step += self.shapes[0].shape[0]
        return self._reader.submit(self._send, first_step, after)

    def _send(self, first_step: int, after: Any) -> jax.Array:
        chunk = self.shapes[0]
        indices = self._order(first_step, chunk.shape[0], seed=self._seed)
        places = chunk.sharding.addressable_devices_indices_map(chunk.shape)
        parts = {device: self._read(indices[place[:2]]) for device, place in places.items()}
        jax.block_until_ready(after)
        sent = [jax.device_put(part, device) for device, part in parts.items()]
        return jax.block_until_ready(jax.make_array_from_single_device_arrays(chunk.shape, chunk.sharding, sent))

    def _read(self, indices: np.ndarray) -> np.ndarray:
        """Images (*indices.shape, H, W, C)."""
        images = np.empty((*indices.shape, *self.shapes[0].shape[2:]), np.uint8)
        rows = images.reshape(indices.size, -1)
        with naming(self._path):
            for row, index in zip(rows, indices.flat, strict=True):
                if os.preadv(self._file.fileno(), [row], int(index) * row.nbytes) < row.nbytes:
                    raise UserError(f"{self._path}: ends too early; delete it, and run the same command again")
        return images


def _label_shape(shape: tuple[int, ...], classes: np.ndarray | None, mesh: Mesh) -> jax.ShapeDtypeStruct | None:
    return None if classes is None else jax.ShapeDtypeStruct(shape, np.int32, sharding=replicated(mesh))


def open_batches(
    images: np.memmap,
    *,
    device_budget_mb: int,
    batch_size: int,
    seed: int | Sequence[int],
    first_step: int,
    mesh: Mesh,
    classes: np.ndarray | None = None,
    balanced: bool = False,
) -> Batches:
    """The batches of a training: resident where each device has room for all images, streamed elsewhere.

    Args:
      images: uint8, (M, H, W, C), filling a file of their own.
      device_budget_mb: the room on each device, in MiB.
      batch_size: images a step.
      seed: of the training; or several, of trainings that go on together.
      first_step: where the training goes on.
      mesh: the devices.
      classes: int32, (M,), of each image; None where classes do not matter.
      balanced: whether each batch draws the classes equally, see `balanced_indices`, instead of as often as they are.

    Raises:
      UserError: there are several seeds, and no room.
    """
    several_processes = len({device.process_index for device in mesh.devices.flat}) > 1
    resident = images.nbytes <= device_budget_mb * 2**20 and not several_processes
    if not resident and not isinstance(seed, int):
        needed = -(-images.nbytes // 2**20)
        raise UserError(
            f"data.device_budget_mb={device_budget_mb}: several seeds share images that lie on the device, and these "
            f"need {needed} MiB; raise it to {needed}, or train each seed by itself"
        )
    kind = ResidentBatches if resident else StreamedBatches
    order = {"batch_size": batch_size, "seed": seed, "classes": classes, "balanced": balanced}
    return kind(images, first_step=first_step, mesh=mesh, **order)
