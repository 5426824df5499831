"""The units that reconstruction takes one at a time: a network's blocks, found by how modules are nested and called.

A block is what timm puts into a stage: an element of a Sequential, of a ModuleList or of a chain of calls that holds
several quantized layers, with its shortcut and its addition inside. What lies between blocks (stems, heads,
downsampling) is taken layer by layer.
The normalisation and activation right behind a unit belong to it, so that the error is measured where it counts.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from seam.quant.apply import input_quantizers
from seam.quant.quantizer import weight_quantizer

_BATCH = 3  # images of the pass that tells how units are called: what has as many rows has one an image
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class _Images:
    """Stands in a unit's arguments where a tensor with one row an image belongs."""


@dataclass
class Unit:
    """A part of a network that is run on its own.

    Attributes:
        names: of its modules, run one after the other: a block or a layer, then what follows it without weights.
        layers: names of its quantized layers.
        chained: its input is the output of the unit before it.
    """

    names: list[str]
    layers: list[str]
    chained: bool = False
    _arguments: list[Any] = field(default_factory=list, repr=False)  # of the call, flat; `_Images` for those of images
    _spec: TreeSpec | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return self.names[0]

    def run(self, model: nn.Module, inputs: Iterable[Tensor]) -> list[Tensor]:
        """The unit's output tensors, of `model`, for the tensors of images that it is called with."""
        given = iter(inputs)
        flat = [next(given) if isinstance(item, _Images) else item for item in self._arguments]
        args, kwargs = tree_unflatten(flat, self._spec)
        first, *others = (model.get_submodule(name) for name in self.names)
        output = first(*args, **kwargs)
        for module in others:
            output = module(output)
        return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]

    @torch.no_grad()
    def inputs(self, model: nn.Module, batches: Iterable[Tensor]) -> Iterator[list[Tensor]]:
        """For each batch of images the tensors that the unit is called with; the model runs no further."""
        caught: list[Tensor] = []

        def catch(_: nn.Module, args: tuple, kwargs: dict) -> None:
            leaves = tree_flatten((args, kwargs))[0]
            caught[:] = [leaf for leaf, item in zip(leaves, self._arguments, strict=True) if isinstance(item, _Images)]
            raise _Caught

        hook = model.get_submodule(self.name).register_forward_pre_hook(catch, prepend=True, with_kwargs=True)
        try:
            for x in batches:
                try:
                    model(x)
                except _Caught:
                    yield list(caught)
        finally:
            hook.remove()


class _Caught(Exception):
    """A unit was reached."""


@dataclass
class _Call:
    """How a module was called: its flat arguments, and identities of the tensors that it read and made."""

    arguments: list[Any]
    spec: TreeSpec
    read: list[tuple[int, int]]
    shape: torch.Size | None  # of its first argument, if that is a tensor
    made: list[tuple[int, int]] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    count: int = 1


def find_units(model: nn.Module, size: tuple[int, int, int]) -> list[Unit]:
    """The units of a quantized model for images of `size` (C, H, W), in order of execution.

    Each quantized layer is in one unit, but for those that are called several times or by a parent outside of any
    block, or read no tensor with one row an image: these stay as they are. No unit holds layers of 8 bits alone.
    """
    quantized, calls = list(input_quantizers(model)), _calls(model, size)
    units = [unit for name, module in model.named_children() for unit in _within(name, module, quantized, calls)]
    units = [unit for unit in units if any(_has_few_bits(model.get_submodule(name)) for name in unit.layers)]
    order = {name: place for place, name in enumerate(calls)}
    units.sort(key=lambda unit: order[unit.name])
    inside = {name for unit in units for name in calls if name == unit.name or name.startswith(f"{unit.name}.")}
    free = {
        name: call
        for name, call in calls.items()
        if name and name not in inside and not _layers(name, quantized) and call.count == 1 and _keeps_shape(call)
        if call.made != call.read  # nn.Identity
    }
    for unit in units:
        made = calls[unit.name].made
        while tail := next((name for name, call in free.items() if call.read == made), None):
            made = free[tail].made
            unit.names.append(tail)
            free = {name: call for name, call in free.items() if not f"{name}.".startswith(f"{tail}.")}
    for before, unit in zip(units, units[1:], strict=False):
        unit.chained = calls[unit.name].read == calls[before.names[-1]].made
    return units


