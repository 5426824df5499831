"""Seconds that `seam search` takes with its defaults, process start to exit, for three common models.

    python benchmarks/tool_time.py [--models resnet18 ...] [--repeats 1]

The weights are random (time does not depend on them) and are written beforehand; the proxy is scikit-learn's digits.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import timm

from seam.io import save_tensors

MODELS = ("resnet18", "mobilenetv2_100", "deit_tiny_patch16_224")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            weights = Path(folder, f"{name}.safetensors")
            save_tensors(weights, timm.create_model(name).state_dict())
            policy = Path(folder, "policy.json")
            command = [sys.executable, "-m", "seam", "search", "--model", name, "--weights", weights, "-o", policy]
            seconds = []
            for _ in range(options.repeats):
                start = time.perf_counter()
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                seconds.append(time.perf_counter() - start)
            print(f"{name:24} {statistics.median(seconds):6.1f} s")


if __name__ == "__main__":
    main()
