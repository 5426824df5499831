"""Trainings that diverge: noticed at the first loss that is not finite, and said where it began."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from seam.errors import SeamError
from seam.training.optimizers import Group


def diverged(label: str, when: str, what: str, layer: str, groups: Sequence[Group], section: str) -> SeamError:
    """The error for a training that diverged.

    Args:
        when, what, layer: e.g. "at step 3 of 88, epoch 1", "loss nan", "layer1.0.conv1" ("" where unknown).
        section: of the parameters that the learning rates are in; "" where they are arguments of a function.
    """
    keys = [f"{section + '.' * bool(section)}{group.key} (now {group.lr:g})" for group in groups]
    first = f", first in layer {layer}" if layer else ""
    return SeamError(f"{label}: the training diverged {when} ({what}{first}); lower {' or '.join(keys)}")


def not_finite(logs: Mapping[str, float]) -> str:
    """Which of the logged values are not finite, e.g. "loss nan, margin inf"; "" where all are."""
    wrong = [(name, value) for name, value in logs.items() if value - value != 0]
    return ", ".join(f"{name} {value}" for name, value in wrong)


def infinite_tensors(module: nn.Module) -> list[str]:
    """Names of the parameters and buffers with values that are not finite, in the module's order."""
    named = [(name, value) for name, value in module.state_dict().items() if value.is_floating_point()]
    if not named:
        return []
    finite = torch.stack([torch.isfinite(value).all() for _, value in named]).tolist()  # one wait for the device
    return [name for (name, _), fine in zip(named, finite, strict=True) if not fine]


@torch.no_grad()
def first_infinite_layer(module: nn.Module, again: Callable[[], Any]) -> str:
    """The first layer, in order of execution, whose output or weights are not finite, by one more forward pass.

    Args:
        again: does the pass. What it changes in `module` does not matter any more.

    Returns "" where the pass finds none: it was a term of the loss.
    """
    found: list[str] = []

    def look(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: Any, output: Any) -> None:
            if found:
                return
            outputs = output if isinstance(output, tuple | list) else [output]
            values = [value for value in (*outputs, *layer.parameters(recurse=False)) if isinstance(value, Tensor)]
            if not all(torch.isfinite(value).all() for value in values):
                found.append(layer_name(name))

        return hook

    handles = [layer.register_forward_hook(look(name)) for name, layer in module.named_modules() if name]
    try:
        again()
    except Exception:  # the pass is for the message alone, which must not fail for what a broken network does
        pass
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else ""


def layer_name(name: str) -> str:
    """The layer that a module inside it, or a tensor of it, belongs to, by its name in the model."""
    inside_search = re.sub(r"^\d+\.model\.", "", name)  # a search trains its network within a list
    return re.sub(r"\.(parametrizations|input_quantizer|weight|bias|running_mean|running_var)\b.*", "", inside_search)
