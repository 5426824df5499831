"""The process that a stage runs in: threads, device, seeds, and the meter of what it costs.

Importing this loads no torch: a job that needs no network has a meter too.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from seam.cores import available_cores
from seam.errors import SeamError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
_said = {"lines": False}  # whether phases are announced without a terminal
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # glibc's malloc.h


def import_torch() -> None:
    """Import torch before anything else that does, and take its objects from the garbage collector for good.

    At exit alone it would go through them again for half a second, in each job. (All objects of all libraries would
    take longer still, but triton, which timm loads, reports those that are never collected.)
    """
    if "torch" not in sys.modules:
        import torch  # noqa: F401

        gc.freeze()


def set_up(device: str, threads: int, seed: int) -> torch.device:
    """Fix threads, seeds and the device of this process; returns the device.

    Args:
        device: "auto" (CUDA if there is one, else the CPU), or a torch device such as "cpu" or "cuda:1".
        threads: at most; never more than the cores this process may use, since torch's spinning OpenMP threads
            slow each other down severalfold.
    """
    import torch

    torch.set_num_threads(min(threads, available_cores()))
    keep_memory()
    torch.manual_seed(seed)
    np.random.seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(1, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise SeamError(
            f"device: '{device}' cannot be used here ({str(error).splitlines()[0]}); use auto or cpu"
        ) from None


def keep_memory() -> None:
    """Make the C library keep freed memory for the next step, which takes it again (nothing on others than glibc).

    By default glibc gives large blocks back to the system at once, which must then clear each page anew: a fifth of the
    time of a training step on a CPU.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


@contextmanager
def one_thread() -> Iterator[None]:
    """Within the context torch computes in one thread."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def loader_workers(device: torch.device) -> int:
    """Processes that read image files: as many as threads beside a GPU; none on a CPU, which the network needs."""
    import torch

    return torch.get_num_threads() if device.type == "cuda" else 0


class Meter:
    """Counts what a job costs: seconds by part, images, steps and multiply-accumulates.

    images: that were looked at, each time. forwards: what was computed on them in forward passes' work: a backward pass
    counts as two, or as one where it makes no gradients of weights. image_macs is `forwards` times macs_per_image.

    device: of `set_up`; None for a job without torch, on the CPU and in one thread.
    """

    def __init__(self, device: torch.device | None):
        self.device = device
        self._cuda, self._threads = None, 1
        if device is not None:
            import torch

            self._cuda, self._threads = torch.cuda if device.type == "cuda" else None, torch.get_num_threads()
        self.images = self.steps = self.epochs = self.macs_per_image = self.forwards = 0
        self.kernels = "none"
        self.seconds_once = 0.0  # compiling kernels: done once on a machine, so that no job's seconds hold it
        self.parts: dict[str, float] = {}
        # Seconds since the process started, so that the imports before this line count too.
        self._start = time.perf_counter() - _process_age()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the block's seconds to the named part, without those that it adds to `seconds_once`."""
        start, once = time.perf_counter(), self.seconds_once
        try:
            yield
        finally:
            if self._cuda:
                self._cuda.synchronize(self.device)
            spent = time.perf_counter() - start - (self.seconds_once - once)
            self.parts[name] = self.parts.get(name, 0.0) + spent

    def look(self, images: int, forwards: int = 1) -> None:
        """Count images that were looked at, and what was computed on each, in forward passes."""
        self.images += images
        self.forwards += images * forwards

    def add_earlier(self, seconds: float) -> None:
        """Count the seconds of an earlier process whose checkpoint this one resumes."""
        self._start -= seconds
        self.parts["earlier"] = seconds

    def seconds(self) -> float:
        """Seconds since this process started, plus those of the runs it resumes, without `seconds_once`."""
        return time.perf_counter() - self._start - self.seconds_once

    def peak_memory_mb(self) -> float:
        """Most memory held so far, in MB: of the GPU, else of the process."""
        if self._cuda:
            return self._cuda.max_memory_allocated(self.device) / 1e6
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3

    def cost(self, **extra: Any) -> dict[str, Any]:
        """The content of cost.json. `seconds` counts from process start: imports, loading of kernels, solver included.

        Compiling kernels is not in `seconds` and its `parts`, but in `seconds_once`.
        """
        seconds = self.seconds()
        parts = {"start": max(seconds - sum(self.parts.values()), 0.0), **self.parts}
        return {
            "seconds": round(seconds, 3),
            "seconds_once": round(self.seconds_once, 3),
            "images": self.images,
            "steps": self.steps,
            "epochs": self.epochs,
            "macs_per_image": self.macs_per_image,
            "image_macs": self.forwards * self.macs_per_image,
            "peak_memory_mb": round(self.peak_memory_mb(), 1),
            "device": str(self.device or "cpu"),
            "device_name": self._cuda.get_device_name(self.device) if self._cuda else processor_name(),
            "threads": self._threads,
            "kernels": self.kernels,
            "parts": {name: round(value, 3) for name, value in parts.items()},
            **extra,
        }


def processor_name() -> str:
    """Model name of the processor, as the system tells it."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _process_age() -> float:
    """Seconds since this process was started (0 where the system does not tell)."""
    try:
        with open("/proc/self/stat") as stat, open("/proc/uptime") as uptime:
            ticks = int(stat.read().rsplit(")", 1)[1].split()[19])
            return float(uptime.read().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0


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
