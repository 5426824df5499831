"""Errors a user can act on: the message names what was wrong, where, and what would be right."""

import difflib
from collections.abc import Iterable


class SeamError(Exception):
    """Bad input or an impossible request. The command line prints the message and exits with code 2."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The closest known names as a question, "" where none is close."""
    close = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else ""


def unknown(kind: str, name: str, known: Iterable[str], where: str = "") -> SeamError:
    """Build the error for a name that is not in a registry, with the closest known names."""
    known = sorted(known)
    listed = known if len(known) <= 15 else [*known[:15], "..."]
    hint = did_you_mean(name, known) or f"known: {', '.join(listed)}"
    return SeamError(f"{where + ': ' if where else ''}unknown {kind} '{name}'; {hint}")
