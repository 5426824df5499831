"""Optimizers of groups of parameters, and how their learning rates fall."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

_WARM_UP = 0.05  # share of all steps over which the learning rate rises from 0


class _InOrder(torch.optim.Optimizer):
    """Steps on views of the parameters whose axes are in the order of memory, as all are but those in channels_last.

    torch's fused steps would first copy each gradient in channels_last, which takes longer than the step itself, and on
    a CPU they take wrong ones where a gradient is not in its parameter's format.
    """

    def __init__(self, groups: list[dict[str, Any]], **settings: Any):
        self.viewed: list[tuple[nn.Parameter, Tensor, tuple[int, ...]]] = []
        for group in groups:
            for p in group["params"]:
                order = tuple(sorted(range(p.dim()), key=p.stride, reverse=True))
                self.viewed.append((p, p.detach().permute(order), order))
        views = iter(view for _, view, _ in self.viewed)
        super().__init__([{**group, "params": [next(views) for _ in group["params"]]} for group in groups], **settings)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        for p, view, order in self.viewed:
            view.grad = None if p.grad is None else p.grad.permute(order).contiguous()
        loss = super().step(closure)
        super().zero_grad()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        for p, _, _ in self.viewed:
            p.grad = None


class _SGD(_InOrder, torch.optim.SGD):
    pass


class _AdamW(_InOrder, torch.optim.AdamW):
    pass


@dataclass
class Group:
    """Parameters with an optimizer of their own. `key`: the setting that `lr` comes from, for messages."""

    params: list[nn.Parameter]
    lr: float
    kind: Literal["sgd", "adamw", "adam"] = "sgd"
    weight_decay: float = 0.0
    momentum: float = 0.9  # of SGD
    schedule: Literal["cosine", "constant"] = "cosine"
    key: str = "lr"

    def optimizer(self) -> torch.optim.Optimizer:
        """Fused SGD with Nesterov momentum, AdamW or Adam; weight decay spares biases and norm parameters."""
        if self.kind == "adam":
            return torch.optim.Adam(self.params, lr=self.lr, fused=True)
        decayed = [p for p in self.params if p.dim() > 1]
        spared = [p for p in self.params if p.dim() <= 1]
        groups = [{"params": decayed, "weight_decay": self.weight_decay}, {"params": spared, "weight_decay": 0.0}]
        groups = [group for group in groups if group["params"]]
        if self.kind == "adamw":
            return _AdamW(groups, lr=self.lr, fused=True)
        return _SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.momentum > 0, fused=True)

    def scale(self, done: float) -> float:
        """Learning rate at a share `done` of all steps, relative to `lr`."""
        if self.schedule == "constant":
            return 1.0
        if done < _WARM_UP:
            return done / _WARM_UP
        return 0.5 * (1 + math.cos(math.pi * (done - _WARM_UP) / (1 - _WARM_UP)))
