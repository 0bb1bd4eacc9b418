"""UserError, the exception that a command prints as one line, and helpers for such lines."""

import argparse
import contextlib
import errno
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

USAGE_ERROR = 2  # the exit code of bad input


class UserError(Exception):
    """An error that the user can correct: the message is one line that says what is wrong, where, and what to do."""

    def __init__(self, message: str) -> None:
        """Keeps the message to one line, whatever file names it quotes."""
        super().__init__(" ".join(message.splitlines()))


class ArgumentParser(argparse.ArgumentParser):
    """`argparse.ArgumentParser` that raises a UserError instead of printing several lines and leaving."""

    def error(self, message: str) -> NoReturn:
        """Raises UserError."""
        raise UserError(f"{message} (see --help)")


def abbreviate(items: Sequence[object], limit: int = 3) -> str:
    """Lists the first items and counts the rest: "a.jpg, b.jpg, c.jpg and 12 more"."""
    shown = ", ".join(map(str, items[:limit]))
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"


def quoted(text: str) -> str:
    """Text from a file, such as the name of an array, for a message: in quotes, escaped, at most 64 characters."""
    shown = repr(text[:80])
    return shown if len(shown) <= 64 else f"{shown[:60]}...'"


def reason_of(error: OSError) -> str:
    """What the system says is wrong, in lower case."""
    return (error.strerror or str(error)).lower()


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Adds the file name `path` to an OSError without one, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, os.strerror(error.errno), str(Path(path))) from error
        raise


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Prints a UserError, or a system error such as a full disk, as one line on stderr, and exits with code 2."""
    try:
        yield
    except UserError as error:
        message = str(error)
    except BrokenPipeError:  # nobody reads on, as with `| head`
        sys.exit(128 + signal.SIGPIPE)
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
