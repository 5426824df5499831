"""Seconds that `seam search` takes with its defaults, process start to exit, for four common models: as the machine is,
and while another process keeps one of its cores busy.

    python benchmarks/tool_time.py [--models resnet18 ...] [--repeats 1]

The weights are random (time does not depend on them) and are written beforehand; the proxy is scikit-learn's digits.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import timm

from seam.io import save_tensors

MODELS = ("resnet18", "mobilenetv2_100", "mobilenetv3_small_050", "deit_tiny_patch16_224")


@contextmanager
def busy_core() -> Iterator[None]:
    """Within the context a process of its own computes on the first of the cores, without a pause."""
    spinning = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        os.sched_setaffinity(spinning.pid, {min(os.sched_getaffinity(0))})
        yield
    finally:
        spinning.kill()
        spinning.wait()


def seconds(command: list[object], repeats: int) -> float:
    """Median over the repeats."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    print(f"{'':24} {'idle':>8} {'one core busy':>16}")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            weights = Path(folder, f"{name}.safetensors")
            save_tensors(weights, timm.create_model(name).state_dict())
            policy = Path(folder, "policy.json")
            command = [sys.executable, "-m", "seam", "search", "--model", name, "--weights", weights, "-o", policy]
            idle = seconds(command, options.repeats)
            with busy_core():
                busy = seconds(command, options.repeats)
            print(f"{name:24} {idle:6.1f} s {busy:6.1f} s ({busy / idle:.1f}x)", flush=True)


if __name__ == "__main__":
    main()
