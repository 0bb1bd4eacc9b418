"""The order of images is a function of seed and step; a config leads to images; batches reach the devices."""

import contextlib
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from medgan_jax.data.batches import (
    ResidentBatches,
    StreamedBatches,
    balanced_indices,
    batch_indices,
    epoch_permutation,
    load_dataset,
    open_batches,
)
from medgan_jax.data.phantom import phantom_image
from medgan_jax.errors import UserError
from medgan_jax.sharding import data_mesh

KINDS = pytest.mark.parametrize("kind", [ResidentBatches, StreamedBatches])
CLASSES = np.array([0] * 17 + [1] * 3 + [2] * 5, np.int32)[np.random.default_rng(0).permutation(25)]


def test_an_epoch_visits_every_image_once_in_an_order_of_its_seed_number_and_class():
    of_class = [None, 0, 1]
    orders = [epoch_permutation(50, seed=s, epoch=e, of_class=c) for s in range(3) for e in range(3) for c in of_class]
    assert len({tuple(order) for order in orders}) == 27
    assert all(order.dtype == np.int32 and sorted(order) == list(range(50)) for order in orders)


def test_the_order_never_changes():
    """A training resumed under a newer version must see the order it began with."""
    assert epoch_permutation(8, seed=0, epoch=0).tolist() == [2, 4, 3, 6, 5, 0, 1, 7]
    assert epoch_permutation(8, seed=1, epoch=2).tolist() == [6, 0, 7, 5, 1, 4, 3, 2]
    assert epoch_permutation(8, seed=0, epoch=0, of_class=0).tolist() == [4, 1, 5, 3, 6, 7, 2, 0]
    assert epoch_permutation(8, seed=1, epoch=2, of_class=1).tolist() == [5, 7, 2, 4, 3, 6, 0, 1]


def test_batches_follow_the_epochs_and_drop_the_rest():
    indices = batch_indices(0, 7, num_images=11, batch_size=3, seed=9)
    assert indices.dtype == np.int32 and indices.shape == (7, 3)
    for epoch, steps in [(0, indices[:3]), (1, indices[3:6]), (2, indices[6:])]:
        np.testing.assert_array_equal(steps.ravel(), epoch_permutation(11, seed=9, epoch=epoch)[: steps.size])


def test_batches_do_not_depend_on_where_one_starts():
    for order, what in [(batch_indices, {"num_images": 10}), (balanced_indices, {"classes": CLASSES})]:
        whole = order(0, 40, batch_size=4, seed=1, **what)
        for first, number in [(1, 1), (13, 20), (39, 1), (5, 0)]:
            np.testing.assert_array_equal(
                order(first, number, batch_size=4, seed=1, **what), whole[first : first + number]
            )


def test_a_batch_larger_than_the_data_set_is_refused():
    with pytest.raises(UserError, match="batch_size=5 is more than the 4 images"):
        batch_indices(0, 3, num_images=4, batch_size=5, seed=0)


@pytest.mark.parametrize("batch_size", [2, 25])
def test_classes_are_drawn_equally(batch_size):
    """In each batch, and in any number of batches from the first on, to within one image."""
    indices = balanced_indices(0, 60, classes=CLASSES, batch_size=batch_size, seed=1)
    assert indices.dtype == np.int32 and indices.shape == (60, batch_size)
    drawn = np.stack([np.bincount(CLASSES[batch], minlength=3) for batch in indices])
    assert np.ptp(drawn, axis=1).max() <= 1
    assert np.ptp(drawn.cumsum(axis=0), axis=1).max() <= 1


