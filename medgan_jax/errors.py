"""The one exception that a command-line door prints as a single line, and how it does so."""

import argparse
import contextlib
import errno
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

USAGE_ERROR = 2  # the exit code of bad input


class UserError(Exception):
    """Something the user can mend: the message is one line saying what is wrong, where, and what to do."""

    def __init__(self, message: str) -> None:
        """Keeps the message to one line, whatever file names it quotes."""
        super().__init__(" ".join(message.splitlines()))


class ArgumentParser(argparse.ArgumentParser):
    """Python's own, whose complaint is a UserError instead of several lines; for the doors `python -m medgan_jax.X`."""

    def error(self, message: str) -> NoReturn:
        """Raises UserError."""
        raise UserError(f"{message} (see --help)")


def abbreviate(items: Sequence[object], limit: int = 3) -> str:
    """Lists the first items and counts the rest: "a.jpg, b.jpg, c.jpg and 12 more"."""
    shown = ", ".join(map(str, items[:limit]))
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"


def quoted(text: str) -> str:
    """Text from a file, such as the name of an array, fit for a message: in quotes, escaped and not too long."""
    shown = repr(text[:80])
    return shown if len(shown) <= 64 else f"{shown[:60]}...'"


def reason_of(error: OSError) -> str:
    """What the system says is wrong, to stand within a sentence."""
    return (error.strerror or str(error)).lower()


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Gives the OSErrors within a file name, where the system left it out, as for a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, os.strerror(error.errno), str(Path(path))) from error
        raise


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Turns a UserError, or a system error such as a full disk, into one line on stderr and exit code 2."""
    try:
        yield
    except UserError as error:
        message = str(error)
    except OSError as error:
        if error.errno is None:
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "make room and run the same command again" if full else "check the path and its permissions"
        message = f"{error.filename or 'system'}: {os.strerror(error.errno)}; {remedy}"
    else:
        return
    print(f"error: {message}", file=sys.stderr)
    sys.exit(USAGE_ERROR)
