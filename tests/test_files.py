"""Paths that users give, litter, and locks."""

import errno
import fcntl
from pathlib import Path

import pytest

from medgan_jax.errors import UserError
from medgan_jax.files import is_litter, local_path, lock


@pytest.mark.parametrize(
    ("given", "path"),
    [("~/runs", "/home/me/runs"), ("$SCRATCH/a", "/scratch/a"), ("${SCRATCH}/a", "/scratch/a"), ("a$b", "a$b")],
)
def test_home_and_variables_are_what_they_are_to_a_shell(monkeypatch, given, path):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch")
    monkeypatch.delenv("b", raising=False)
    assert local_path("--out", given) == Path(path)


@pytest.mark.parametrize("name", ["run [1]", "a*?", "back\\slash", " ", "a\nb", "-x", "größe", "C:/x", "a/b://c", "gs"])
def test_other_characters_are_part_of_the_name(name):
    assert local_path("--out", name) == Path(name)


@pytest.mark.parametrize("given", ["gs://b/x", "s3://b", "https://x.org/a.zip", "file:///data", "hdfs:/x", "a\0b"])
def test_a_path_that_is_elsewhere_is_refused(given):
    with pytest.raises(UserError, match=r"^--out=.*: is no path on this machine"):
        local_path("--out", given)
    with pytest.raises(UserError, match="no path on this machine"):
        local_path("--out", Path(given))


def test_a_home_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="--out=~nobody-of-this-name/x: there is no such home folder"):
        local_path("--out", "~nobody-of-this-name/x")


def test_litter_is_told_from_files_of_a_person():
    assert all(map(is_litter, (".DS_Store", "._1.png", ".ipynb_checkpoints", "Thumbs.db", "Desktop.ini", "__MACOSX")))
    assert not any(map(is_litter, ("000000.png", "notes.txt", "thumbs", "MACOSX")))


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_disk_without_locks_is_a_notice(tmp_path, monkeypatch, caplog, number):
    def fail(*arguments):
        raise OSError(number, "none")

    monkeypatch.setattr(fcntl, "flock", fail)
    with open(tmp_path / "lock", "w") as file:
        lock(file, "busy")
    (notice,) = caplog.messages
    assert notice.startswith(f"{tmp_path}: this disk has no file locks (none)")


def test_a_lock_is_held_until_the_file_is_closed(tmp_path):
    with open(tmp_path / "lock", "w") as first, open(tmp_path / "lock", "a") as second:
        lock(first, "busy")
        with pytest.raises(UserError, match="^busy$"):
            lock(second, "busy")
        first.close()
        lock(second, "busy")