def test_each_image_is_seen_once_before_any_of_its_class_is_seen_again():
    indices = balanced_indices(0, 100, classes=CLASSES, batch_size=8, seed=1).ravel()
    for number in range(3):
        of_class = np.flatnonzero(np.equal(CLASSES, number))
        drawn = indices[CLASSES[indices] == number]
        passes = drawn[: len(drawn) // len(of_class) * len(of_class)].reshape(-1, len(of_class))
        assert len(passes) > 10
        np.testing.assert_array_equal(np.sort(passes, axis=1), np.broadcast_to(of_class, passes.shape))
        assert len({tuple(each) for each in passes}) > 5  # orders; three images have but six
    other = balanced_indices(0, 100, classes=CLASSES, batch_size=8, seed=2).ravel()
    assert (other != indices).mean() > 0.5


def test_load_dataset(tiny_config, tmp_path):
    fields = {"data_num_phantoms": 10, "data_cache_dir": str(tmp_path)}
    cached, held_out = load_dataset(tiny_config(**fields).data, image_size=16, channels=3, progress=False)
    assert held_out is None
    assert cached.images.shape == (10, 16, 16, 3) and len(cached.labels) == 10
    np.testing.assert_array_equal(cached.images[2], phantom_image(2, seed=0, image_size=16))

    data = tiny_config(data_holdout_fraction=0.3, **fields).data
    training, held_out = load_dataset(data, image_size=16, channels=3, progress=False)
    assert sorted(training.names + held_out.names) == list(cached.names)
    assert len(held_out.images) in (2, 3, 4)
    np.testing.assert_array_equal(held_out.images[0], cached.images[cached.names.index(held_out.names[0])])


def test_images_without_classes_are_refused_before_they_are_decoded(tiny_config, tmp_path):
    data = tiny_config(data_class_filter="benign", data_cache_dir=str(tmp_path / "cache")).data
    with pytest.raises(UserError, match="images of the phantoms are 'benign'"):
        load_dataset(data, image_size=16, channels=3, conditional=True)
    assert not (tmp_path / "cache").exists()


@pytest.fixture
def images(tmp_path):
    """A file of 22 random images, mapped as the cache maps it."""
    path = tmp_path / "images.uint8"
    np.random.default_rng(0).integers(0, 256, (22, 8, 8, 3), np.uint8).tofile(path)
    return np.memmap(path, np.uint8, "r", shape=(22, 8, 8, 3))


ORDER = {"batch_size": 4, "seed": 3}


def opened(kind, images, *, steps_in_chunk=256, first_step=0, **options):
    """Batches that are closed at the end of a with block."""
    if kind is StreamedBatches:
        options["chunk_bytes"] = steps_in_chunk * images[:4].nbytes + 1
    return contextlib.closing(kind(images, first_step=first_step, mesh=data_mesh(), **ORDER, **options))


@KINDS
@pytest.mark.parametrize("steps_in_chunk", [3, 256])
def test_batches_are_the_same_either_way(images, kind, steps_in_chunk):
    """Over three epochs, in takes of many sizes, from an odd step."""
    seen = []
    with opened(kind, images, steps_in_chunk=steps_in_chunk, first_step=7) as batches:
        for wanted in [1, 2, 300, 5, *[1] * 12]:
            pixels, indices, count, labels = batches.take(wanted)
            assert labels is None and batches.labels is None and 1 <= count <= wanted
            assert [(x.shape, x.dtype) for x in (pixels, indices)] == [(s.shape, s.dtype) for s in batches.shapes]
            assert pixels.sharding == batches.shapes[0].sharding
            seen.extend(np.asarray(pixels)[indices[:count]][:16])
    np.testing.assert_array_equal(seen[:16], images[batch_indices(7, 16, num_images=22, **ORDER)])


@KINDS
@pytest.mark.parametrize("balanced", [False, True])
def test_labels_belong_to_their_images(images, kind, balanced):
    """In takes that chunks of five steps cut short, from an odd step on."""
    classes = np.random.default_rng(1).integers(0, 3, len(images), np.int32)
    if balanced:
        expected = balanced_indices(7, 20, classes=classes, **ORDER)
    else:
        expected = batch_indices(7, 20, num_images=22, **ORDER)
    done = 0
    with opened(kind, images, steps_in_chunk=5, first_step=7, classes=classes, balanced=balanced) as batches:
        while done < 20:
            pixels, indices, count, labels = batches.take(min(3, 20 - done))
            assert (labels.shape, labels.dtype) == (batches.labels.shape, batches.labels.dtype)
            now = expected[done : done + count]
            np.testing.assert_array_equal(np.asarray(pixels)[indices[:count]], images[now])
            np.testing.assert_array_equal(labels[:count], classes[now])
            done += count


def test_the_budget_decides(images):
    kinds = []
    for nbytes, budget in [(22, 0), (2 * 2**20, 2), (2 * 2**20 + 1, 2)]:
        mapped = np.memmap(images.filename, np.uint8, "w+", shape=(nbytes, 1, 1, 1))
        batches = open_batches(mapped, device_budget_mb=budget, first_step=0, mesh=data_mesh(), **ORDER)
        kinds.append(type(batches))
        batches.close()
    assert kinds == [StreamedBatches, ResidentBatches, StreamedBatches]


def test_two_chunks_at_a_time(images):
    """A chunk is not sent before the call on the one before the last is over."""

    class Results:
        def block_until_ready(self):
            waited.append(over.wait(60))

    over, waited = threading.Event(), []
    with opened(StreamedBatches, images, steps_in_chunk=1) as batches:
        batches.take(1)
        batches.take(1, after=Results())
        assert waited == []
        over.set()
        batches.take(1)
        assert waited == [True]


def test_a_broken_cache_reaches_the_user_and_ends_the_thread(images):
    before = threading.active_count()
    os.truncate(images.filename, 100)
    with (
        opened(StreamedBatches, images) as batches,
        pytest.raises(UserError, match=r"images.uint8: ends too early"),
    ):
        batches.take(1)
    assert threading.active_count() == before


def test_streamed_images_are_read_and_not_mapped(images):
    """Mapped pages would count as this process's memory."""

    def mapped_kb():
        lines = Path("/proc/self/smaps").read_text().split("\n")
        at = next(number for number, line in enumerate(lines) if line.endswith(str(images.filename)))
        return next(int(line.split()[1]) for line in lines[at:] if line.startswith("Rss:"))

    with opened(StreamedBatches, images) as batches:
        batches.take(256)
        assert mapped_kb() == 0
    images.sum()
    assert mapped_kb() > 0
