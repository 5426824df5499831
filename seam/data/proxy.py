"""The proxy of a search: which images of which dataset, at which resolution."""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from seam.errors import SeamError
from seam.settings import Proxy

LARGEST = 224  # pixels: no proxy image is larger unless asked for


def image_size(proxy: Proxy, target: Iterable[int]) -> list[int]:
    """(H, W) of a proxy's images: as it says, else the target's, at most 224 pixels a side."""
    return [proxy.image_size] * 2 if proxy.image_size else [min(side, LARGEST) for side in target]


def count(proxy: Proxy, available: int) -> int:
    """Images that a proxy asks for, of so many that its dataset has."""
    return proxy.count or (round(proxy.fraction * available) if proxy.fraction else available)


def describe_proxy(
    proxy: Proxy,
    manifest: dict[str, Any],
    target: dict[str, Any],
    root: str | Path,
    model: Callable[[], tuple],
    as_trained: bool = False,
) -> dict[str, Any]:
    """Choose the images of a proxy and describe them: the content of proxy.json.

    Args:
        proxy: what to take; manifest: of its dataset; target: the target's manifest, with the size (H, W) that its
            images are given at. A proxy without a size takes that, at most 224 pixels a side: on smaller images deep
            layers see fewer pixels, and their bits are chosen for that.
        model: gives (pretrained target model, device); called for herding and k-center only, which need features.
        as_trained: the model takes images as timm states for it, not with the dataset's mean and deviation.

    Raises: SeamError if more images are asked for than there are.
    """
    from seam.data.fetch import labels as read_labels
    from seam.data.sampling import NEED_FEATURES, sample_indices

    size = image_size(proxy, target["image_size"])
    parts = ("train", "test") if proxy.split == "all" else ("train",)
    available = sum(manifest[part]["count"] for part in parts)
    counts = np.sum([manifest[part]["per_class"] for part in parts], axis=0)
    wanted = count(proxy, available)
    if not 1 <= wanted <= available:
        raise SeamError(f"proxy: asks for {wanted} images of {proxy.dataset}, which has {available} ({proxy.split})")
    indices = None
    if wanted < available:
        features = None
        if proxy.sampling in NEED_FEATURES:
            from seam.data.loaders import load, prepare_as_trained
            from seam.models.features import extract_features

            network, device = model()
            seen = load(
                proxy.dataset, root, proxy.split, proxy.path, image_size=tuple(size), channels=target["channels"]
            )
            if as_trained:
                prepare_as_trained(seen, network.pretrained_cfg)
            features = extract_features(network, seen.batches(250, device=device))[0].numpy()
        labels = read_labels(proxy.dataset, root, proxy.split, proxy.path)
        indices = sample_indices(labels, wanted, proxy.sampling, proxy.seed, features)
        counts = np.bincount(labels[indices], minlength=len(manifest["classes"]))
        indices = [int(i) for i in indices]
    return {
        **{key: getattr(proxy, key) for key in ("dataset", "path", "split", "sampling", "seed", "fraction")},
        "count": int(wanted),
        "image_size": size,
        "channels": manifest["channels"],
        "classes": manifest["classes"],
        "class_counts": [int(n) for n in counts],
        "mean": manifest["mean"],
        "std": manifest["std"],
        "data_sha256": manifest["sha256"],
        "sha256": hashlib.sha256(np.asarray(indices if indices else [-1], dtype="<i8").tobytes()).hexdigest(),
        "share_of_target": round(wanted / target["train"]["count"], 6),
        "indices": indices,
    }
