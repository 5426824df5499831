"""Block reconstruction: the rounding of weights and the steps of activations of one block at a time are learned, so
that the quantized block's output is that of full precision (BRECQ, Li et al. 2021).

Weights: AdaRound (`rounding`). Activations: a block's inputs are mixed from those that the quantized network so far
hands on and those of full precision, and in a step each element of an activation is quantized or not, at random (QDrop,
Wei et al. 2022). Biases and normalisation, which stay in full precision, are learned as well (Hubara et al. 2021, 4.3).

AdaRound presses roundings to be decided by a regulariser, whose weight must fit each layer: with the few iterations
that a CPU can afford, half of a small layer's weights were still between up and down at the end, and rounding them then
undid what was learned. So, as in TesseraQ (Li & Panda 2024, arXiv 2410.19103), those that are nearest to a decision are
decided for good as the iterations go by, a share of each layer, and the others make up for them. All outputs weigh
alike (BRECQ weighs them by Fisher information).
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seam.calibration.blocks import Unit, find_units
from seam.calibration.rounding import bake, soften
from seam.errors import SeamError
from seam.quant.quantizer import Quantizer, weight_quantizer
from seam.runtime.memory import enough_memory
from seam.runtime.meter import Meter
from seam.runtime.progress import progress
from seam.settings import Reconstruction
from seam.training.checkpoint import Checkpoints, Run
from seam.training.stop import Stop

_FORWARD = 16  # images of a pass without gradients
_ELEMENTS = 2**20  # of a unit's input and output together in one step, ...
_LEAST = 4  # ... and images at least
_MEASURED = 64  # images on which a unit's error is measured before


def reconstruct(
    model: nn.Module,
    teacher: nn.Module,
    images: Any,
    settings: Reconstruction,
    seed: int,
    device: torch.device,
    resume: Path | None = None,
) -> list[dict[str, Any]]:
    """Learn a quantized model's rounding and steps, unit by unit and in place; returns a row for each unit.

    A row: unit, layers, error_before and error: squared error of the unit's output relative to its square, with weights
    rounded to the nearest and as learned, on inputs of the quantized network so far.

    Args:
        model: quantized, its steps set (`fit_to_outputs`); it stays in evaluation mode, BatchNorm's statistics as they
            are.
        teacher: the same network in full precision.
        images: a seam.data.image_sets.ImageSet; labels are not read. Of each the inputs of one unit, as they are and in
            full precision, and its outputs are held in half precision, besides one copy while they are made.
        resume: checkpoint file, written after each unit; where it exists the work goes on from it and ends the same.

    Raises: SeamError for errors that are not finite, and where memory runs out; SystemExit, KeyboardInterrupt (`Stop`).
    """
    units = find_units(model, images.shape)
    run = Run(model, [], Meter(device))
    checkpoints = Checkpoints(resume)
    checkpoints.restore(run)
    trained = {parameter for parameter in model.parameters() if parameter.requires_grad}
    model.eval().requires_grad_(False)
    teacher.eval().requires_grad_(False)
    settled: set[int] = set()  # quantizers of inputs that an earlier unit has learned

    def batches() -> Iterator[Tensor]:
        return (x for x, _ in images.batches(_FORWARD, device=device))

    def steps() -> Iterator[None]:
        given, wanted = [], []
        for number, unit in enumerate(units):
            if unit.chained:
                full = wanted
            else:
                given, full = (_held(unit.inputs(network, batches())) for network in (model, teacher))
            wanted = _outputs(unit, teacher, full)
            if number >= run.step:
                generator = torch.Generator(device).manual_seed(seed * 100_003 + number)
                before = _error(_outputs(unit, model, [x[:_MEASURED] for x in given]), wanted)
                for _ in _learn(unit, model, given, full, wanted, settings, generator, settled):
                    yield
                    if stop.signum is not None:
                        return
            settled.update(id(model.get_submodule(name).input_quantizer) for name in unit.layers)
            given = _outputs(unit, model, given)
            if number >= run.step:
                error = _error(given, wanted)
                if not error < float("inf"):
                    raise SeamError(f"reconstruct: the output of {unit.name} is not finite; lower lr or step_lr")
                row = {"unit": unit.name, "layers": len(unit.layers), "error_before": before, "error": error}
                run.history.append({key: round(v, 6) if isinstance(v, float) else v for key, v in row.items()})
                run.step = number + 1
                checkpoints.save(run)

    try:
        with enough_memory("reconstruct", "the number of images", len(images)), Stop() as stop:
            for _ in progress(steps(), (len(units) - run.step) * settings.iterations, "reconstruct"):
                pass
            if stop.signum is not None:
                kept = "the same command goes on from there" if resume else "no checkpoint of it was written"
                stop.leave(f"stopped in block {run.step + 1} of {len(units)}; {kept}")
    finally:
        for parameter in model.parameters():
            parameter.requires_grad_(parameter in trained)
    return run.history


def _learn(
    unit: Unit,
    model: nn.Module,
    given: list[Tensor],
    full: list[Tensor],
    wanted: list[Tensor],
    settings: Reconstruction,
    generator: torch.Generator,
    settled: set[int],
) -> Iterator[None]:
    """Learn a unit in place, one iteration a turn.

    given, full: its inputs, of the quantized network so far and in full precision; wanted: its outputs in the latter.
    """
    layers = [model.get_submodule(name) for name in unit.layers]
    inputs = {id(layer.input_quantizer): layer.input_quantizer for layer in layers}
    quantizers = [weight_quantizer(layer) for layer in layers]
    roundings = [soften(layer) for layer in layers]
    soft = [rounding for rounding in roundings if rounding is not None]
    optimizer = _optimizer(
        [rounding.logits for rounding in soft],
        [quantizer.log_step for key, quantizer in inputs.items() if key not in settled],
        [p for name in unit.names for n, p in model.get_submodule(name).named_parameters() if _is_affine(n, p)],
        settings,
    )
    count, an_image = len(wanted[0]), sum(x[0].numel() for x in (*given, *wanted))
    batch = min(count, settings.batch_size, max(_LEAST, _ELEMENTS // an_image))
    power = sum(_power(w[:_MEASURED]) for w in wanted)
    try:
        with _dropping(inputs.values(), settings.drop, generator):
            for iteration in range(settings.iterations):
                done = iteration / settings.iterations
                rows = torch.randperm(count, generator=generator, device=generator.device)[:batch]
                x = [_mixed(a[rows], b[rows], settings.drop, generator) for a, b in zip(given, full, strict=True)]
                y = unit.run(model, x)
                loss = sum((a - b[rows]).square().mean() for a, b in zip(y, wanted, strict=True)) / power
                optimizer.zero_grad()
                loss.backward()
                for group in optimizer.param_groups:
                    group["lr"] = group["start"] * (1 if group["constant"] else 0.5 * (1 + math.cos(math.pi * done)))
                optimizer.step()
                for rounding in soft:
                    rounding.decide(_decided(done, settings))
                yield
    finally:
        for layer, rounding, quantizer in zip(layers, roundings, quantizers, strict=True):
            if rounding is not None:
                bake(layer, rounding, quantizer)
        model.requires_grad_(False)


def _decided(done: float, settings: Reconstruction) -> float:
    """Share of a layer's weights whose rounding is decided when a share `done` of the iterations is: most early on."""
    left = 1 - (done - settings.warm_up) / max(settings.decided - settings.warm_up, 1e-9)
    return 1 - min(max(left, 0.0), 1.0) ** 2


