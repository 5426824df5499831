"""The target side of a job: a model of the parameters, its layers and budgets, and the target's images for it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from seam.experiment.params import Params
from seam.models.layers import Layer
from seam.policy.cost import Budget
from seam.settings import SearchSettings

CALIBRATION_IMAGES = 512  # that set the input quantizers


class Target:
    """One model of the parameters on the target dataset, which the fetch stage has verified.

    Attributes:
        manifest: of the dataset.
        size: (C, H, W) of the images that the deployed model gets.
    """

    def __init__(self, params: Params, alias: str):
        from seam.data.fetch import described

        self.params, self.spec = params, params.model(alias)
        self.manifest = described(params.target.dataset, params.data_root, params.target.path)
        side = params.target.image_size
        self.size = (self.manifest["channels"], *([side, side] if side else self.manifest["image_size"]))

    def network(self, weights: Path | None = None) -> Any:
        """The model for the target's classes, with weights if given."""
        from seam.models.build import build, load_weights

        network = build(self.spec, len(self.manifest["classes"]), self.size[0])
        if weights is not None:
            load_weights(network, weights)
        return network

    def images(self, network: Any, split: str, count: int | None = None, seed: int = 0) -> Any:
        """The target's images, or a fixed class-balanced part of them."""
        from seam.data.loaders import load

        target = self.params.target
        images = load(target.dataset, self.params.data_root, split, target.path, image_size=target.image_size)
        self.prepare(network, images)
        return images.balanced(count, seed)

    def prepare(self, network: Any, images: Any) -> None:
        """Give images the preprocessing that timm states for the network, where its parameters say so."""
        from seam.data.loaders import prepare_as_trained

        if self.spec.preprocessing == "model":
            prepare_as_trained(images, network.pretrained_cfg)

    def is_own(self, dataset: str, path: str | None) -> bool:
        """Whether a dataset is the target itself."""
        return (dataset, path) == (self.params.target.dataset, self.params.target.path)


def locked_layers(params: Params, model: str, layers: Iterable[Layer]) -> list[Layer]:
    """A model's layers, with the bits that its parameters lock and the layers that they exclude."""
    from seam.models.locks import apply_locks

    return apply_locks([*layers], params.model(model).lock, params.model(model).exclude)


def budgets_of(params: Params, model: str, budget: str, layers: list[Layer], settings: SearchSettings) -> list[Budget]:
    """The limits that a budget of the parameters stands for; refused when no policy meets them."""
    from seam.policy.budget import parse_budgets
    from seam.policy.cost import read_latency

    table = params.model(model).latency
    latency = read_latency(table, layers) if table else None
    return parse_budgets(params.budget(budget), layers, settings.bits, latency, settings.pairs)


class Quantized(NamedTuple):
    """A model under a policy (the file's content). train: its finetuning images; layers: as the policy has them."""

    target: Target
    network: Any
    train: Any
    policy: dict[str, Any]
    layers: list[Layer]
    bits: dict[str, tuple[int, int]]


def quantized(params: Params, model: str, weights: Path, policy: Path, device: Any) -> Quantized:
    """The model under a policy, its steps not set yet."""
    import torch

    from seam.policy.file import read_policy
    from seam.quant.apply import apply_policy

    target, settings = Target(params, model), params.training("finetune", model)
    network = target.network(weights)
    network = network.to(device, memory_format=torch.channels_last)
    content = read_policy(policy)
    layers, bits = apply_policy(network, content, target.size, policy)
    train = target.images(network, "train", settings.images, settings.seed)
    return Quantized(target, network, train, content, layers, bits)


def calibrate(model: Quantized, level: str, count: int, order: int, device: Any, **more: Any) -> None:
    """Calibrate a quantized model on `count` of its finetuning images; `order`: seed of which. more: of the levels'."""
    import torch

    from seam.calibration.levels import calibrate as apply

    shuffled = torch.randperm(len(model.train), generator=torch.Generator().manual_seed(order))
    apply(model.network, model.train.subset(shuffled[:count]), level, device, **more)
