"""Which layers read which tensor: watching the inputs of layers, and the groups of layers that read the same one.

On a device a tensor is quantized once, whoever reads it. Layers that read the same tensor (the first convolutions of a
residual block and of its shortcut, separate q/k/v projections, the branches of an Inception block) therefore form a
group that shares one input quantizer and one activation bit-width; their weight bits stay free.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

WEIGHTED = (F.linear, F.conv2d)  # what a layer's weight goes into


def layer_input(args: tuple, kwargs: Mapping[str, Any]) -> Tensor:
    """The tensor that a layer was called with, by position or by keyword."""
    return args[0] if args else next(iter(kwargs.values()))


def replace_input(args: tuple, kwargs: Mapping[str, Any], x: Tensor) -> tuple[tuple, dict[str, Any]]:
    """The same call with `x` in the place of `layer_input`."""
    if args:
        return (x, *args[1:]), dict(kwargs)
    return args, {**kwargs, next(iter(kwargs)): x}


def weight_argument(args: tuple, kwargs: Mapping[str, Any]) -> Any:
    """The weight of a call of F.linear or F.conv2d."""
    return args[1] if len(args) > 1 else kwargs.get("weight")


def weight_parameter(layer: nn.Module) -> Tensor | None:
    """The parameter behind `layer.weight`, below any parametrization; None if there is no single one."""
    if parametrize.is_parametrized(layer, "weight"):
        return getattr(layer.parametrizations["weight"], "original", None)
    return layer._parameters.get("weight")


class _WeightReads(TorchFunctionMode):
    """Sees the weights that a parent module reads and applies itself, as in `F.linear(x, self.qkv.weight, bias)`."""

    def __init__(self, owners: Mapping[int, str], inside: set[str], before: Callable, after: Callable):
        super().__init__()
        self.owners, self.inside, self.before, self.after = owners, inside, before, after

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = None
        if func in WEIGHTED:
            weight = weight_argument(args, kwargs)
            name = self.owners.get(id(getattr(weight, "layer", weight)))
        if name is None or name in self.inside:
            return func(*args, **kwargs)
        self.before(name, layer_input(args, kwargs))
        output = func(*args, **kwargs)
        self.after(name, output, True)
        return output


@contextmanager
def watch(
    model: nn.Module,
    names: Iterable[str],
    before: Callable[[str, Tensor], None],
    after: Callable[[str, Tensor, bool], None] = lambda name, output, functional: None,
):
    """Within the context, each use of a named layer calls before(name, input) and after(name, output, functional).

    A use is a call of the layer, or a parent's own F.linear or F.conv2d with the layer's weight (functional: True).
    The input is seen before any quantizer of the layer changes it.
    """
    modules = dict(model.named_modules())
    owners: dict[int, str] = {}
    inside: set[str] = set()
    hooks = []

    def enter(name: str) -> Callable:
        def hook(_: nn.Module, args: tuple, kwargs: dict) -> None:
            inside.add(name)
            before(name, layer_input(args, kwargs))

        return hook

    def leave(name: str) -> Callable:
        def hook(_: nn.Module, args: tuple, output: Tensor) -> None:
            inside.discard(name)
            after(name, output, False)

        return hook

    for name in names:
        layer = modules[name]
        owners[id(layer)] = name
        owners.setdefault(id(weight_parameter(layer)), name)
        hooks.append(layer.register_forward_pre_hook(enter(name), prepend=True, with_kwargs=True))
        hooks.append(layer.register_forward_hook(leave(name)))
    try:
        with _WeightReads(owners, inside, before, after):
            yield
    finally:
        for hook in hooks:
            hook.remove()


class Readers:
    """Collects which layers read the same tensor, while a model runs once without gradients."""

    def __init__(self) -> None:
        self._first: dict[tuple, str] = {}
        self._parent: dict[str, str] = {}
        self._alive: list[Tensor] = []  # else a freed address could be taken for the tensor that had it before

    def read(self, name: str, x: Tensor) -> None:
        """Note that layer `name` reads `x`."""
        self._alive.append(x)
        self._parent.setdefault(name, name)
        first = self._first.setdefault(_elements(x), name)
        a, b = self._root(first), self._root(name)
        order = list(self._parent)  # of execution: the root of a group is its first layer
        if a != b:
            early, late = sorted((a, b), key=order.index)
            self._parent[late] = early

    def _root(self, name: str) -> str:
        while self._parent[name] != name:
            name = self._parent[name]
        return name

    def groups(self) -> dict[str, str]:
        """Layer name -> name of the first layer of its group (its own where it reads alone)."""
        return {name: self._root(name) for name in self._parent}


def _elements(x: Tensor) -> tuple:
    """Equal for two tensors only if they hold the same elements in the same memory, unchanged in between.

    Two views that fill the same block of memory are equal whatever their shapes; others must have the same strides.
    """
    dense = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True)) == x.numel()
    return x.data_ptr(), x.dtype, x._version, x.numel() if dense else (tuple(x.shape), x.stride())


# What models raise for sizes that they do not take.
REFUSALS = (RuntimeError, ValueError, AssertionError, TypeError, IndexError)


@torch.no_grad()
def run_once(model: nn.Module, size: tuple[int, int, int]) -> None:
    """One evaluation pass on one blank image of `size` (C, H, W); the model's mode is left as it was."""
    parameter = next(model.parameters())
    training = model.training
    model.eval()
    try:
        model(torch.zeros(1, *size, device=parameter.device, dtype=parameter.dtype))
    finally:
        model.train(training)