def _has_few_bits(layer: nn.Module) -> bool:
    return min(layer.input_quantizer.bits, weight_quantizer(layer).bits) < 8


def _within(name: str, module: nn.Module, quantized: list[str], calls: dict[str, _Call]) -> list[Unit]:
    """Units of a module, which is one itself or holds some."""
    layers = _layers(name, quantized)
    if not layers:
        return []
    call = calls.get(name)
    descend = _holds_blocks(module, name, quantized) or _is_chain(module, name, quantized, calls)
    if call and call.count == 1 and _per_image(call) and not descend:
        return [Unit([name], layers, _arguments=call.arguments, _spec=call.spec)]
    if layers == [name]:
        return []
    return [unit for n, child in module.named_children() for unit in _within(f"{name}.{n}", child, quantized, calls)]


def _layers(name: str, quantized: list[str]) -> list[str]:
    """The quantized layers that a module is or holds."""
    return [layer for layer in quantized if layer == name or layer.startswith(f"{name}.")]


def _holds_blocks(module: nn.Module, name: str, quantized: list[str]) -> bool:
    """Whether a module is a container, or one somewhere in it holds a block: an element with several layers."""
    if isinstance(module, _CONTAINERS):
        return True
    return any(
        isinstance(part, _CONTAINERS) and any(len(_layers(f"{name}.{path}.{n}", quantized)) > 1 for n in part._modules)
        for path, part in module.named_modules()
        if path
    )


def _is_chain(module: nn.Module, name: str, quantized: list[str], calls: dict[str, _Call]) -> bool:
    """Whether a module only calls its parts, each with several layers, on the output of the one before."""
    parts = [f"{name}.{n}" for n, _ in module.named_children() if _layers(f"{name}.{n}", quantized)]
    if name not in calls or not parts or any(p not in calls or len(_layers(p, quantized)) == 1 for p in parts):
        return False
    made = [calls[name].read, *(calls[part].made for part in parts)]
    return made[-1] == calls[name].made and all(calls[p].read == m for p, m in zip(parts, made, strict=False))


def _per_image(call: _Call) -> bool:
    """Whether a module reads tensors with one row an image, and makes nothing else."""
    return any(isinstance(item, _Images) for item in call.arguments) and all(
        isinstance(item, Tensor) and item.dim() and len(item) == _BATCH for item in call.outputs
    )


def _keeps_shape(call: _Call) -> bool:
    """Whether a module is called with one tensor alone and makes one of the same shape."""
    tensors = [item for item in call.outputs if isinstance(item, Tensor)]
    return len(call.arguments) == len(call.read) == len(tensors) == 1 and call.shape == tensors[0].shape


@torch.no_grad()
def _calls(model: nn.Module, size: tuple[int, int, int]) -> dict[str, _Call]:
    """Name -> call of every module that a pass over blank images calls, in order of execution."""
    calls: dict[str, _Call] = {}
    alive: list[Any] = []  # else a freed tensor's identity could be another's

    def identities(values: Iterable[Any]) -> list[tuple[int, int]]:
        alive.extend(values := [value for value in values if isinstance(value, Tensor)])
        return [(id(value), value._version) for value in values]

    def enter(name: str):
        def hook(_: nn.Module, args: tuple, kwargs: dict) -> None:
            if name in calls:
                calls[name].count += 1
                return
            flat, spec = tree_flatten((args, kwargs))
            per_image = [isinstance(v, Tensor) and v.dim() > 0 and len(v) == _BATCH for v in flat]
            read = identities(v for v, own in zip(flat, per_image, strict=True) if own)
            arguments = [_Images() if own else v for v, own in zip(flat, per_image, strict=True)]
            shape = flat[0].shape if flat and isinstance(flat[0], Tensor) else None
            calls[name] = _Call(arguments, spec, read, shape)

        return hook

    def leave(name: str):
        def hook(_: nn.Module, args: tuple, output: Any) -> None:
            calls[name].outputs = tree_leaves(output)
            calls[name].made = identities(calls[name].outputs)

        return hook

    hooks = []
    model.eval()
    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(enter(name), prepend=True, with_kwargs=True))
        hooks.append(module.register_forward_hook(leave(name)))
    parameter = next(model.parameters())
    try:
        model(torch.zeros(_BATCH, *size, device=parameter.device, dtype=parameter.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    return calls
