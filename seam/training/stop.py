"""Stopping a training from outside: SIGTERM (clusters, engines) and SIGINT (Ctrl-C) end it after its current step."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from seam.runtime.distributed import rank

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_process: dict[str, Any] = {"seconds": None}  # of `exit_within`


def exit_within(seconds: float) -> None:
    """Say that this process is a command's own: stopped, it ends for certain after so many seconds.

    A single step may take longer (the backward pass of a large batch is one call, in which Python handles no signal);
    the process then ends from its last checkpoint. A program that calls `fit` itself is never ended like that.
    """
    _process["seconds"] = seconds


def stopped_at(step: int, saved: bool) -> str:
    """What a training says that a signal ends; saved: whether it can go on."""
    kept = "the same command goes on from there" if saved else "no checkpoint of it was written"
    return f"stopped at step {step}; {kept}"


class Stop:
    """Within the context the first SIGTERM or SIGINT is noted in `signum`, for the training to look at between steps.

    Later ones change nothing: a terminal's Ctrl-C reaches the process twice, once from the engine that runs it. Outside
    of the main thread, where Python handles no signals, and for signals that are ignored (nohup), this does nothing.
    """

    signum: int | None = None
    _before: dict[int, Any]

    def __enter__(self) -> "Stop":
        self._pid, self._before, self._line = os.getpid(), {}, "stopped; the same command goes on from its checkpoint"
        if threading.current_thread() is threading.main_thread():
            for signum in _SIGNALS:
                if signal.getsignal(signum) not in (signal.SIG_IGN, None):  # None: a handler that is not Python's
                    self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None or os.getpid() != self._pid:  # a loader's process inherits the handler
            return
        self.signum = signum
        if signal.getsignal(signal.SIGCHLD) is not None:
            # Loaders' processes may get the signal too; torch would raise their end in the middle of our step.
            self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if _process["seconds"] is not None:
            timer = threading.Timer(_process["seconds"], self._end)
            timer.daemon = True
            timer.start()

    def _end(self) -> None:
        self._say()
        os._exit(128 + self.signum)

    def _say(self) -> None:
        line, self._line = self._line, ""
        if line and not rank():
            print(f"seam: {line}", file=sys.stderr, flush=True)

    def leave(self, line: str) -> None:
        """Say the line on stderr and leave the training: SystemExit with 128 + the signal's number, as shells do.

        In a program of the user's Ctrl-C stays KeyboardInterrupt.
        """
        self._line = line
        self._say()
        if self.signum == signal.SIGINT and _process["seconds"] is None:
            raise KeyboardInterrupt
        raise SystemExit(128 + self.signum)


@contextlib.contextmanager
def deferred_signals() -> Iterator[None]:
    """SIGTERM and SIGINT take effect at the end of the context.

    Inside of a library's own code KeyboardInterrupt may come out as another error: a Ctrl-C in the middle of reading
    tensors would pass for a damaged file.
    """
    stop = Stop()
    try:
        with stop:
            yield
    finally:
        if stop.signum is not None:
            signal.raise_signal(stop.signum)
