"""The data order is a pure function of seed and step; a config leads to images."""

import numpy as np
import pytest

from medgan_jax.data.phantom import phantom_image
from medgan_jax.data.pipeline import batch_indices, epoch_permutation, load_dataset
from medgan_jax.errors import UserError


def test_an_epoch_visits_every_image_once():
    order = epoch_permutation(101, seed=3, epoch=5)
    assert order.dtype == np.int32 and order.shape == (101,)
    np.testing.assert_array_equal(np.sort(order), np.arange(101))
    np.testing.assert_array_equal(order, epoch_permutation(101, seed=3, epoch=5))


def test_orders_differ_by_seed_and_epoch():
    orders = {tuple(epoch_permutation(50, seed=seed, epoch=epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_the_order_never_changes():
    """A training resumed under a newer version must see the order it began with."""
    assert epoch_permutation(8, seed=0, epoch=0).tolist() == [2, 4, 3, 6, 5, 0, 1, 7]
    assert epoch_permutation(8, seed=1, epoch=2).tolist() == [6, 0, 7, 5, 1, 4, 3, 2]


def test_every_place_is_as_likely():
    firsts = [epoch_permutation(5, seed=0, epoch=epoch)[0] for epoch in range(1000)]
    assert np.bincount(firsts, minlength=5).min() > 150


def test_batches_follow_the_epochs_and_drop_the_rest():
    indices = batch_indices(0, 7, num_images=11, batch_size=3, seed=9)
    assert indices.dtype == np.int32 and indices.shape == (7, 3)
    for epoch, steps in [(0, indices[:3]), (1, indices[3:6]), (2, indices[6:])]:
        np.testing.assert_array_equal(steps.ravel(), epoch_permutation(11, seed=9, epoch=epoch)[: steps.size])


def test_batches_do_not_depend_on_where_one_starts():
    whole = batch_indices(0, 40, num_images=10, batch_size=4, seed=1)
    for first, number in [(0, 1), (1, 1), (13, 20), (39, 1), (5, 0)]:
        np.testing.assert_array_equal(
            batch_indices(first, number, num_images=10, batch_size=4, seed=1), whole[first : first + number]
        )


def test_a_batch_may_be_the_whole_set_but_not_more():
    indices = batch_indices(0, 3, num_images=4, batch_size=4, seed=0)
    np.testing.assert_array_equal(np.sort(indices, axis=1), [[0, 1, 2, 3]] * 3)
    with pytest.raises(UserError, match="batch_size=5 is more than the 4 images"):
        batch_indices(0, 3, num_images=4, batch_size=5, seed=0)


def test_load_dataset(tiny_config, tmp_path):
    data = tiny_config(data_num_phantoms=3, data_cache_dir=str(tmp_path)).data
    cached = load_dataset(data, image_size=16, channels=3, progress=False)
    assert cached.images.shape == (3, 16, 16, 3) and len(cached.labels) == 3
    np.testing.assert_array_equal(cached.images[2], phantom_image(2, seed=0, image_size=16))
    assert list(tmp_path.glob("*.uint8"))