def _optimizer(
    logits: list[Tensor], steps: list[Tensor], affine: list[Tensor], settings: Reconstruction
) -> torch.optim.Optimizer:
    """Adam for what a unit learns; the rates of steps and affine parameters fall to 0, by a cosine."""
    rates = ((logits, settings.lr), (steps, settings.step_lr), (affine, settings.affine_lr))
    groups = [
        {"params": [p.requires_grad_() for p in params], "start": lr, "constant": params is logits}
        for params, lr in rates
        if params and lr
    ]
    return torch.optim.Adam(groups, fused=True)


def _is_affine(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a bias or a normalisation's or layer scale's weight: a number a channel."""
    return parameter.dim() == 1 and not name.endswith("log_step")


@contextmanager
def _dropping(quantizers: Iterable[Quantizer], share: float, generator: torch.Generator) -> Iterator[None]:
    """Within the context a share of each quantizer's elements passes as it is, drawn anew in each call."""

    def drop(_: nn.Module, args: tuple, quantized: Tensor) -> Tensor:
        return _Choice.apply(_drawn(args[0], share, generator), args[0], quantized)

    hooks = [quantizer.register_forward_hook(drop) for quantizer in quantizers] if share else []
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Choice(torch.autograd.Function):
    """torch.where(mask, a, b) for tensors of one shape; its gradients take one pass each, not two."""

    @staticmethod
    def forward(ctx: Any, mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        return torch.where(mask, a, b)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, Tensor]:
        (mask,) = ctx.saved_tensors
        of_b = torch.where(mask, 0.0, gradient)
        return None, gradient - of_b, of_b


def _mixed(given: Tensor, full: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Inputs of which a share of the elements is in full precision; with a gradient, so that their step is learned."""
    x = given.float()
    if share:
        x = torch.where(_drawn(x, share, generator), full.float(), x)
    return x.requires_grad_()


def _drawn(like: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Booleans of a tensor's shape and order of memory, of which a share, in steps of 1/256, is true.

    A random byte each: a draw of torch's own `bernoulli_` an element takes longer than the convolutions.
    """
    words = torch.empty(-(-like.numel() // 8), dtype=torch.int64, device=like.device)
    drawn = words.random_(-(2**63), None, generator=generator).view(torch.int8)
    order = torch.empty_like(like, device="meta").stride()  # without gaps
    return drawn.as_strided(like.shape, order) <= max(round(share * 256), 1) - 129


def _held(batches: Iterable[list[Tensor]]) -> list[Tensor]:
    """The tensors of all batches, in half precision where that holds them."""
    parts = [[_half(x) for x in batch] for batch in batches]
    return [torch.cat(column) for column in zip(*parts, strict=True)]


def _half(x: Tensor) -> Tensor:
    half = x.half()
    return half if half.isfinite().all() or not x.isfinite().all() else x.clone()


@torch.no_grad()
def _outputs(unit: Unit, model: nn.Module, inputs: list[Tensor]) -> list[Tensor]:
    """The unit's outputs for all inputs, held as these."""
    parts = zip(*(x.split(_FORWARD) for x in inputs), strict=True)
    return _held(unit.run(model, [x.float() for x in part]) for part in parts)


def _power(x: Tensor) -> float:
    return x.float().square().mean().item()


def _error(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Squared error relative to the square of what is wanted, on as many images as there are of both."""
    pairs = [(a, b[: len(a)]) for a, b in zip(found, wanted, strict=True)]
    return sum(_power(a.float() - b.float()) for a, b in pairs) / max(sum(_power(b) for _, b in pairs), 1e-30)
