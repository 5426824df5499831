"""Telling whoever waits what a process does: progress bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")


_said = {"lines": False}  # whether phases are announced without a terminal


def announce() -> None:
    """From now on this process says on stderr what it does where that is no terminal, too: a plain line a phase."""
    _said["lines"] = True


@contextmanager
def phase(label: str) -> Iterator[None]:
    """Work whose steps cannot be counted: a spinner on a terminal; elsewhere a line if `announce` was called."""
    console = Console(stderr=True)
    _say(console, label)
    with console.status(label) if console.is_terminal else contextlib.nullcontext():
        yield


def _say(console: Console, text: str) -> None:
    if _said["lines"] and not console.is_terminal:
        print(f"{text} ...", file=sys.stderr, flush=True)


def progress(items: Iterable[T], total: int, label: str) -> Iterator[T]:
    """Iterate with a progress bar on stderr; where that is no terminal, a line if `announce` was called."""
    console = Console(stderr=True)
    _say(console, f"{label}, {total} step{'s' * (total != 1)}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        yield from bar.track(items, total=total, description=label)
