"""Movies are read back by Pillow and FFmpeg: every frame, its colours, its time; whole or not at all."""

import resource
import weakref

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange
from PIL import Image

from medgan_jax.errors import UserError
from medgan_jax.movie import SUFFIXES, check_movie_path, write_movie

SKIN = ((233, 196, 178), (201, 152, 131), (94, 45, 33), (0, 0, 0), (255, 255, 255))


def flat(colour, height=33, width=47):
    return np.broadcast_to(np.uint8(colour), (height, width, len(colour))).copy()


def noise(number, *, size=64):
    return np.random.default_rng(0).integers(0, 256, (number, size, size, 3), np.uint8)


def read(path):
    """uint8 (N, H, W, 3), and the milliseconds of each frame."""
    if path.suffix == ".mp4":
        with av.open(str(path)) as container:
            frames = [
                frame.reformat(format="rgb24", src_colorspace="itu709").to_ndarray() for frame in container.decode()
            ]
            return np.stack(frames), [1000 / float(container.streams.video[0].average_rate)] * len(frames)
    frames, times = [], []
    with Image.open(path) as image:
        assert image.info["loop"] == 0  # for ever
        for index in range(image.n_frames):
            image.seek(index)
            frames.append(np.asarray(image.convert("RGB")))
            times.append(image.info["duration"])
    return np.stack(frames), times


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_frames_come_back_in_order_with_their_colours_and_time(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write_movie(path, map(flat, SKIN), frames_per_second=2.5)
    frames, times = read(path)
    assert len(frames) == len(SKIN)
    assert times == [400] * len(SKIN)
    assert frames.shape[1:] == ((34, 48, 3) if suffix == ".mp4" else (33, 47, 3))
    for frame, colour in zip(frames, SKIN, strict=True):
        # 8-bit YCbCr of limited range has steps of more than one level, and WebP quantises them.
        np.testing.assert_allclose(frame, np.broadcast_to(colour, frame.shape), atol=0 if suffix == ".gif" else 5)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(("suffix", "least"), [(".webp", 34), (".gif", 38), (".mp4", 38)])
def test_shades_of_skin_are_not_banded(tmp_path, suffix, least):
    """Of a soft gradient with fine grain, in decibels. 8 colours in place of 256 would give 30."""
    shades = np.linspace(0, 1, 96)[:, None, None]
    picture = np.float32(SKIN[0]) * shades + np.float32(SKIN[2]) * (1 - shades)
    picture = picture + np.random.default_rng(0).normal(0, 1, (96, 96, 1))
    frames = [picture.clip(0, 255).astype(np.uint8), (255 - picture).clip(0, 255).astype(np.uint8)]
    write_movie(tmp_path / f"a{suffix}", frames, frames_per_second=10)
    for frame, original in zip(read(tmp_path / f"a{suffix}")[0], frames, strict=True):
        assert 10 * np.log10(255**2 / np.mean((frame - original.astype(float)) ** 2)) > least


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_slow_changes_are_followed(tmp_path, suffix):
    grain = np.random.default_rng(0).normal(0, 12, (64, 64, 1))
    shares = np.linspace(0, 1, 20)
    frames = [
        (np.float32(SKIN[0]) * (1 - share) + np.float32(SKIN[2]) * share + grain).clip(0, 255).astype(np.uint8)
        for share in shares
    ]
    write_movie(tmp_path / f"a{suffix}", frames, frames_per_second=10)
    decoded, _ = read(tmp_path / f"a{suffix}")
    errors = np.abs(decoded - np.stack(frames).astype(float)).mean(axis=(1, 2, 3))
    assert errors.max() < 6


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_one_grey_frame_is_a_movie_too(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write_movie(path, [flat((120,))], frames_per_second=10)
    if suffix == ".mp4":
        frames, _ = read(path)
    else:  # no animation
        with Image.open(path) as image:
            frames = np.asarray(image.convert("RGB"))[None]
    assert len(frames) == 1
    np.testing.assert_allclose(frames, np.full_like(frames, 120), atol=2)


def test_mp4_plays_everywhere(tmp_path):
    """8-bit 4:2:0 of even size, its colours said, its index before its pictures."""
    path = tmp_path / "a.mp4"
    write_movie(path, map(flat, SKIN), frames_per_second=10)
    with av.open(str(path)) as container:
        (stream,) = container.streams
        context = stream.codec_context
        assert (context.name, context.pix_fmt, context.width, context.height) == ("h264", "yuv420p", 48, 34)
        assert (context.colorspace, context.color_range) == (1, ColorRange.MPEG)
        assert float(stream.duration * stream.time_base) == pytest.approx(len(SKIN) / 10)
    data = path.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_same_frames_same_bytes(tmp_path, suffix):
    for name in "ab":
        write_movie(tmp_path / f"{name}{suffix}", noise(3, size=32), frames_per_second=10)
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a.avi", r"a\.avi: a movie is a \.webp, \.gif or \.mp4 file"),
        ("folder.gif", "is no file that could be replaced"),
        ("missing/a.gif", "cannot be written .no such file"),
    ],
)
def test_places_that_will_not_do_are_refused_early(tmp_path, name, says):
    (tmp_path / "folder.gif").mkdir()
    check_movie_path(tmp_path / "b.WEBP")
    for refuse in (check_movie_path, lambda path: write_movie(path, noise(2), frames_per_second=10)):
        with pytest.raises(UserError, match=says):
            refuse(tmp_path / name)
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder.gif"]


@pytest.mark.parametrize(
    ("suffix", "frames", "says"),
    [
        (".gif", [], "no pictures"),
        (".webp", [flat(SKIN[0]), flat(SKIN[0], 33, 48)], r"picture 1 has the shape \(33, 48, 3\) and those before"),
        (".mp4", [flat(SKIN[0]), flat((9,))], r"shape \(33, 47, 1\) and those before it \(33, 47, 3\)"),
        (".webp", [np.zeros((4, 17000, 3), np.uint8)] * 2, r"a\.webp: cannot be written .*smaller pictures"),
    ],
)  # fmt: skip
def test_an_unfinished_movie_leaves_what_was_there(tmp_path, suffix, frames, says):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"old")
    with pytest.raises(UserError, match=says):
        write_movie(path, frames, frames_per_second=10)
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [(path.name, b"old")]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_is_one_line(tmp_path, suffix):
    """A limit on the size of files stands in for it: whether reached within a movie, or as it is closed."""
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        for number in (2, 12):
            with pytest.raises(UserError, match=rf"a\{suffix}: cannot be written .*make room"):
                write_movie(path, noise(number), frames_per_second=10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [(path.name, b"old")]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_frames_are_taken_one_by_one(tmp_path, suffix):
    """However long a movie is, its frames are not kept."""
    alive = weakref.WeakSet()

    class Frame(np.ndarray):
        """An array that a set of weak references takes."""

        __hash__ = object.__hash__

    def frames():
        for value in range(60):
            frame = np.full((16, 16, 3), value, np.uint8).view(Frame)
            alive.add(frame)
            yield frame
            del frame
            assert len(alive) <= 2, value  # the first is kept for its shape

    write_movie(tmp_path / f"a{suffix}", frames(), frames_per_second=10)
