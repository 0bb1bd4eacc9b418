"""UserError, the exception that a command prints as one line, and helpers for such lines."""

import argparse
import contextlib
import errno
import json
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

USAGE_ERROR = 2  # the exit code of bad input
_LONGEST = 200  # characters of a name in a list


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
    """Lists the first items and counts the rest: "a.jpg, b.jpg, c.jpg and 12 more". Overlong items are cut short."""
    texts = map(str, items[:limit])
    shown = ", ".join(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..." for text in texts)
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"


def quoted(text: str) -> str:
    """Text from a file, such as the name of an array, for a message: in quotes, escaped, at most 64 characters."""
    shown = repr(text[:80])
    return shown if len(shown) <= 64 else f"{shown[:60]}...'"


_GET_ITSELF = "download the file itself: its server may ask to log in or to confirm first"


_PLACEHOLDERS = {
    "Git LFS pointer": "a Git LFS pointer, not the file itself; run git lfs pull in its repository, or download the "
    "file itself",
    "git-annex pointer": "a git-annex pointer, not the file itself; run git annex get in its repository",
    "web page": f"a web page (HTML), not the file itself; {_GET_ITSELF}",
}


def placeholder_kind(data: bytes) -> str:
    """What a file is that is no data by its beginning: a pointer of Git LFS or git-annex, a web page. "" for others."""
    start = data[:4096].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return "Git LFS pointer"
    if re.match(rb"/annex/objects/|(\.\./)*\.git/annex/", start):
        return "git-annex pointer"
    is_page = start.startswith((b"<head", b"<title")) or b"<html" in start or b"<!doctype html" in start
    return "web page" if start.startswith(b"<") and is_page else ""


def placeholder(data: bytes) -> str | None:
    """What `placeholder_kind` finds and what to do, to follow the file's name and "is"; None for others."""
    return _PLACEHOLDERS.get(placeholder_kind(data))


def stand_in(data: bytes) -> str | None:
    """What a file fetched in place of pixels or weights is: a `placeholder`, or the words of a server; else None.

    Args:
      data: the whole file.
    """
    if found := placeholder(data):
        return found
    try:
        text = data.decode() if 0 < len(data) < 2**16 else ""
    except UnicodeDecodeError:
        return None
    if not text.strip() or not all(character.isprintable() or character.isspace() for character in text):
        return None
    kind = "an XML text" if text.lstrip().startswith("<") else "a text"
    with contextlib.suppress(ValueError, RecursionError):
        json.loads(text)
        kind = "a JSON text"
    return f"{kind}, {quoted(text.strip())}; {_GET_ITSELF}"


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
