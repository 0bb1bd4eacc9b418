"""Paths that users give, what systems leave in folders, writing files whole, and locks."""

import contextlib
import fcntl
import logging
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from medgan_jax.errors import UserError, naming, reason_of

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # pathlib makes gs:/bucket of gs://bucket
# What systems leave in folders, in lower case.
LITTER = frozenset(
    {".ds_store", "thumbs.db", "desktop.ini", "__macosx", "lost+found", "@eadir", "$recycle.bin", "icon\r"}
)


def is_local(path: str) -> bool:
    """Whether it can be a path here: no address such as gs://bucket, and without the character 0."""
    return not _ADDRESS.match(path) and "\0" not in path


def expanded(path: str) -> str:
    """A path in which ~ and $VARIABLE are what they are to a shell; variables that are not set stay."""
    return os.path.expanduser(os.path.expandvars(path))


def local_path(name: str, given: str | os.PathLike[str]) -> Path:
    """The path that a user gave as `name`, a flag or field, `expanded`.

    Raises:
      UserError: it is not on this machine, such as gs://bucket, or begins with the home of nobody.
    """
    path = expanded(os.fspath(given))
    if not is_local(path):
        raise UserError(f"{name}={given}: is no path on this machine; copy the files here or mount them, and give that")
    if path.startswith("~"):
        raise UserError(f"{name}={given}: there is no such home folder (HOME is not set?); give the whole path")
    return Path(path)


def is_litter(name: str) -> bool:
    """Whether a file or folder is by its name hidden, or left by a system and not by a person: it counts as nothing."""
    return name.startswith(".") or name.lower() in LITTER


def lock(file: IO, busy: str) -> None:
    """Locks an open file until it is closed. Where there are no locks, a notice says so.

    Raises:
      UserError: another process has locked it; `busy` is the message.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(busy) from None
    except OSError as error:  # NFS without a lock daemon, Lustre without -o flock
        logging.getLogger(__name__).warning(
            "%s: this disk has no file locks (%s); see to it that no other run writes there",
            Path(file.name).parent, reason_of(error),
        )  # fmt: skip


def replace_file(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file whole, or not at all.

    Raises:
      OSError: the file cannot be written; what stood at `path` is as it was.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary name beside `path` to write to, and renames it at the end: no reader ever sees half of it.

    Raises:
      OSError: the file cannot be written; what stood at `path` is as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with naming(path):
            yield temporary
            os.replace(temporary, path)
    except OSError as error:
        if error.filename != str(temporary):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # the name that the user knows
    finally:
        temporary.unlink(missing_ok=True)
