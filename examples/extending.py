"""A dataset, a model and a search method of one's own, used together. docs/extending.md explains each part.

    python -m examples.extending FOLDER            # in the repository; writes FOLDER/photos, FOLDER/policy.json

The method is in this file, so it is named by the file's place: examples.extending.
"""

import sys
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits
from timm.models import register_model
from torch import nn

import seam.tool as seam
from seam.io import write_json

# --- A search method: one function, in any importable module. ---

NETWORK = False  # it looks at the layers' sizes only


def preferences(problem):
    """[L, B, B]: layers with few MACs are cheap to keep wide, so they want bits most."""
    bits, table = problem.settings.bits, problem.budgets[0].table  # table: [L, B, B], what each choice costs
    cost = table[:, -1, -1] / table[:, -1, -1].max()
    return np.add.outer(bits, bits)[None] / (0.1 + cost[:, None, None])


# --- A model: a module with timm's few methods, registered under a name. ---


class TwoConvolutions(nn.Module):
    def __init__(self, num_classes=3, in_chans=3, **_):
        super().__init__()
        self.num_classes = num_classes
        self.features = nn.Sequential(
            nn.Conv2d(in_chans, 8, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(16, num_classes)
        # What timm says of its models: how images are prepared, and the size at which MACs are counted.
        self.pretrained_cfg = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.25,) * 3}

    def get_classifier(self):  # the last layer: it stays at 8/8, and its input are the pre-logits
        return self.classifier

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


def two_convolutions(pretrained=False, **options):
    return TwoConvolutions(**options)


# --- A dataset: a folder with one folder a class. Here the digits 0, 1 and 2 stand for photographs. ---


def write_photos(folder: Path, each: int = 12) -> None:
    pixels, labels = load_digits(return_X_y=True)
    for part, start in (("train", 0), ("val", each)):
        for digit, name in enumerate(("zero", "one", "two")):
            place = folder / part / name
            place.mkdir(parents=True, exist_ok=True)
            for number, row in enumerate(pixels[labels == digit][start : start + each]):
                image = Image.fromarray((row.reshape(8, 8) * 15.9).astype(np.uint8)).resize((32, 32))
                image.save(place / f"{number}.png")


def main(folder: Path) -> None:
    torch.manual_seed(0)
    register_model(two_convolutions)  # or as its decorator, in a module that is imported once
    write_photos(folder / "photos")
    model = timm.create_model("two_convolutions", num_classes=3).eval()  # your weights: checkpoint_path=...
    images = seam.open_images(folder / "photos", model)
    policy = seam.search(model, images, "w4a4", method="examples.extending", name="two_convolutions")
    write_json(folder / "policy.json", policy)
    quantized = seam.calibrate(seam.quantize(model, policy), images)
    seam.finetune(quantized, images, epochs=2, batch_size=12)
    print(seam.evaluate(quantized, seam.open_images(folder / "photos", model, "test")))
    for name, layer in policy["layers"].items():
        print(name, layer["w"], layer["a"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
