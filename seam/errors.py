"""Errors a user can act on: the message names what was wrong, where, and what would be right."""

import difflib
from collections.abc import Iterable


class SeamError(Exception):
    """Bad input or an impossible request. The command line prints the message and exits with code 2."""


def unknown(kind: str, name: str, known: Iterable[str], where: str = "") -> SeamError:
    """Build the error for a name that is not in a registry, with the closest known names."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    listed = known if len(known) <= 15 else [*known[:15], "..."]
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(listed)}"
    return SeamError(f"{where + ': ' if where else ''}unknown {kind} '{name}'; {hint}")
