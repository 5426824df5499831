"""Errors a user can act on: the message names what was wrong, where, and what would be right."""

import difflib
from collections.abc import Iterable

_MOST = 200  # characters of a name in a message


class SeamError(Exception):
    """Bad input or an impossible request. The command line prints the message and exits with code 2."""

    def __str__(self) -> str:
        return printable(super().__str__())


def printable(text: str) -> str:
    """The text with all that a terminal would obey or cannot show escaped, line breaks excepted."""
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def shown(value: object) -> str:
    """A value as messages show it: its repr, cut where it is long."""
    return shortened(repr(value))


def shortened(text: str) -> str:
    """The text, cut where it is long."""
    return text if len(text) <= _MOST else f"{text[:_MOST]}... ({len(text):,} characters)"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The closest known names as a question, "" where none is close."""
    close = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else ""


def unknown(kind: str, name: str, known: Iterable[str], where: str = "") -> SeamError:
    """Build the error for a name that is not in a registry, with the closest known names."""
    known = sorted(known)
    listed = known if len(known) <= 15 else [*known[:15], "..."]
    hint = did_you_mean(name, known) or f"known: {', '.join(listed)}"
    return SeamError(f"{where + ': ' if where else ''}unknown {kind} '{shortened(name)}'; {hint}")
