"""From a config to images, the order in which training sees them, and their way to the devices.

The order is a function of the seed and the step alone, so a resumed training needs no state of an iterator. The images
are either copied to the devices whole, or streamed to them; the batches are the same.
"""

import abc
import dataclasses
import functools
import os
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh

from medgan_jax.data.cache import CachedImages, content_ids, load_cached
from medgan_jax.data.classes import check_labels
from medgan_jax.data.sources import ImageSource, of_class, open_source
from medgan_jax.data.split import hold_out, hold_out_fold
from medgan_jax.data.survey import survey
from medgan_jax.errors import UserError, naming
from medgan_jax.sharding import replicated, sharded

if TYPE_CHECKING:
    from medgan_jax.config import DataConfig

_MAX_STEPS = 256  # taken at once
_CHUNK_BYTES = 64 * 2**20  # of streamed images; two chunks are on the devices at a time


def load_dataset(
    data: "DataConfig", *, image_size: int, channels: int, conditional: bool = False, progress: bool = True
) -> tuple[CachedImages, CachedImages | None]:
    """The images to train on, and those held out: None where `data` holds none out.

    They are uint8, (N, image_size, image_size, channels). With `conditional`, images without two classes are refused
    before any is decoded.

    Raises:
      UserError: the source or its images cannot be read or divided, or the cache cannot be written.
    """
    options: dict[str, Any] = {"cache_dir": data.cache_dir, "progress": progress}

    def load(images: ImageSource) -> CachedImages:
        return load_cached(images, image_size=image_size, channels=channels, on_bad_image=data.on_bad_image, **options)

    # Folds divide all classes, so that those of two classes are parts of one division.
    source = open_source(dataclasses.replace(data, class_filter="") if data.folds else data)
    if conditional:
        check_labels(source.labels, source.root)
    source = survey(source, data, image_size=image_size, progress=progress)
    if not data.holds_out():
        return load(source), None
    ids = content_ids(source, **options)
    if data.folds:
        sides = hold_out_fold(source, data.folds, data.fold, ids)
        training, held_out = (of_class(side, data.class_filter) for side in sides)
    else:
        training, held_out = hold_out(source, data.holdout_fraction, ids)
    return load(training), load(held_out)


def epoch_permutation(num_images: int, *, seed: int, epoch: int, of_class: int | None = None) -> np.ndarray:
    """The order of one epoch, or of one pass over a class: int32, (num_images,), each of 0 to num_images - 1 once."""
    entropy = [seed, epoch] if of_class is None else [seed, epoch, of_class + 1]  # NumPy ignores a last 0
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))
    return generator.permutation(num_images).astype(np.int32)


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """The number of whole batches in an epoch; a last partial batch is dropped.

    Raises:
      UserError: there are fewer images than a batch holds.
    """
    if num_images < batch_size:
        raise UserError(
            f"batch_size={batch_size} is more than the {num_images} images of the data set: lower it, or add images"
        )
    return num_images // batch_size


def batch_indices(first_step: int, num_steps: int, *, num_images: int, batch_size: int, seed: int) -> np.ndarray:
    """The images of consecutive training steps, int32, (num_steps, batch_size), each from 0 to num_images - 1.

    Step s, counted from 0, is in epoch s // steps_per_epoch.

    Raises:
      UserError: there are fewer images than a batch holds.
    """
    steps_in_epoch = steps_per_epoch(num_images, batch_size)
    epochs, steps = np.divmod(np.arange(first_step, first_step + num_steps), steps_in_epoch)
    indices = np.empty((num_steps, batch_size), np.int32)
    for epoch in np.unique(epochs):
        order = epoch_permutation(num_images, seed=seed, epoch=int(epoch))
        batches = order[: steps_in_epoch * batch_size].reshape(steps_in_epoch, batch_size)
        indices[epochs == epoch] = batches[steps[epochs == epoch]]
    return indices


def balanced_indices(first_step: int, num_steps: int, *, classes: np.ndarray, batch_size: int, seed: int) -> np.ndarray:
    """The images of consecutive training steps that see all classes equally often, int32, (num_steps, batch_size).

    `classes`, int32, (M,), is the class of each image; each from 0 to the largest has an image. The classes take turns,
    image by image, from one batch to the next: the numbers of images of two classes differ by at most one, in each
    batch and in all batches since step 0. Each image of a class is seen once before any of that class is seen again.
    """
    num_classes = int(classes.max()) + 1
    places = np.arange(first_step * batch_size, (first_step + num_steps) * batch_size)
    indices = np.empty(len(places), np.int32)
    for number in range(num_classes):
        of_class = np.flatnonzero(classes == number)
        here = places % num_classes == number
        epochs, turns = np.divmod(places[here] // num_classes, len(of_class))
        drawn = np.empty(len(turns), np.int32)
        for epoch in np.unique(epochs):
            order = epoch_permutation(len(of_class), seed=seed, epoch=int(epoch), of_class=number)
            drawn[epochs == epoch] = of_class[order[turns[epochs == epoch]]]
        indices[here] = drawn
    return indices.reshape(num_steps, batch_size)


class Batches(abc.ABC):
    """The batches of a training's steps, in order, on the devices, as `training.step.train_step_at` takes them.

    Attributes:
      shapes: of images and indices as `take` returns them, shardings included. They never change, so one compiled
        program serves all calls.
      labels: the same of labels; None where classes do not matter.
    """

    shapes: tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]
    labels: jax.ShapeDtypeStruct | None

    def __init__(
        self,
        images: np.ndarray,
        *,
        steps: int,
        batch_size: int,
        seed: int,
        first_step: int,
        mesh: Mesh,
        classes: np.ndarray | None = None,
        balanced: bool = False,
    ) -> None:
        """Takes what `open_batches` does, and for how many steps indices and labels are given at once."""
        self._num_images, self._batch_size, self._seed = len(images), batch_size, seed
        self._step = first_step
        self._classes, self._balanced = classes, balanced
        self.labels = None
        if classes is not None:
            self.labels = jax.ShapeDtypeStruct((steps, batch_size), np.int32, sharding=replicated(mesh))

    def _indices(self, first_step: int, num_steps: int) -> np.ndarray:
        """The images of these steps: int32, (num_steps, batch_size)."""
        order: dict[str, Any] = {"batch_size": self._batch_size, "seed": self._seed}
        if self._balanced and self._classes is not None:
            return balanced_indices(first_step, num_steps, classes=self._classes, **order)
        return batch_indices(first_step, num_steps, num_images=self._num_images, **order)

    @abc.abstractmethod
    def take(self, count: int, after: Any = None) -> tuple[jax.Array, np.ndarray, int, np.ndarray | None]:
        """The batches of the next steps: images, indices and labels as `train_step_at` takes them.

        They are for `count` steps or fewer, at least 1; the third value returned says for how many. The memory of the
        batches before is not used again until `after`, the results (a pytree) of the steps that got them, is there.

        Raises:
          OSError: the images cannot be read.
          UserError: their file is too short.
        """

    def close(self) -> None:  # noqa: B027 - nothing to do unless there are threads and files
        """Ends threads and closes files."""


