"""Data-parallel training: one job in several processes, started by torchrun, that each take a share of every batch.

What a step makes of a whole batch is made of all shares: gradients, logged scalars, class means, BatchNorm's
statistics. So a job ends alike in one process and in several, up to the order in which numbers are added. Each process
holds the whole network; the first alone writes and speaks.
"""

from __future__ import annotations

import atexit
import os
import socket
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from seam.errors import SeamError
from seam.runtime.progress import be_quiet, progress

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

T = TypeVar("T")
_WAIT = timedelta(hours=2)  # for the other processes: a share of a search without training may be one long piece


def processes() -> int:
    """How many processes share the work of this job."""
    distributed = _distributed()
    return distributed.get_world_size() if distributed else 1


def rank() -> int:
    """The number of this process among those of its job, from 0; 0 is the one that writes and speaks."""
    distributed = _distributed()
    return distributed.get_rank() if distributed else int(os.environ.get("RANK", "0"))


def _distributed() -> Any:
    """torch.distributed, where this process has joined others."""
    module = sys.modules.get("torch.distributed")
    return module if module is not None and module.is_available() and module.is_initialized() else None


def start_processes(count: int, nodes: int, cores: int, arguments: Sequence[str]) -> None:
    """Begin `seam ARGUMENTS` anew in `count` processes, under torchrun; nothing if there is one, or they are there.

    nodes: machines that share them evenly, those of the Slurm job that this process runs in. cores: of each machine.

    Raises SeamError for several machines outside a Slurm job.
    """
    if count == 1 or "WORLD_SIZE" in os.environ:
        return
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count // nodes}"]
    if nodes == 1:
        launch = [*torchrun, "--standalone"]
    else:
        job = os.environ.get("SLURM_JOB_ID")
        if job is None:
            raise SeamError(
                f"nodes: {nodes} machines are to share this job, but it does not run under Slurm, which would give "
                "them: take the Slurm profile, or start torchrun by hand (docs/scaling.md)"
            )
        with socket.create_server(("", 0)) as server:  # here, on the first machine, where all will meet
            address = f"{socket.gethostname()}:{server.getsockname()[1]}"
        meeting = [f"--nnodes={nodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint={address}", f"--rdzv-id={job}"]
        one_each = [f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", f"--cpus-per-task={cores}"]
        launch = ["srun", *one_each, "--kill-on-bad-exit=1", *torchrun, *meeting]
    os.execvp(launch[0], [*launch, "-m", "seam", *arguments])


def join(device: torch.device) -> torch.device:
    """Join the other processes of the job, if torchrun started any; returns this one's device (its own GPU)."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _distributed():
        return device
    import torch

    if device.type == "cuda":
        own, present = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if own >= present:
            here = os.environ.get("LOCAL_WORLD_SIZE", own + 1)
            raise SeamError(f"{here} processes here, each on a GPU of its own, but {present} can be used here")
        device = torch.device("cuda", own)
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, timeout=_WAIT)
    atexit.register(torch.distributed.destroy_process_group)
    if rank():
        be_quiet()
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (as long as the process)
    return device


def average(x: Tensor) -> Tensor:
    """The mean of a tensor over the processes; gradients flow to all of them."""
    return total(x) / count if (count := processes()) > 1 else x


def total(x: Tensor) -> Tensor:
    """The sum of a tensor over the processes; gradients flow to all of them."""
    if processes() == 1:
        return x
    from seam.runtime.collectives import Total

    return Total.apply(x)


def averages(items: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The means of scalars over the processes, without gradients."""
    if processes() == 1:
        return dict(items)
    import torch

    values = torch.stack([item.detach().float() for item in items.values()])
    torch.distributed.all_reduce(values)
    return dict(zip(items, values / processes(), strict=True))


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Give parameters the mean of their gradients over the processes: of shares' means that of the whole batch."""
    if processes() == 1:
        return
    import torch

    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.reshape(-1) for g in gradients])
    torch.distributed.all_reduce(flat)
    flat /= processes()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view(gradient.shape))


def share_out(jobs: Sequence[T], do: Callable[[T], Tensor], like: Tensor, label: str) -> Tensor:
    """The sum of what `do` makes of each job, a tensor like `like`; each job is done by one of the processes.

    The terms are added in the order of the jobs: the same bits for any number of processes. label: of the progress bar.
    """
    terms = like.new_zeros(len(jobs), *like.shape)
    mine = range(rank() if processes() > 1 else 0, len(jobs), processes())
    for i in progress(mine, len(mine), label):
        terms[i] = do(jobs[i])
    if processes() > 1:
        import torch

        torch.distributed.all_reduce(terms)  # all but one of the processes add 0
    result = like.new_zeros(like.shape)
    for term in terms:
        result += term
    return result


def greatest(number: int, device: torch.device) -> int:
    """The greatest of an integer over the processes."""
    if processes() == 1:
        return number
    import torch

    value = torch.tensor(number, device=device)
    torch.distributed.all_reduce(value, torch.distributed.ReduceOp.MAX)
    return int(value)


def start_alike(module: nn.Module) -> None:
    """Give all processes the first one's parameters and buffers."""
    if processes() == 1:
        return
    import torch

    for value in module.state_dict().values():
        given = value.contiguous()  # as it must be, whatever the order of the network's own memory
        torch.distributed.broadcast(given, 0)
        value.copy_(given)


def synchronized_batch_norm(wanted: bool = True) -> AbstractContextManager:
    """Within the context BatchNorm's statistics of a batch are those of all processes' shares, where that is wanted.

    torch's own SyncBatchNorm is for GPUs alone, and would take the place of timm's modules.
    """
    if processes() == 1 or not wanted:
        return nullcontext()
    from seam.runtime.collectives import SynchronizedBatchNorm

    return SynchronizedBatchNorm()
