"""Which BatchNorm stands behind which layer."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from seam.models.shared_inputs import watch


@torch.no_grad()
def norms_behind(model: nn.Module, layers: Iterable[str], x: Tensor) -> dict[str, nn.Module]:
    """Name of a layer -> the BatchNorm with running statistics that reads its output, in a pass of images x.

    Of a layer that is called more than once it is that of its last call.
    """
    made: dict[int, str] = {}
    alive: list[Tensor] = []  # else a freed tensor's identity could be another's
    found: dict[str, nn.Module] = {}

    def note(name: str, output: Tensor, functional: bool) -> None:
        alive.append(output)
        made[id(output)] = name

    def read(norm: nn.Module, args: tuple) -> None:
        if args and (name := made.get(id(args[0]))):
            found[name] = norm

    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    hooks = [norm.register_forward_pre_hook(read) for norm in norms if norm.running_mean is not None]
    try:
        with watch(model, layers, lambda name, x: None, note):
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return found