class ResidentBatches(Batches):
    """The whole data set on each device, which picks the images of a step."""

    def __init__(self, images: np.ndarray, *, batch_size: int, mesh: Mesh, **options: Any) -> None:
        """Takes what `open_batches` does; the images are copied by the first `take`."""
        super().__init__(images, steps=_MAX_STEPS, batch_size=batch_size, mesh=mesh, **options)
        self._host_images = images
        self.shapes = (
            jax.ShapeDtypeStruct(images.shape, images.dtype, sharding=replicated(mesh)),
            jax.ShapeDtypeStruct((_MAX_STEPS, batch_size), np.int32, sharding=sharded(mesh, axis=1)),
        )

    def take(self, count: int, after: Any = None) -> tuple[jax.Array, np.ndarray, int, np.ndarray | None]:
        """See `Batches`."""
        count = min(count, _MAX_STEPS)
        indices = np.zeros(self.shapes[1].shape, np.int32)
        indices[:count] = self._indices(self._step, count)
        self._step += count
        return self._images, indices, count, None if self._classes is None else self._classes[indices]

    @functools.cached_property
    def _images(self) -> jax.Array:
        return jax.device_put(np.asarray(self._host_images), self.shapes[0].sharding)


class StreamedBatches(Batches):
    """Chunks of batches: while the devices compute on one, a thread reads the next from the cache and sends it.

    A process reads only the rows of its own devices. They are read, not mapped: mapped pages would count as this
    process's memory, and a failing disk would kill it instead of raising an error.
    """

    def __init__(
        self, images: np.memmap, *, batch_size: int, mesh: Mesh, chunk_bytes: int = _CHUNK_BYTES, **options: Any
    ) -> None:
        """Takes what `open_batches` does, and starts to read. A chunk has at most `chunk_bytes`, or else one batch."""
        shape = images.shape[1:]
        steps = max(1, min(_MAX_STEPS, chunk_bytes // (batch_size * int(np.prod(shape)))))
        super().__init__(images, steps=steps, batch_size=batch_size, mesh=mesh, **options)
        self.shapes = (
            jax.ShapeDtypeStruct((steps, batch_size, *shape), images.dtype, sharding=sharded(mesh, axis=1)),
            jax.ShapeDtypeStruct((steps,), np.int32, sharding=replicated(mesh)),
        )
        self._path = str(images.filename)
        self._file = open(self._path, "rb")  # noqa: SIM115 - a cache may be deleted at any time
        self._chunk: jax.Array | None = None
        self._taken = steps  # of the chunk at hand
        self._next_step = self._step  # of the chunk to read next
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="read-batches")
        self._next = self._read_ahead(None)

    def take(self, count: int, after: Any = None) -> tuple[jax.Array, np.ndarray, int, np.ndarray | None]:
        """See `Batches`."""
        (steps,) = self.shapes[1].shape
        if self._chunk is None or self._taken == steps:
            self._chunk = None  # before the next comes: two at a time
            self._chunk = self._next.result()
            self._taken = 0
            self._next = self._read_ahead(after)
        count = min(count, steps - self._taken)
        indices = np.minimum(self._taken + np.arange(steps, dtype=np.int32), steps - 1)
        labels = None if self._classes is None else self._classes[self._indices(self._step, steps)]
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
        indices = self._indices(first_step, chunk.shape[0])
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
                if os.preadv(self._file.fileno(), [row.data], int(index) * row.nbytes) < row.nbytes:
                    raise UserError(f"{self._path}: ends too early; delete it, and run the same command again")
        return images


def open_batches(
    images: np.memmap,
    *,
    device_budget_mb: int,
    batch_size: int,
    seed: int,
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
      seed: of the order.
      first_step: where the training goes on.
      mesh: the devices.
      classes: int32, (M,), of each image; None where classes do not matter.
      balanced: whether each batch draws the classes equally, see `balanced_indices`.
    """
    several_processes = len({device.process_index for device in mesh.devices.flat}) > 1
    resident = images.nbytes <= device_budget_mb * 2**20 and not several_processes
    kind = ResidentBatches if resident else StreamedBatches
    options: dict[str, Any] = {"seed": seed, "first_step": first_step, "classes": classes, "balanced": balanced}
    return kind(images, batch_size=batch_size, mesh=mesh, **options)
