"""Do the tool's commands end with a verified file? Ten networks of ten families, briefly trained, through all of them.

    python benchmarks/families.py [--data FOLDER] [--images 12] [--only MODEL ...] [--csv benchmarks/families.csv]

Each model is trained for --epochs on --images images a class and its classifier fitted to their features, so that
biases and BatchNorm statistics are a trained network's; it is no good network. Then, each in a process of its own:
`seam evaluate` in full precision, `seam search` (w5a5), `seam evaluate` (calibrated only), `seam finetune` (one epoch),
`seam evaluate`, `seam export`, which compares the file in onnxruntime with PyTorch layer by layer on 64 images.

--data: a folder with train/ and val/ or test/, each with one folder a class, of which the first images are taken; by
default scikit-learn's digits, as PNG files. Models that the CSV has are skipped; --only runs the named ones again.

Columns: model, data, training images and steps, top-1 (percent of the held-out images, as many as in training) in full
precision, calibrated and finetuned, seconds of `seam search`, the export's verdict ("equal" or why not; a command that
failed: its message), values compared and mismatches, top-1 in onnxruntime and in PyTorch on the images compared, and
with what it was measured.
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODELS = (
    "mobilenetv3_small_050",
    "mobilenetv2_050",
    "regnety_002",
    "ghostnetv2_100",
    "nf_regnet_b0",
    "repvgg_a0",
    "convnext_atto",
    "mobilevit_xxs",
    "resnet18",
    "deit_tiny_patch16_224",
)
COLUMNS = (
    *("model", "data", "images", "steps", "top1_full", "top1_calibrated", "top1_finetuned", "search_s", "verdict"),
    *("quantized_values", "mismatches", "top1_onnxruntime", "top1_pytorch", "torch", "timm", "onnxruntime", "machine"),
)
BATCH = 12
BUDGET = "w5a5"


def prepare(data: Path | None, folder: Path, count: int) -> None:
    """Make train/ and val/ in `folder`, with `count` images a class in each."""
    if data is None:
        from PIL import Image
        from sklearn.datasets import load_digits

        digits = load_digits()
        for digit in range(10):
            chosen = digits.images[digits.target == digit][: 2 * count]
            for i, pixels in enumerate(chosen):
                path = folder / ("train" if i < count else "val") / str(digit) / f"{i:04}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray((pixels * 15).astype("uint8")).resize((32, 32), Image.Resampling.BILINEAR).save(path)
        return
    for part in ("train", "val"):
        source = data / (part if part == "train" or (data / "val").is_dir() else "test")
        for own in sorted(path for path in source.iterdir() if path.is_dir()):
            (folder / part / own.name).mkdir(parents=True)
            for path in sorted(own.iterdir())[:count]:
                (folder / part / own.name / path.name).symlink_to(path.resolve())


def train(name: str, data: Path, epochs: int, out: Path) -> None:
    """Train all layers with AdamW at the model's own size, then fit the classifier to the features."""
    import timm
    import torch
    import torch.nn.functional as F
    from sklearn.linear_model import LogisticRegression

    from seam.io import save_tensors
    from seam.models.features import extract_features
    from seam.models.find import classifier_layer
    from seam.models.strided_pointwise import read_fewer_pixels
    from seam.tool import open_images

    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=len(list((data / "train").iterdir()))).train()
    read_fewer_pixels(model)
    images = open_images(data, model, full_size=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for epoch in range(epochs):
        for x, y in images.batches(BATCH, seed=epoch):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    features, labels = extract_features(model, images.batches(BATCH))
    fitted = LogisticRegression(max_iter=1000).fit(features.numpy(), labels.numpy())
    head = classifier_layer(model)
    head.weight.data = torch.from_numpy(fitted.coef_).float().view_as(head.weight)
    head.bias.data = torch.from_numpy(fitted.intercept_).float()
    save_tensors(out, model.state_dict())


def attempt(name: str, data: Path, epochs: int, folder: Path) -> dict:
    """One model through all commands: what they say of it."""
    from seam.io import read_json

    row: dict = {}
    weights, policy, tuned = folder / "weights.safetensors", folder / "policy.json", folder / "tuned.safetensors"

    def call(*command: object) -> float:
        """Run it; returns its seconds. RuntimeError with its last line where it fails."""
        start = time.perf_counter()
        done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)
        if done.returncode:
            lines = (done.stderr.strip() or "ended without a word").splitlines()
            raise RuntimeError(f"{command[2] if command[0] == '-m' else 'train'}: {lines[-1]}")
        return time.perf_counter() - start

    def top1(*options: object) -> float:
        call("-m", "seam", "evaluate", "--data", data, "--out", folder / "metrics.json", *options)
        return round(read_json(folder / "metrics.json")["top1"], 2)

    try:
        call(__file__, "--train", name, data, epochs, weights)
        row["top1_full"] = top1("--model", name, "--weights", weights)
        given = ("--data", data, "--budget", BUDGET, "--out", policy)
        row["search_s"] = round(call("-m", "seam", "search", "--model", name, "--weights", weights, *given), 1)
        given = ("--policy", policy, "--data", data)
        row["top1_calibrated"] = top1("--policy", policy, "--weights", weights)
        call("-m", "seam", "finetune", *given, "--weights", weights, "--batch-size", BATCH, "--out", tuned)
        row["top1_finetuned"] = top1("--policy", policy, "--weights", tuned)
        export = ("export", *given, "--weights", tuned, "--images", 64, "--out", folder / "model.onnx")
        call("-m", "seam", *export)
        report = read_json(folder / "model.parity.json")
        keys = ("verdict", "quantized_values", "mismatches", "top1_onnxruntime", "top1_pytorch", "onnxruntime")
        row |= {key: report[key] for key in keys}
    except RuntimeError as error:
        row["verdict"] = " ".join(str(error).split())
    return row


def main() -> None:
    from rich.progress import track

    from seam.io import software, write_csv
    from seam.runtime.cores import available_cores
    from seam.runtime.meter import processor_name

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with train/ and val/ or test/; by default the digits")
    parser.add_argument("--images", type=int, default=12, help="a class, in training and held out each")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--only", nargs="+", metavar="MODEL", help="run these, even if the CSV has them")
    parser.add_argument("--csv", type=Path, default=Path(__file__).with_suffix(".csv"))
    parser.add_argument("--train", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        name, data, epochs, out = options.train
        train(name, Path(data), int(epochs), Path(out))
        return
    rows = {}
    if options.csv.exists():
        with options.csv.open(newline="") as file:
            rows = {row["model"]: row for row in csv.DictReader(file)}
    threads = os.environ.get("OMP_NUM_THREADS") or available_cores()
    versions = {key: version for key, version in software().items() if key in COLUMNS}
    for name in track(options.only or [name for name in MODELS if name not in rows], "families"):
        with tempfile.TemporaryDirectory() as made:
            folder, data = Path(made), Path(made, "images")
            prepare(options.data, data, options.images)
            count = len(list((data / "train").glob("*/*")))
            about = {"model": name, "data": options.data.name if options.data else "digits", "images": count}
            row = about | {"steps": options.epochs * (count // BATCH), **versions}
            row |= attempt(name, data, options.epochs, folder)
        rows[name] = row | {"machine": f"{processor_name()}, {threads} threads"}
        write_csv(options.csv, rows.values(), COLUMNS)
    good = sum(row["verdict"] == "equal" for row in rows.values())
    print(f"{good} of {len(rows)} families end with a verified file")


if __name__ == "__main__":
    main()
