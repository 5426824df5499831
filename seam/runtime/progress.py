"""Telling whoever waits what a process does: progress bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")
EVERY = 60.0  # seconds between two lines about one piece of work, where there is no terminal

_said = {"lines": False, "quiet": False}  # whether phases are announced without a terminal; whether nothing is said


def announce() -> None:
    """From now on this process says on stderr what it does where that is no terminal, too: a plain line a phase."""
    _said["lines"] = True


def be_quiet() -> None:
    """From now on this process says nothing of what it does."""
    _said["quiet"] = True


@contextmanager
def quietly() -> Iterator[None]:
    """Within the context nothing is said: for work whose own bars would break into that of the whole."""
    before = _said["quiet"]
    be_quiet()
    try:
        yield
    finally:
        _said["quiet"] = before


@contextmanager
def phase(label: str) -> Iterator[None]:
    """Work whose steps cannot be counted: a spinner on a terminal; elsewhere a line if `announce` was called."""
    console = Console(stderr=True, quiet=_said["quiet"])
    if _said["lines"] and not console.is_terminal:
        say(f"{label} ...")
    with console.status(label) if console.is_terminal else contextlib.nullcontext():
        yield


def say(text: str) -> None:
    """Print a line on stderr, unless nothing is to be said."""
    if not _said["quiet"]:
        print(text, file=sys.stderr, flush=True)


def progress(items: Iterable[T], total: int, label: str, notes: Mapping[str, float] | None = None) -> Iterator[T]:
    """Iterate with a progress bar on stderr; where that is no terminal, a line a minute, and one at the start if
    `announce` was called.

    notes: what else is shown, looked up anew each time, such as the loss.
    """
    console = Console(stderr=True, quiet=_said["quiet"])
    if _said["lines"] and not console.is_terminal:
        say(f"{label}, {total} step{'s' * (total != 1)} ...")
    rate_and_notes = (TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), TextColumn("{task.fields[notes]}"))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *rate_and_notes)
    started = said = time.monotonic()
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(label, total=total, rate="", notes="")
        for done, item in enumerate(items, start=1):
            yield item
            now = time.monotonic()
            rate = done / max(now - started, 1e-9)
            shown = ", ".join(f"{name} {value:.4g}" for name, value in (notes or {}).items())
            bar.update(task, advance=1, rate=f"{rate:.3g}/s", notes=shown)
            if not console.is_terminal and now - said > EVERY:
                said = now
                left = timedelta(seconds=round((total - done) / rate))
                say(f"{label}: {done} of {total}{shown and f', {shown}'}, {rate:.3g} a second, {left} left")
