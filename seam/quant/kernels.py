"""The element-wise passes of `seam.quant.functional` as compiled kernels, built once on a machine and loaded at once.

Each pass is a plain tensor function below. On a CPU it is exported with dynamic sizes and compiled ahead of time by
Inductor into a library in the user's cache (`SEAM_CACHE`, else `~/.cache/seam`): a few seconds a kernel the first
time, milliseconds from then on, in every process and job. On another device `torch.compile` makes it (Triton on CUDA).
Without a compiler the functions run as they are, several times slower and with the same result up to rounding.
"""

import hashlib
import inspect
import logging
import os
import platform
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

log = logging.getLogger(__name__)


def forward(x: Tensor, limits: Tensor, inverse: Tensor, scale: Tensor, bounds: Tensor) -> Tensor:
    """x [R, K]; limits [2] that x is clamped to; inverse, scale [B, R] = 1 / s, c s of each row; bounds [2, B]
    -> y [R, K]."""
    x = torch.clamp(x, limits[0], limits[1])
    y = torch.zeros_like(x)
    for b in range(bounds.shape[1]):
        v = x * inverse[b][:, None]
        y = y + scale[b][:, None] * torch.round(torch.clamp(v, bounds[0, b], bounds[1, b]))
    return y


def backward(
    x: Tensor, g: Tensor, limits: Tensor, inverse: Tensor, bounds: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """x, g [R, K]; limits [2]; inverse [B, R]; bounds [2, B]; weights [B] = c -> dL/dx [R, K], sums [2, B, R] of rows.

    The sums are those of dL/ds / c and dL/dc / s. Without weights (c = 1) the latter are left out: [1, B, R].
    """
    within = (x > limits[0]) & (x < limits[1])
    x = torch.clamp(x, limits[0], limits[1])
    dx = torch.zeros_like(x)
    ds, dc = [], []
    for b in range(bounds.shape[1]):
        n, p = bounds[0, b], bounds[1, b]
        v = x * inverse[b][:, None]
        q = torch.round(torch.clamp(v, n, p))
        inside = torch.where((v > n) & (v < p), g, 0.0)
        dx = dx + (inside if weights is None else weights[b] * inside)
        ds.append((g * q - inside * v).sum(1))
        dc.append((g * q).sum(1))
    sums = [torch.stack(rows) for rows in ((ds,) if weights is None else (ds, dc))]
    return torch.where(within, dx, 0.0), torch.stack(sums)


PASSES: dict[str, Callable] = {f.__name__: f for f in (forward, backward)}
_ready: dict[tuple[str, int], Callable] = {}  # (pass, number of bit-widths) -> compiled kernel
_device = "cpu"
_compiling = 0.0  # seconds, since `use_kernels` was called


def run(name: str, width: int, *args: Tensor) -> Tensor | tuple[Tensor, ...]:
    """Call a pass for `width` bit-widths: its kernel if it is ready and fits the tensors, else the plain function.

    A width of 1 is a plain quantizer, without weights; more are a mixture, with weights.
    """
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

    Returns the kind in force, 'compiled' or 'eager', and the seconds until kernels that this machine had not were
    compiled, by this process or by another that it waited for. Loading is not among them: every process does it.
    """
    global _device, _compiling
    _ready.clear()
    _compiling = 0.0
    if mode == "eager":
        return "eager", 0.0
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
        return "eager", 0.0  # not done once: the next process tries again
    return "compiled", _compiling


def _example(name: str, width: int) -> tuple[Tensor, ...]:
    """Arguments of a pass, of the sizes that its code is made to be fast for."""
    # Rows of at most 4096: for longer ones Inductor would sum in cascades, which are slow.
    x, steps, bounds, limits = torch.zeros(512, 2048), torch.ones(width, 512), torch.ones(2, width), torch.ones(2)
    if name == "forward":
        return x, limits, steps, steps.clone(), bounds
    return x, x.clone(), limits, steps, bounds, *([torch.ones(width)] if width > 1 else [])


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
    global _compiling
    import filelock

    path = cache_folder() / f"{name}_{width}.so"
    if not path.exists():
        start = time.perf_counter()
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path.with_suffix(".lock")):  # jobs that start together compile each kernel once
            if not path.exists():
                _compile(name, width, path)
        _compiling += time.perf_counter() - start
    # Not `aoti_load_package`: that imports Inductor (two seconds), unpacks into the system's temporary folder, where a
    # killed job leaves it, and parses the call's signature each time, which takes longer than a small kernel.
    run = torch._C._aoti.AOTIModelContainerRunnerCpu(str(path), 1).run
    return lambda *args: outputs if len(outputs := run(list(args))) > 1 else outputs[0]


def _compile(name: str, width: int, path: Path) -> None:
    import torch._inductor.config
    from torch.export import Dim, export

    class Pass(torch.nn.Module):
        def forward(self, *args: Tensor) -> Tensor | tuple[Tensor, ...]:
            return PASSES[name](*args)

    rows = Dim("r", min=2)
    x, steps = {0: rows, 1: Dim("k", min=2)}, {1: rows}
    example = _example(name, width)
    shapes = (x, None, steps, steps, None) if name == "forward" else (x, x, None, steps, None, None)
    program = export(Pass(), example, dynamic_shapes=(shapes[: len(example)],))
    package, temporary = (path.with_suffix(f".{os.getpid()}.{kind}") for kind in ("pt2", "so"))
    options = {
        "cpp.dynamic_threads": True,  # a job's threads are set when it starts, not when the kernel was built
        "aot_inductor.compile_wrapper_opt_level": "O0",  # the wrapper only passes pointers on
    }
    torch._inductor.config.deterministic = torch.are_deterministic_algorithms_enabled()
    torch._inductor.aoti_compile_and_package(program, package_path=str(package), inductor_configs=options)
    with zipfile.ZipFile(package) as archive:
        (library,) = (name for name in archive.namelist() if name.endswith(".so"))
        temporary.write_bytes(archive.read(library))
    package.unlink()
    temporary.replace(path)


def _jitted(name: str, width: int, device: str | torch.device) -> Callable:
    """The pass by `torch.compile`, run once so that its compilation, or loading from Inductor's cache, is done here."""
    global _compiling
    import torch._inductor.config
    import torch.fx.experimental._config
    from torch._dynamo.utils import counters

    # Sizes that happen to be equal must not be taken for one: each coincidence would compile the kernels again.
    torch.fx.experimental._config.use_duck_shape = False
    torch._inductor.config.deterministic = torch.are_deterministic_algorithms_enabled()
    kernel = torch.compile(PASSES[name], dynamic=True, fullgraph=True)
    start, missed = time.perf_counter(), counters["inductor"]["fxgraph_cache_miss"]
    kernel(*(x.to(device) for x in _example(name, width)))
    if counters["inductor"]["fxgraph_cache_miss"] > missed:
        _compiling += time.perf_counter() - start
    return kernel
