"""The process that a stage runs in: threads, device, seeds, memory.

Importing this loads no torch: a job that needs no network has a meter too.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from seam.errors import SeamError, shown
from seam.runtime.cores import available_cores
from seam.runtime.distributed import join

if TYPE_CHECKING:
    import torch

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # glibc's malloc.h


def set_up(device: str, threads: int, seed: int) -> torch.device:
    """Fix threads, seeds and the device of this process; returns the device.

    Where torchrun started several processes, they are one job from here on (`seam.runtime.distributed`).

    Args:
        device: "auto" (CUDA if there is one, else the CPU), or a torch device such as "cpu" or "cuda:1".
        threads: at most; never more than the cores this process may use, since torch's spinning OpenMP threads
            slow each other down severalfold.
    """
    import torch

    if not 0 <= seed < 2**32:
        raise SeamError(f"seed: must be 0 to 2**32 - 1, found {shown(seed)}")
    torch.set_num_threads(min(threads, available_cores()))
    keep_memory()
    torch.manual_seed(seed)
    np.random.seed(seed)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # only with it are cuBLAS's products deterministic
    torch.set_deterministic_debug_mode("warn")  # `use_deterministic_algorithms` would import the compiler
    # All memory is written before it is read here; torch would first fill each new tensor with NaN, to show where not.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if device == "auto":
        return join(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        probe = torch.zeros(1, device=join(torch.device(device)))  # of several processes each on a GPU of its own
        probe.item()  # 'meta' and the like hold no numbers
        return probe.device
    except (RuntimeError, AssertionError, ImportError, TypeError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise SeamError(f"device: '{device}' cannot be used here ({reason}); use auto or cpu") from None


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
