"""The one exception that a command-line door prints as a single line."""

from collections.abc import Sequence


class UserError(Exception):
    """Something the user can mend: the message is one line saying what is wrong, where, and what to do."""

    def __init__(self, message: str) -> None:
        """Keeps the message to one line, whatever file names it quotes."""
        super().__init__(" ".join(message.splitlines()))


def abbreviate(items: Sequence[object], limit: int = 3) -> str:
    """Lists the first items and counts the rest: "a.jpg, b.jpg, c.jpg and 12 more"."""
    shown = ", ".join(map(str, items[:limit]))
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"
