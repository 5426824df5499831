"""How many cores this process can really have, and keeping numerical libraries to a job's share of them."""

import gc
import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_COLLECT = 100_000  # objects made between two rounds of the garbage collector; Python's own number is 700
_SPIN = "20000"  # rounds of GCC's OpenMP library: a fraction of a millisecond


def available_cores() -> int:
    """Cores this process may use: the least of the machine's, its affinity mask and its cgroup's quota (at least 1)."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_cores()
    return max(1, min(count, math.ceil(quota))) if quota else count


def _cgroup_cores() -> float | None:
    for read in (_cgroup2, _cgroup1):
        try:
            quota, period = read()
            return quota / period if quota > 0 and period > 0 else None
        except (OSError, ValueError):
            continue
    return None


def _cgroup2() -> tuple[float, float]:
    quota, period = (_CGROUP / "cpu.max").read_text().split()
    return (-1.0 if quota == "max" else float(quota)), float(period)


def _cgroup1() -> tuple[float, float]:
    folder = _CGROUP / "cpu"
    return float((folder / "cpu.cfs_quota_us").read_text()), float((folder / "cpu.cfs_period_us").read_text())


def limit_threads(threads: int) -> int:
    """Keep libraries imported from now on to `threads` threads, or fewer where there are fewer cores; returns which.

    Both engines and a hand-typed command go through here, so a result does not depend on who started its job.
    Idle OpenMP threads spin for a fraction of a millisecond, then sleep: sleeping at once makes a step of many small
    layers 1.5 to 2.5 times slower, and spinning on slows every other thread down when there are more than cores.
    """
    count = min(threads, available_cores())
    for name in _THREAD_VARIABLES:
        os.environ[name] = str(count)
    os.environ.setdefault("GOMP_SPINCOUNT", _SPIN)
    return count


def quiet_collector() -> None:
    """Let the garbage collector run less often: it goes through all objects of torch and timm while they are imported.

    Training leaves it nothing: without any collection a search's memory grows by 1 %.
    """
    gc.set_threshold(_COLLECT)
