"""The element-wise passes of `seam.quant.functional` as compiled kernels, built once on a machine and loaded at once.

Each pass is a plain tensor function below. On a CPU it is exported with dynamic sizes and compiled ahead of time by
Inductor into a package in the user's cache (`SEAM_CACHE`, else `~/.cache/seam`): a few seconds a kernel the first
time, milliseconds from then on, in every process and job. On another device `torch.compile` makes it (Triton on CUDA).
Without a compiler the functions run as they are, several times slower and with the same result up to rounding.
"""

import hashlib
import inspect
import logging
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

log = logging.getLogger(__name__)


def forward_tensor(x: Tensor, table: Tensor) -> Tensor:
    """x [N]; table [4, B] = steps, weights, lower, upper -> y [N]."""
    y = torch.zeros_like(x)
    for b in range(table.shape[1]):
        s, c, n, p = table[0, b], table[1, b], table[2, b], table[3, b]
        y = y + (c * s) * torch.round(torch.clamp(x * (1.0 / s), n, p))
    return y


def backward_tensor(x: Tensor, g: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """x, g [N] -> dL/dx [N], sums [2, B] = dL/ds, dL/dc."""
    dx = torch.zeros_like(x)
    ds, dc = [], []
    for b in range(table.shape[1]):
        s, c, n, p = table[0, b], table[1, b], table[2, b], table[3, b]
        v = x * (1.0 / s)
        q = torch.round(torch.clamp(v, n, p))
        inside = ((v > n) & (v < p)).to(x.dtype)
        dx = dx + c * inside
        ds.append(c * (g * (q - inside * v)).sum())
        dc.append(s * (g * q).sum())
    return g * dx, torch.stack([torch.stack(ds), torch.stack(dc)])


def forward_channel(x: Tensor, steps: Tensor, table: Tensor) -> Tensor:
    """x [C, K]; steps [B, C]; table [3, B] = weights, lower, upper -> y [C, K]."""
    y = torch.zeros_like(x)
    for b in range(table.shape[1]):
        s, c, n, p = steps[b][:, None], table[0, b], table[1, b], table[2, b]
        y = y + (c * s) * torch.round(torch.clamp(x * (1.0 / s), n, p))
    return y


def backward_channel(x: Tensor, g: Tensor, steps: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """x, g [C, K] -> dL/dx [C, K], sums [2, B, C] = dL/ds, and each channel's part of dL/dc."""
    dx = torch.zeros_like(x)
    ds, dc = [], []
    for b in range(table.shape[1]):
        s, c, n, p = steps[b][:, None], table[0, b], table[1, b], table[2, b]
        v = x * (1.0 / s)
        q = torch.round(torch.clamp(v, n, p))
        inside = ((v > n) & (v < p)).to(x.dtype)
        dx = dx + c * inside
        ds.append(c * (g * (q - inside * v)).sum(1))
        dc.append(s[:, 0] * (g * q).sum(1))
    return g * dx, torch.stack([torch.stack(ds), torch.stack(dc)])


PASSES: dict[str, Callable] = {
    f.__name__: f for f in (forward_tensor, backward_tensor, forward_channel, backward_channel)
}
_ready: dict[tuple[str, int], Callable] = {}  # (pass, number of bit-widths) -> compiled kernel
_device = "cpu"


def run(name: str, width: int, *args: Tensor) -> Tensor | tuple[Tensor, ...]:
    """Call a pass for `width` bit-widths: its kernel if it is ready and fits the tensors, else the plain function."""
    kernel = _ready.get((name, width))
    x = args[0]
    # A kernel is for 32-bit numbers on one device, and for sizes of at least 2: PyTorch treats 1 as a case of its own.
    if kernel is None or x.dtype != torch.float32 or x.device.type != _device or min(x.shape) < 2:
        return PASSES[name](*args)
    return kernel(*args)


def use_kernels(
    mode: str = "auto", widths: tuple[int, ...] = (1,), device: str | torch.device = "cpu"
) -> tuple[str, float]:
    """Choose the kernels of this process: 'compiled', 'eager', or 'auto' (compiled where a compiler works).

    widths: the numbers of bit-widths that will be mixed (1: a plain quantizer); kernels for others are not made.

    Returns the kind in force, 'compiled' or 'eager', and the seconds spent loading or compiling.
    """
    global _device
    _ready.clear()
    if mode == "eager":
        return "eager", 0.0
    start = time.perf_counter()
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # "No CUDA runtime" on each CPU machine
    _device = torch.device(device).type
    try:
        for width in widths:
            for name in PASSES:
                _ready[name, width] = _packaged(name, width) if _device == "cpu" else _jitted(name, width, device)
    except Exception as error:  # Inductor wraps what a missing or broken compiler raises in many types
        _ready.clear()
        if mode == "compiled":
            raise
        reason = str(error).strip().splitlines()[0]
        log.warning("no kernels can be compiled here (%s): a search step is several times slower", reason)
        return "eager", time.perf_counter() - start
    return "compiled", time.perf_counter() - start


def _example(name: str, width: int) -> tuple[Tensor, ...]:
    """Arguments of a pass, of the sizes that its code is made to be fast for."""
    if name.endswith("tensor"):
        x, rest = torch.zeros(2**21), (torch.ones(4, width),)
    else:
        x, rest = torch.zeros(512, 4608), (torch.ones(width, 512), torch.ones(3, width))
    return (x, x.clone(), *rest) if name.startswith("backward") else (x, *rest)


def cache_folder() -> Path:
    """Where kernels are kept: one folder for each source, PyTorch version and processor."""
    base = os.environ.get("SEAM_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "seam"
    about = [inspect.getsource(f) for f in PASSES.values()] + [inspect.getsource(_compile), inspect.getsource(_example)]
    about += [torch.__version__, platform.machine(), torch.backends.cpu.get_cpu_capability(), _processor()]
    return Path(base) / "kernels" / hashlib.sha256("\n".join(about).encode()).hexdigest()[:16]


def _processor() -> str:
    """The processor's features: a kernel is built for those of the machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor()


def _packaged(name: str, width: int) -> Callable:
    """The kernel from the cache; compiled into it first if it is not there."""
    import filelock
    from torch._inductor import aoti_load_package

    path = cache_folder() / f"{name}_{width}.pt2"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path.with_suffix(".lock")):  # jobs that start together compile each kernel once
            if not path.exists():
                _compile(name, width, path)
    return aoti_load_package(str(path))


def _compile(name: str, width: int, path: Path) -> None:
    import torch._inductor
    from torch.export import Dim, export

    class Pass(torch.nn.Module):
        def forward(self, *args: Tensor) -> Tensor | tuple[Tensor, ...]:
            return PASSES[name](*args)

    if name.endswith("tensor"):
        x, rest = {0: Dim("n", min=2)}, (None,)
    else:
        channels = Dim("c", min=2)
        x, rest = {0: channels, 1: Dim("k", min=2)}, ({1: channels}, None)
    shapes = (x, x, *rest) if name.startswith("backward") else (x, *rest)
    program = export(Pass(), _example(name, width), dynamic_shapes=(shapes,))
    temporary = path.with_suffix(f".{os.getpid()}.pt2")
    options = {
        "cpp.dynamic_threads": True,  # a job's threads are set when it starts, not when the kernel was built
        "aot_inductor.compile_wrapper_opt_level": "O0",  # the wrapper only passes pointers on
    }
    torch._inductor.aoti_compile_and_package(program, package_path=str(temporary), inductor_configs=options)
    temporary.replace(path)


def _jitted(name: str, width: int, device: str | torch.device) -> Callable:
    """The pass by `torch.compile`, run once so that its compilation is done and counted here."""
    import torch.fx.experimental._config

    # Sizes that happen to be equal must not be taken for one: each coincidence would compile the kernels again.
    torch.fx.experimental._config.use_duck_shape = False
    kernel = torch.compile(PASSES[name], dynamic=True, fullgraph=True)
    kernel(*(x.to(device) for x in _example(name, width)))
    return kernel
