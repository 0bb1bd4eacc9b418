"""Images as arrays: resizing, ranges, grids and PNG writing."""

import os
import resource

import jax
import numpy as np
import pytest
from PIL import Image

from medgan_jax import images
from medgan_jax.image_files import decode_image
from medgan_jax.images import resize
from tests.test_image_files import GREY, RGB


def test_resize_crop_takes_the_centre():
    image = np.zeros((10, 30, 3), np.uint8)
    image[:, 10:20] = (1, 2, 3)
    np.testing.assert_array_equal(resize(image, 10), image[:, 10:20])
    np.testing.assert_array_equal(resize(image.swapaxes(0, 1), 10), image[:, 10:20])
    np.testing.assert_array_equal(resize(image[:, :, :1], 10), image[:, 10:20, :1])
    once = resize(RGB, 12)  # as a resize and then a crop
    twice = np.asarray(Image.fromarray(RGB).resize((20, 12), Image.Resampling.BICUBIC))[:, 4:16]
    assert np.abs(once.astype(int) - twice).max() <= 1


def test_resize_pads_and_stretches():
    image = np.full((10, 30, 3), 77, np.uint8)
    expected = np.zeros((12, 12, 3), np.uint8)
    expected[4:8] = 77
    np.testing.assert_array_equal(resize(image, 12, fit="pad"), expected)
    np.testing.assert_array_equal(resize(image.swapaxes(0, 1), 12, fit="pad"), expected.swapaxes(0, 1))
    assert resize(np.full((1, 1000, 1), 9, np.uint8), 16, fit="pad").sum() == 16 * 9
    squeezed = np.asarray(Image.fromarray(RGB).resize((12, 12), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(resize(RGB, 12, fit="stretch"), squeezed)


def test_resize_crop_keeps_a_plain_colour_at_any_size_and_antialiases():
    for shape in [(7, 9, 1), (100, 31, 3), (1, 5, 3)]:
        resized = resize(np.full(shape, 77, np.uint8), 16)
        assert resized.shape == (16, 16, shape[2]) and resized.dtype == np.uint8
        assert (resized == 77).all()
    checks = ((np.indices((128, 128)).sum(0) % 2) * 255).astype(np.uint8)[:, :, None]
    assert np.abs(resize(checks, 16)[2:-2, 2:-2].astype(int) - 127).max() <= 2


def test_every_grey_level_survives_the_round_trips():
    for levels in (np.arange(256, dtype=np.uint8), jax.numpy.arange(256, dtype=np.uint8)):
        for floats in (images.uint8_to_signed(levels), images.unit_to_signed(images.uint8_to_unit(levels))):
            returned = images.signed_to_uint8(floats)
            assert floats.dtype == np.float32 and returned.dtype == np.uint8
            np.testing.assert_array_equal(returned, levels)


def test_ranges():
    ends = np.array([0, 255], np.uint8)
    np.testing.assert_array_equal(images.uint8_to_signed(ends), [-1, 1])
    np.testing.assert_array_equal(images.uint8_to_unit(ends), [0, 1])
    np.testing.assert_array_equal(images.unit_to_signed(np.array([0.0, 0.5, 1.0])), [-1, 0, 1])
    clipped = images.signed_to_uint8(np.array([-9.0, -1.0, 0.001, 1.0, 9.0]))
    np.testing.assert_array_equal(clipped, [0, 0, 128, 255, 255])
    assert images.signed_to_uint8(jax.numpy.ones(3, jax.numpy.bfloat16)).tolist() == [255] * 3


def test_image_grid():
    batch = np.arange(1, 6, dtype=np.uint8)[:, None, None, None] * np.ones((5, 2, 3, 1), np.uint8)
    expected = [
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 0, 2, 2, 2, 0, 3, 3, 3, 0],
        [0, 1, 1, 1, 0, 2, 2, 2, 0, 3, 3, 3, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [0, 4, 4, 4, 0, 5, 5, 5, 0, 0, 0, 0, 0],
        [0, 4, 4, 4, 0, 5, 5, 5, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ]
    np.testing.assert_array_equal(images.image_grid(batch, padding=1)[:, :, 0], expected)
    assert images.image_grid(batch, columns=5, padding=0).shape == (2, 15, 1)
    assert images.image_grid(np.zeros((64, 8, 8, 3), np.uint8)).shape == (82, 82, 3)


def test_write_png(tmp_path):
    for image in (RGB, GREY[:, :, None]):
        images.write_png(tmp_path / "a.png", image)
        data = (tmp_path / "a.png").read_bytes()
        np.testing.assert_array_equal(decode_image(data, channels=image.shape[2]), image)
        assert data == images.encode_png(image)  # the same bytes each time
    assert os.listdir(tmp_path) == ["a.png"]


def test_a_failed_write_leaves_what_was_there(tmp_path):
    images.write_png(tmp_path / "a.png", RGB)
    before = (tmp_path / "a.png").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))  # larger files fail as on a full disk
    try:
        for name in ("a.png", "b.png"):
            with pytest.raises(OSError, match="File too large"):
                images.write_png(tmp_path / name, RGB[::-1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == before


def test_writing_into_a_missing_folder_fails(tmp_path):
    with pytest.raises(FileNotFoundError) as raised:
        images.write_png(tmp_path / "missing" / "a.png", RGB)
    assert raised.value.filename == str(tmp_path / "missing" / "a.png")  # and not a name that the user does not know
