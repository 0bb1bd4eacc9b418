"""The guard finds altered copies without the images, rejects few others, and is kept in a file."""

import numpy as np
import pytest

from benchmarks.sensitivity import altered_copies
from medgan_jax.data.phantom import phantom_image
from medgan_jax.errors import UserError
from medgan_jax.metrics.distribution.guard import GUARD, Guard

KEY = 2**64 - 1


@pytest.fixture(scope="module")
def images():
    """uint8, (80, 32, 32, 3): 16 to train on, 32 held out, 32 others."""
    return np.stack([phantom_image(i, seed=3, image_size=32) for i in range(80)])


@pytest.fixture(scope="module")
def guard(images):
    return Guard.calibrated(images[:16], np.arange(16), images[16:48], key=KEY)


@pytest.mark.slow
def test_altered_copies_are_found_and_unseen_images_pass(guard, images):
    assert guard.copies(images[:16]).all()
    assert guard.copies(altered_copies(images[:16], 0)).sum() >= 15
    assert guard.copies(images[48:]).sum() <= 3


@pytest.mark.slow
def test_a_file_holds_all_it_needs_and_no_image(guard, images, tmp_path):
    guard.save(tmp_path / GUARD)
    fakes = np.concatenate([altered_copies(images[:5], 0), images[60:65]])
    loaded = Guard.load(tmp_path / GUARD)
    np.testing.assert_array_equal(loaded.copies(fakes), guard.copies(fakes))
    np.testing.assert_array_equal(loaded.nearest(fakes).distance, guard.nearest(fakes).distance)
    assert (tmp_path / GUARD).stat().st_size < 16 * 1400 + 4000  # 1,344 bytes an image, and the features' scale
    (tmp_path / GUARD).write_bytes((tmp_path / GUARD).read_bytes()[:-100])
    with pytest.raises(UserError, match=r"guard\.npz: is damaged; .*--noguard"):
        Guard.load(tmp_path / GUARD)


@pytest.mark.slow
def test_guards_of_two_keys_share_no_hash(guard, images):
    """Else two hospitals' guards would tell which patients both have."""
    other = Guard.calibrated(images[:4], np.arange(4), images[16:32], key=KEY - 1)
    same = np.unpackbits(guard.arrays["pixels"][:4]) == np.unpackbits(other.arrays["pixels"])
    assert same.mean() == pytest.approx(0.5, abs=0.1)


@pytest.mark.slow
def test_without_held_out_images_the_training_images_of_other_groups_stand_for_them(images):
    """One is there twice, and that is no reason to let copies pass."""
    training = np.concatenate([images[:12], images[:1]])
    guard = Guard.calibrated(training, np.arange(13), images[:0], key=0)
    assert len(guard.arrays["unseen"]) == 13
    assert guard.copies(altered_copies(images[:12], 0)).sum() >= 10
    of_one_group = Guard.calibrated(training, np.zeros(13, int), images[:0], key=0)
    np.testing.assert_array_equal(of_one_group.copies(np.stack([images[5], 255 - images[5]])), [True, False])
