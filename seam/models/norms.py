"""BatchNorms with running statistics, and which of them stands behind which layer."""

from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from seam.models.shared_inputs import watch


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """All BatchNorms of a model that hold running statistics."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return [norm for norm in norms if norm.running_mean is not None]


@torch.no_grad()
def norms_behind(model: nn.Module, layers: Iterable[str], x: Tensor) -> dict[str, nn.Module]:
    """Name of a layer -> the BatchNorm with running statistics that reads its output as it is, in a pass of images x.

    Only where each of the two is called once: other statistics would be those of several outputs.
    """
    made: dict[int, tuple[str, int]] = {}
    alive: list[Tensor] = []  # else a freed tensor's identity could be another's
    found: dict[str, nn.Module] = {}
    calls: Counter[str | nn.Module] = Counter()

    def note(name: str, output: Tensor, functional: bool) -> None:
        alive.append(output)
        made[id(output)] = name, output._version
        calls[name] += 1

    def read(norm: nn.Module, args: tuple) -> None:
        calls[norm] += 1
        name, version = made.get(id(args[0]), ("", 0)) if args else ("", 0)
        if name and version == args[0]._version:  # not changed in place since
            found[name] = norm

    hooks = [norm.register_forward_pre_hook(read) for norm in batch_norms(model)]
    try:
        with watch(model, layers, lambda name, x: None, note):
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: norm for name, norm in found.items() if calls[name] == calls[norm] == 1}
