"""The command line without a pipeline: a timm model, a folder of images, a limit. Thin: `seam.tool` does the work."""

import hashlib
import time
from itertools import product
from pathlib import Path
from typing import Annotated, Literal

import typer

from seam import cli_options as option
from seam.errors import SeamError

TRAINING = ("gmpq", "joint", "limpq", "seam")  # methods whose steps are long enough to gain by every core
FEW_STEPS = 50  # of finetuning, below which it seldom helps


def _model(name: str, weights: Path | None, classes: int | None, **options: object):
    """`open_model`, with a line that says so."""
    from seam.runtime.progress import phase

    with phase(f"load {name}"):
        return _api().open_model(name, weights, classes, **options)


def _api():
    """The Python API, and torch with it."""
    from seam.runtime.imports import import_torch

    import_torch()
    from seam import tool

    return tool


def _limit(threads: int) -> None:
    from seam.runtime.cores import limit_threads

    limit_threads(threads)
    from seam.runtime.progress import announce

    announce()


def search(
    model: option.Model,
    out: option.Out,
    weights: option.Weights = None,
    classes: option.Classes = None,
    input: option.Input = [],  # noqa: B006
    data: option.DataOrDigits = None,
    budget: Annotated[
        list[str],
        typer.Option(help="w4a4 (the default), '1.2 GBitOPs', '0.8 MB', '3.5 bits', '4 ms'; several: all are met."),
    ] = [],  # noqa: B006
    budgets: Annotated[str, typer.Option(help="A curve, e.g. w2a2,w3a3: policy-w2a2.json, ...")] = "",
    bits: option.BitsToChoose = option.CHOICES,
    lock: option.Lock = [],  # noqa: B006
    exclude: option.Exclude = [],  # noqa: B006
    latency: Annotated[Path | None, typer.Option(help="Latency table (CSV: layer,w,a,ms), for a budget in ms.")] = None,
    method: Annotated[
        str,
        typer.Option(
            help="jacobian, jacobian_fit, sensitivity, hawq, fit, sqnr (no training), seam, joint, gmpq, limpq, "
            "uniform or random (docs/methods.md)."
        ),
    ] = "jacobian",
    steps: Annotated[int, typer.Option(min=1, help="Steps of a search that trains, on batches of 32 images.")] = 64,
    size: Annotated[
        int | None,
        typer.Option(min=8, help="Side of the search's images in pixels; by default the model's, at most 64."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: option.Device = "auto",
    threads: option.ThreadsOfSearch = None,
    data_root: option.DataRoot = option.DATA_ROOT,
) -> None:
    """Search a policy within a budget: policy.json.

    With --params: a stage of the pipeline.
    """
    _limit(threads or (option.ALL if method in TRAINING else option.SPARED))
    from seam import io
    from seam.policy import show
    from seam.policy.budget import read_spec

    given = option.stated(input)
    choices, curve = option.bits_to_choose(bits), [spec.strip() for spec in budgets.split(",") if spec.strip()]
    for spec in (*budget, *curve):
        read_spec(spec, latency is not None)  # before torch and the model are loaded, which takes longer
    if latency is not None and not any(read_spec(spec)[0] == "latency" for spec in (*budget, *curve)):
        raise SeamError(f"--latency {latency}: no budget is in ms; add --budget '4 ms'")
    api = _api()

    network = _model(model, weights, classes, **given)
    images = api.open_images(data, network, image_size=size, data_root=data_root)
    found = api.search(
        network,
        images,
        budget,
        budgets=curve,
        method=method,
        lock=lock,
        exclude=exclude,
        latency=latency,
        steps=steps,
        seed=seed,
        name=model,
        settings=choices,
        device=device,
    )
    for spec, policy in zip(curve or [""], found if curve else [found], strict=True):
        path = out.with_name(f"{out.stem}-{spec.replace(' ', '')}{out.suffix}") if curve else out
        io.write_json(path, policy)
        budget = policy["budget"]
        spent = f"{budget['spent']:.4g} of {budget['limit']:.4g} {budget['unit']} ({budget['spec']})"
        totals = policy["totals"]
        whole = f"{totals['bitops_g'] + totals['bitops_g_fixed']:.4g} GBitOPs, {totals['size_mb']:.3f} MB of weights"
        typer.echo(f"{path}: {spent}; network in all: {whole}, ONNX file about {api.file_mb(network, policy):.3f} MB")
        if len(curve) < 2:
            show.show(policy, show.terminal())


def finetune(
    policy: option.Policy,
    out: option.Out,
    data: Annotated[str, typer.Option(help=f"{option.FOLDER}; class folders are needed only where labels teach.")],
    model: option.ModelOfPolicy = "",
    weights: option.Weights = None,
    epochs: Annotated[int, typer.Option(min=1)] = 1,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    lr: Annotated[
        float | None,
        typer.Option(
            help="Learning rate.", show_default="0.005 (adamw: 2e-5) at batches of 64, in proportion at others"
        ),
    ] = None,
    optimizer: Annotated[Literal["sgd", "adamw"], typer.Option(help="sgd, or adamw for transformers.")] = "sgd",
    batch_norm: Annotated[
        Literal["re-estimated", "frozen", "updated"],
        typer.Option(
            help="Statistics: re-estimated at the end if that lowers the loss, frozen, or updated (long training)."
        ),
    ] = "re-estimated",
    distillation: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share of the loss: distance to full precision's predictions; 1: no labels."),
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: option.Device = "auto",
    threads: option.Threads = option.ALL,
    data_root: option.DataRoot = option.DATA_ROOT,
) -> None:
    """Finetune the quantized model (quantization-aware training): weights for `evaluate` and `export`.

    With --params: a stage of the pipeline.
    """
    _limit(threads)
    from seam import io

    api = _api()
    from seam.stages.resume import forget

    network, name = _of_policy(policy, model, weights)
    images = api.open_images(data, network, full_size=True, data_root=data_root)
    api.check_classes(network, images, distillation)
    quantized = api.calibrate(api.quantize(network, policy), images, device=device, level="norm")
    options = {
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "optimizer": optimizer,
        "batch_norm": batch_norm,
        "distillation": distillation,
    }
    resume = _resume_file(out, policy, weights, data, options, seed)
    an_epoch = len(images) // min(batch_size, len(images))
    if epochs * an_epoch < FEW_STEPS:
        more = f"--epochs {-(-FEW_STEPS // an_epoch)}, or a smaller --batch-size, would be more"
        typer.echo(f"only {epochs * an_epoch} steps: fewer than about {FEW_STEPS} seldom help; {more}", err=True)
    held = api.held_out(data, network, data_root=data_root)
    before = held and api.evaluate(quantized, held, device=device)
    history = api.finetune(quantized, images, **options, teacher=network, seed=seed, resume=resume, device=device)
    after = held and api.evaluate(quantized, held, device=device)
    io.save_tensors(out, quantized.state_dict(), {"policy": io.sha256(policy), "model": name})
    forget(resume)
    first, last = history[0], history[-1]
    typer.echo(
        f"finetune: {name}, {len(images)} images, {last['step']} steps, "
        f"loss {first['loss']:.3f} -> {last['loss']:.3f}, {out}"
    )
    if held is None:
        typer.echo(
            "not measured: that takes train/ and val/, both with a folder for each class of the model, or `evaluate`"
        )
    else:
        measured = (f"{key} {before[key]:g} -> {after[key]:g}" for key in ("top1", "loss"))
        typer.echo(f"on {len(held)} held-out images, calibrated -> finetuned: {', '.join(measured)}")
        if after["top1"] < before["top1"]:
            typer.echo(
                "finetuning made it worse: take what `seam calibrate` writes, from which it began, "
                "or finetune longer, on more images or with a lower --lr",
                err=True,
            )


def calibrate(
    policy: option.Policy,
    out: option.Out,
    data: Annotated[str, typer.Option(help="Images: a folder (class folders are not needed), or a dataset's name.")],
    model: option.ModelOfPolicy = "",
    weights: option.Weights = None,
    level: Annotated[str, typer.Option(help="steps, output, norm or reconstruct (docs/calibration.md).")] = "norm",
    images: Annotated[int, typer.Option(min=1, help="How many images are looked at.")] = 256,
    iterations: Annotated[int | None, typer.Option(min=1, help="reconstruct: iterations a block.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: option.Device = "auto",
    threads: option.Threads = option.ALL,
    data_root: option.DataRoot = option.DATA_ROOT,
) -> None:
    """Quantize well without training: weights for `evaluate` and `export`, from a few hundred images without labels."""
    _limit(threads)
    from seam import io

    api = _api()
    from seam.stages.resume import forget

    if weights is not None and api.is_finetuned(weights):
        raise SeamError(f"{weights}: weights of a quantized model; give full-precision ones")
    network, name = _of_policy(policy, model, weights)
    shown = api.open_images(data, network, full_size=True, data_root=data_root)
    settings = {} if iterations is None else {"iterations": iterations}
    resume = _resume_file(out, policy, weights, data, settings, level, images, seed, device, threads)
    quantized = api.quantize(network, policy)
    start = time.perf_counter()
    api.calibrate(quantized, shown, images, device, level=level, settings=settings, seed=seed, resume=resume)
    seconds = time.perf_counter() - start
    io.save_tensors(out, quantized.state_dict(), {"policy": io.sha256(policy), "model": name, "level": level})
    forget(resume)
    typer.echo(f"calibrate: {name}, {level}, {min(images, len(shown))} images, {seconds:.0f} s, {out}")


def evaluate(
    data: option.Data,
    policy: Annotated[Path | None, typer.Option(help="Policy file; without it the model in full precision.")] = None,
    onnx: Annotated[Path | None, typer.Option(help="A file of `seam export` instead, run by onnxruntime.")] = None,
    model: option.ModelOfPolicy = "",
    weights: option.Weights = None,
    classes: option.Classes = None,
    input: option.Input = [],  # noqa: B006
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Also write the metrics here (JSON).")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    device: option.Device = "auto",
    threads: option.Threads = option.ALL,
    data_root: option.DataRoot = option.DATA_ROOT,
) -> None:
    """Measure the quantized model: with weights of `finetune`, or full-precision ones (then only calibrated).

    Without --policy: the model itself, in full precision. --onnx: an exported file, on images prepared as it says.
    With --params: a stage of the pipeline.
    """
    _limit(threads)
    from seam import io

    given = option.stated(input)
    if policy is not None and given:
        raise SeamError("evaluate: --input is for a model without --policy; a policy says how images are prepared")
    if onnx is not None and (policy or model or weights or given):
        raise SeamError("evaluate: --onnx takes a file that says all itself: leave out --policy, --model and --weights")
    api = _api()
    if onnx is not None:
        network, name = api.OnnxFile(onnx), onnx.name
    elif policy is not None:
        network, name = _quantized(policy, model, weights, data, data_root, device)
    else:
        network, name = _full_precision(model, weights, classes, **given), f"{model} in full precision"
    images = api.open_images(data, network, "test", full_size=True, data_root=data_root)
    metrics = network.evaluate(images, batch_size) if onnx else api.evaluate(network, images, batch_size, device)
    if out is not None:
        io.write_json(out, metrics)
    measured = ", ".join(f"{key} {value:g}" for key, value in metrics.items())
    typer.echo(f"evaluate: {name}, {len(images)} images, {measured}")


def export(
    policy: option.Policy,
    out: option.Out,
    data: option.DataOrDigits = None,
    model: option.ModelOfPolicy = "",
    weights: option.Weights = None,
    opset: Annotated[int | None, typer.Option(help="ONNX opset; by default 25 if a layer has 2 bits, else 21.")] = None,
    images: Annotated[int, typer.Option(min=1, help="Images of the parity check.")] = 256,
    device: option.Device = "auto",
    threads: option.Threads = option.ALL,
    data_root: option.DataRoot = option.DATA_ROOT,
) -> None:
    """Write the quantized model as ONNX, run it in onnxruntime on images, and compare: NAME.parity.json beside it.

    A file that computes something else is named NAME.unverified.onnx.
    """
    _limit(threads)
    from seam import io

    api = _api()

    quantized, name = _quantized(policy, model, weights, data, data_root, device)
    shown = api.open_images(data, quantized, "test", full_size=True, data_root=data_root) if data else None
    stored = {"policy_sha256": io.sha256(policy)}
    report = api.export(quantized, out, shown, count=images, opset=opset, name=name, metadata=stored)
    top1 = ", ".join(f"{key} {report[key]:g}" for key in ("top1_onnxruntime", "top1_pytorch") if key in report)
    ties = f" but for rounding ties in {report['images_with_ties']}" if report["images_with_ties"] else ""
    typer.echo(
        f"export: {name}, {out}: {report['file_mb']:.3f} MB, opset {report['opset']}, equal to PyTorch on "
        f"{report['images']} images{ties}{top1 and ', ' + top1}"
    )


def layers(
    model: option.Model,
    weights: option.Weights = None,
    classes: option.Classes = None,
    input: option.Input = [],  # noqa: B006
    lock: option.Lock = [],  # noqa: B006
    exclude: option.Exclude = [],  # noqa: B006
    bits: option.BitsToChoose = option.CHOICES,
    latency_template: Annotated[
        Path | None, typer.Option(help="Also write a latency table here (CSV), its milliseconds for you to measure.")
    ] = None,
) -> None:
    """List a model's layers, for --lock and --exclude: their names, costs, and which read the same tensor."""
    _limit(1)
    choices = option.bits_to_choose(bits)
    api = _api()
    from seam import io
    from seam.models.find import find_layers
    from seam.models.locks import apply_locks
    from seam.policy import show
    from seam.policy.cost import latency_template as latency_template_of

    network = _model(model, weights, classes, untrained=True, **option.stated(input))
    size = api.input_size(network)
    found = apply_locks(find_layers(network, size), lock, exclude)
    show.layers(model, size, found, show.terminal())
    if latency_template is not None:
        pairs = choices["pairs"] or tuple(product(choices["bits"], repeat=2))
        io.write_text(latency_template, latency_template_of(found, pairs))


def _resume_file(out: Path, policy: Path, weights: Path | None, *settings: object) -> Path:
    """Where a command that makes `out` keeps its checkpoint; other settings or inputs have another one."""
    from seam import io

    key = repr([io.sha256(policy), str(weights and io.sha256(weights)), *settings])
    return out.with_name(f".{out.stem}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.resume.safetensors")


def _full_precision(model: str, weights: Path | None, classes: int | None, **stated: object):
    """The model as it is, for a baseline."""

    if not model:
        raise SeamError("evaluate: give --policy, or --model for a model in full precision")
    if weights is not None and _api().is_finetuned(weights):
        raise SeamError(f"{weights}: weights of a quantized model; give the --policy that they were tuned under")
    return _model(model, weights, classes, **stated)


def _of_policy(policy: Path, model: str, weights: Path | None, *, untrained: bool = False):
    """The full-precision model that a policy is for, and its name."""
    from seam.policy.file import read_policy
    from seam.runtime.progress import phase

    name = model or read_policy(policy).get("model", {}).get("name", "")
    with phase(f"load {name or 'the model'}"):
        return _api().model_of(policy, weights, name=name, untrained=untrained), name


def _quantized(policy: Path, model: str, weights: Path | None, data: str | None, data_root: Path, device: str):
    """The quantized model with the weights of `seam finetune`, or calibrated from full-precision ones."""
    api = _api()

    tuned = weights is not None and api.is_finetuned(weights)
    network, name = _of_policy(policy, model, None if tuned else weights, untrained=tuned)
    quantized = api.quantize(network, policy)
    if tuned:
        return api.load_finetuned(quantized, weights), name
    level = "norm"
    if data is None:
        level = "output"  # loses less than `norm` with images of another kind (docs/calibration.md)
        typer.echo("no --data: calibrated on scikit-learn's digits, which serves tests only", err=True)
    images = api.open_images(data, network, full_size=True, data_root=data_root)
    return api.calibrate(quantized, images, device=device, level=level), name
