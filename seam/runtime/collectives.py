"""What is made of the shares of all processes of a job, with gradients: sums, and BatchNorm's statistics."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Total(torch.autograd.Function):
    """Sum over the processes. Each process's own objective depends on it, so its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return Total.forward(ctx, gradient)


class SynchronizedBatchNorm(TorchFunctionMode):
    """F.batch_norm in training mode, whichever module calls it, with the mean and variance of the whole batch."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm:  # other operations, which are many, pass at once
            given = {**dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}
            if given.get("training"):
                return batch_norm(**given)
        return func(*args, **kwargs)


_ARGUMENTS = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """F.batch_norm of the whole batch for this process's share of it, [N, C, ...]."""
    x = input.float() if input.dtype in (torch.bfloat16, torch.float16) else input
    dims, shape = [0, *range(2, x.dim())], [1, -1, *[1] * (x.dim() - 2)]
    shares = torch.distributed.get_world_size()
    mean = Total.apply(x.mean(dims)) / shares
    centred = x - mean.view(shape)
    variance = Total.apply(centred.square().mean(dims)) / shares
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            count = x.numel() // x.shape[1] * shares
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(variance * (count / (count - 1)), momentum)
    scale = torch.rsqrt(variance + eps)
    if weight is not None:
        scale = scale * weight
    result = centred * scale.view(shape)
    return (result if bias is None else result + bias.view(shape)).to(input.dtype)
