"""The player's frames are few bytes and not spoilt; a movie's are of one shape."""

import base64
import io
import os

import numpy as np
import pytest
from PIL import Image

from medgan_jax.images import image_grid, write_png
from medgan_jax.report import frames
from medgan_jax.report.record import read_record


def decoded(uri):
    return base64.b64decode(uri.partition(",")[2])


def test_small_frames_are_exact_and_made_again_when_the_picture_changes(make):
    files = make()
    plan = frames.layout(5, 16)
    first, damaged = frames.page_frames(files.pictures(), plan)
    assert damaged == {}
    with Image.open(io.BytesIO(decoded(first[3].uri))) as frame, Image.open(files.picture(300)) as grid:
        np.testing.assert_array_equal(np.asarray(frame.convert("RGB")), np.asarray(grid))
    write_png(files.picture(200), np.zeros((38, 38, 3), np.uint8))
    os.utime(files.picture(200), ns=(1, 1))
    again, _ = frames.page_frames(files.pictures(), plan)
    assert [a.uri is b.uri for a, b in zip(first, again, strict=True)] == [True, True, False, True, True]


def test_200_frames_are_under_20_mb_and_no_mush():
    for size in (32, 64, 128, 256, 512):
        plan = frames.layout(200, size)
        assert 200 * plan.max_bytes * 4 / 3 < 18.5e6
        images = min(8, plan.images)
        assert images >= 4
        assert images * size // plan.shrink + 2 * images <= plan.side <= 540
        assert size // plan.shrink >= min(size, 64)
        assert frames.layout(50, size).side > frames.layout(51, size).side


@pytest.mark.parametrize(("size", "number", "side"), [(64, 64, 530), (256, 20, 517)])
def test_a_noisy_frame_is_within_its_bytes_at_full_size(tmp_path, size, number, side):
    random = np.random.default_rng(0)
    wave = np.cos(np.linspace(-3, 3, size))
    lesion = 100 + 80 * wave[:, None, None] * wave[None, :, None]
    images = lesion + random.uniform(-40, 40, (number, 1, 1, 3)) + random.normal(0, 12, (number, size, size, 3))
    write_png(tmp_path / "grid.png", image_grid(images.clip(0, 255).astype(np.uint8)))
    plan = frames.layout(200, size)
    data = decoded(frames.encode_file(tmp_path / "grid.png", plan))
    assert len(data) <= plan.max_bytes
    with Image.open(io.BytesIO(data)) as frame, Image.open(tmp_path / "grid.png") as grid:
        assert frame.size == (side, side)
        kept = plan.images * (size + 2) + 2 if size > 64 else 530
        shown = np.asarray(frame.convert("L"), float)
        whole = np.asarray(grid.convert("L").crop((0, 0, kept, kept)).resize(frame.size, Image.Resampling.BOX), float)
    assert np.abs(shown - whole).mean() < 8  # grey levels; the noise alone is 9 before it is averaged


def test_even_pure_noise_is_within_its_bytes(tmp_path):
    write_png(tmp_path / "noise.png", np.random.default_rng(0).integers(0, 256, (530, 530, 3), np.uint8))
    plan = frames.layout(200, 64)
    assert 0 < len(decoded(frames.encode_file(tmp_path / "noise.png", plan))) <= plan.max_bytes


def test_thinning_is_even_keeps_the_last_and_never_takes_back():
    before = set()
    for number in range(1, 900):
        steps = list(range(0, 10 * number, 10))
        kept = frames.thinned(steps)
        assert kept[-1] == steps[-1]
        assert len(set(np.diff(kept[:-1]).tolist())) <= 1
        if number > 200:
            assert 100 <= len(kept) <= 200
            assert set(kept) - {steps[-1], steps[-2]} <= before | set(steps[-3:])
        else:
            assert kept == steps
        before = set(kept)


def test_a_movie_has_frames_of_one_shape(make):
    files = make()
    files.picture(100).write_bytes(b"")
    write_png(files.picture(200), np.zeros((20, 20, 3), np.uint8))  # num_sample_images was another
    pictures = list(frames.movie_frames(read_record(files).pictures))
    assert [picture.shape for picture in pictures] == [(38, 38, 3)] * 3
    with Image.open(files.picture(400)) as last:
        np.testing.assert_array_equal(pictures[-1], np.asarray(last))
