"""The cache: decoded once, keyed by content, safe against crashes, parallel runs, damage and bad images."""

import contextlib
import dataclasses
import io
import json
import os
import pwd
import resource
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medgan_jax.data.cache import load_cached
from medgan_jax.data.sources import FileSource
from medgan_jax.errors import UserError

SIZE = 8


def png(value):
    buffer = io.BytesIO()
    Image.new("RGB", (12, 9), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@dataclasses.dataclass(frozen=True)
class CountingSource(FileSource):
    """Keeps the numbers of the images that it decoded; `hook` is called with each before."""

    reads: list = dataclasses.field(default_factory=list)
    hook: object = None

    def read(self, index, image_size, channels):
        """Counts, and reads."""
        self.reads.append(index)
        if self.hook:
            self.hook(index)
        return super().read(index, image_size, channels)


@pytest.fixture
def source(tmp_path):
    """Six images of the colours 0 to 5, three of each class."""
    folder = tmp_path / "images"
    folder.mkdir()
    names = tuple(f"{value}.png" for value in range(6))
    for value, name in enumerate(names):
        (folder / name).write_bytes(png(value))
    return CountingSource(str(folder), names, ("benign", "malignant") * 3)


@pytest.fixture
def load(tmp_path):
    def load_it(source, **options):
        options = {"image_size": SIZE, "channels": 3, "cache_dir": tmp_path / "cache", "progress": False, **options}
        return load_cached(source, **options)

    return load_it


@contextlib.contextmanager
def files_at_most(size):
    """Makes larger files fail as on a full disk; not a fixture, for pytest's own output may be such a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def colours(cached):
    return cached.images[:, 0, 0, 0].tolist()


def test_images_are_decoded_once(source, load):
    first = load(source)
    assert first.images.shape == (6, SIZE, SIZE, 3) and first.images.dtype == np.uint8
    assert isinstance(first.images, np.memmap) and not first.images.flags.writeable
    assert colours(first) == [0, 1, 2, 3, 4, 5]
    assert (first.names, first.labels) == (source.names, source.labels)
    assert load(source).digest == first.digest
    assert len(source.reads) == 6


def test_size_and_channels_have_caches_of_their_own(source, load):
    for _ in range(2):
        digests = {load(source).digest, load(source, image_size=4).digest, load(source, channels=1).digest}
        assert len(digests) == 3
        assert len(source.reads) == 3 * 6


def test_what_changes_pixels_has_a_cache_of_its_own_and_defaults_that_of_older_versions(source, load):
    digest = load(source).digest
    changed = [{"fit": "pad"}, {"fit": "stretch"}, {"window": (0.0, 200.0)}, {"window": (0.0, 100.0)}]
    changed += [{"bits": (12,) * 6}, {"bits": (10,) + (16,) * 5}]
    digests = {load(dataclasses.replace(source, **fields)).digest for fields in changed}
    assert len(digests) == len(changed) and digest not in digests
    for same in ({"window": "full"}, {"left_out": "3 .txt"}):
        assert load(dataclasses.replace(source, **same)).digest == digest
    assert len(source.reads) == 6 * (1 + len(changed))


def test_the_digest_identifies_pixels_order_and_labels(source, load):
    digest = load(source).digest
    assert load(source.select([5, 4, 3, 2, 1, 0])).digest != digest
    assert load(source.select(range(5))).digest != digest
    reads = len(source.reads)
    assert load(dataclasses.replace(source, labels=source.labels[::-1])).digest != digest
    assert load(dataclasses.replace(source, labels=None)).digest != digest
    assert len(source.reads) == reads  # labels are no pixels
    Path(source.root, "2.png").write_bytes(png(99))
    changed = load(source)
    assert changed.digest != digest and colours(changed) == [0, 1, 99, 3, 4, 5]


def test_a_folder_that_moved_finds_its_cache(source, load, tmp_path):
    digest = load(source).digest
    os.rename(source.root, tmp_path / "elsewhere")
    assert load(dataclasses.replace(source, root=str(tmp_path / "elsewhere"))).digest == digest
    assert len(source.reads) == 6


@pytest.mark.slow
def test_unchanged_files_are_not_read_again(source, load, tmp_path):
    digest = load(source).digest
    (memo_path,) = (tmp_path / "cache").glob("files-*.json")
    assert json.loads(memo_path.read_text()) == {}  # the files are too young to be trusted
    time.sleep(2.1)
    load(source)
    memo = json.loads(memo_path.read_text())
    for entry in memo.values():
        entry[1] = "another digest"
    memo_path.write_text(json.dumps(memo))
    remembered = load(source).digest
    assert remembered != digest  # no file was read to see that this is wrong

    path = os.path.join(source.root, "3.png")
    status = os.stat(path)
    with open(path, "r+b") as file:
        file.write(png(7)[: status.st_size])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # size and time as before: only ctime tells
    assert load(source).digest != remembered


def test_a_damaged_memo_is_ignored(source, load, tmp_path):
    digest = load(source).digest
    (path,) = (tmp_path / "cache").glob("files-*.json")
    for memo in (b"", b"[1, 2]", b"\xff"):
        path.write_bytes(memo)
        assert load(source).digest == digest


def test_bad_images_are_all_named(source, load):
    for name, data in {"1.png": b"", "2.png": b"no image", "4.png": png(4)[:50]}.items():
        Path(source.root, name).write_bytes(data)
    os.unlink(os.path.join(source.root, "5.png"))
    message = (
        f"4 of 6 images in {source.root} cannot be read: "
        "1.png (empty file), 2.png (not an image), 4.png (truncated), 5.png (no such file or directory); "
        "mend or remove them, or set data.on_bad_image=skip"
    )
    for _ in range(2):
        with pytest.raises(UserError) as raised:
            load(source)
        assert str(raised.value) == message
    for value in range(6):  # mended
        Path(source.root, f"{value}.png").write_bytes(png(value))
    assert colours(load(source)) == [0, 1, 2, 3, 4, 5]


def test_bad_images_may_be_skipped(source, load, caplog):
    for name in ("1.png", "4.png"):
        os.truncate(os.path.join(source.root, name), 0)
    for _ in range(2):  # decoded, then found
        caplog.clear()
        kept = load(source, on_bad_image="skip")
        assert "2 of 6 images" in caplog.text and "1.png, 4.png (empty file)" in caplog.text
        assert colours(kept) == [0, 2, 3, 5]
        assert kept.names == ("0.png", "2.png", "3.png", "5.png")
        assert kept.labels == ("benign", "benign", "malignant", "malignant")
    assert len(source.reads) == 6
    with pytest.raises(UserError, match="2 of 6"):  # what skip left is not for refuse
        load(source)
    assert load(source.select([0, 2, 3, 5])).digest == kept.digest
    with pytest.raises(UserError, match="2 of 2 images .* give other images"):
        load(source.select([1, 4]), on_bad_image="skip")


def test_a_crash_leaves_nothing_that_looks_usable(source, load, tmp_path):
    def crash(index):
        if index == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(dataclasses.replace(source, hook=crash))
    assert [path.name for path in (tmp_path / "cache").iterdir() if not path.name.startswith("files-")] == []
    assert colours(load(source)) == [0, 1, 2, 3, 4, 5]


def test_what_killed_processes_left_is_removed_in_time(source, load, tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    for name, age in {"old.tmp": 2 * 24 * 3600, "in_use.tmp": 60}.items():
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (time.time() - age,) * 2)
    load(source)
    assert [path.name for path in folder.glob("*.tmp")] == ["in_use.tmp"]


def test_two_runs_at_once_agree(source, load, tmp_path):
    second = []

    def start_second(index):
        if index == 2:
            second.append(load(source))

    first = load(dataclasses.replace(source, hook=start_second))
    assert len(source.reads) == 12  # the second began while the first had written nothing yet
    assert first.digest == second[0].digest
    assert colours(first) == colours(second[0]) == [0, 1, 2, 3, 4, 5]
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_a_damaged_cache_is_made_again(source, load, tmp_path):
    load(source)
    (pixels,) = (tmp_path / "cache").glob("*.uint8")
    index = pixels.with_suffix(".json")
    for number, damage in enumerate(
        [lambda: os.truncate(pixels, 100), pixels.unlink, index.unlink, lambda: index.write_text('{"bad": ')], 2
    ):
        damage()
        assert colours(load(source)) == [0, 1, 2, 3, 4, 5]
        assert len(source.reads) == number * 6


def test_a_cache_that_cannot_be_written_is_the_users_problem_and_leaves_nothing(source, load, tmp_path):
    message = r"^data.cache_dir=\S+cache: cannot write .* \(File too large\); make room"
    with pytest.raises(UserError, match=message), files_at_most(500):
        load(source)
    assert [path for path in (tmp_path / "cache").iterdir() if path.suffix in (".tmp", ".uint8")] == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data.cache_dir=\S+file: .* set data.cache_dir=FOLDER$"):
        load(source, cache_dir=tmp_path / "file")


def test_without_a_home_a_cache_folder_must_be_given(source, load, tmp_path, monkeypatch):
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)  # a container with a bare user number
    with pytest.raises(UserError, match="no home folder to keep decoded images in; set data.cache_dir=FOLDER"):
        load(source, cache_dir="")
    assert colours(load(source)) == [0, 1, 2, 3, 4, 5]


def test_by_default_the_cache_is_in_the_users_cache_folder(source, load, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    load(source, cache_dir="")
    assert list((tmp_path / "xdg" / "medgan_jax").glob("*.uint8"))
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    load(source, cache_dir="")
    assert list((tmp_path / "home" / ".cache" / "medgan_jax").glob("*.uint8"))


def test_pillow_stays_quiet(source, load):
    palette = Image.new("P", (12, 9))
    palette.putpalette(bytes(range(256)) * 3)
    path = os.path.join(source.root, "0.png")
    palette.save(path, transparency=bytes(range(256)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Image.open(path).convert("RGB")
        assert caught  # Pillow does warn
        caught.clear()
        load(source)
    assert not caught


def test_progress_is_shown_on_stderr(source, load, capsys):
    load(source, progress=True)
    shown = capsys.readouterr()
    assert "decoding images: 100%" in shown.err and shown.out == ""
