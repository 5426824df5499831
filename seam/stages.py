"""The pipeline's stages: each reads its inputs, calls the part that does the work, writes its folder of results."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from seam import io, provenance
from seam.params import Job, Params
from seam.runtime import Meter, import_torch, set_up


def fetch(params: Params, out: Path) -> None:
    """Make the target dataset available and describe it: manifest.json."""
    from seam.data.fetch import fetch as fetch_dataset

    manifest = fetch_dataset(params.target.dataset, params.data_root, params.target.path)
    io.write_json(out / "manifest.json", manifest)
    provenance.record(params, "fetch", {}, [], [out / "manifest.json"])
    print(f"fetch: {params.target.dataset}, {manifest['train']['count']} + {manifest['test']['count']} images")


def pretrain(params: Params, model: str, data: Path, out: Path) -> None:
    """Train the full-precision target model (or take given weights) and measure it."""
    import_torch()
    import torch

    from seam import training
    from seam.evaluate import evaluate as measure
    from seam.models import find_layers

    settings, spec = params.pretrain, params.model(model)
    inputs = [data, Path(spec.weights)] if spec.weights else [data]
    provenance.check_inputs(params, inputs)
    device = set_up(params.device, settings.threads, settings.seed)
    meter = Meter(device)
    with meter.part("setup"):
        network, size = _network(params, model)
        train = _target(params, model, network, "train", settings.images, settings.seed)
        test = _target(params, model, network, "test", params.target.test_images)
        layers = find_layers(network, size)
        for budget in params.grid.budgets:  # refused now, not after the training
            for search in params.grid.searches:
                _budgets(params, model, budget, _locked(params, model, layers), params.settings(search).bits)
        network = network.to(device, memory_format=torch.channels_last)
    history: list[dict[str, Any]] = []
    resume = _resume_file(params, "pretrain", {"model": model}, inputs)
    if spec.from_scratch or spec.train:
        label = f"pretrain {model}"
        history = training.train(network, settings, train, settings.seed, device, meter, resume=resume, label=label)
    with meter.part("evaluate"):
        metrics = measure(network, test, params.evaluate.batch_size, device)
    io.save_tensors(out / "fp.safetensors", network.state_dict())
    about = {"name": spec.name, "num_classes": len(train.classes), "in_chans": size[0], "input_size": list(size)}
    io.write_json(out / "layers.json", {"model": about, "layers": [layer._asdict() for layer in layers]})
    io.write_csv(out / "history.csv", history, TRAIN_COLUMNS)
    io.write_json(out / "metrics.json", {**metrics, "images": len(test)})
    io.write_json(out / "cost.json", meter.cost())
    outputs = [out / n for n in ("fp.safetensors", "layers.json", "history.csv", "metrics.json", "cost.json")]
    provenance.record(params, "pretrain", {"model": model}, inputs, outputs)
    _forget(resume)
    print(f"pretrain: {model}, top-1 {metrics['top1']:.2f} %, {meter.seconds():.0f} s")


def sample(params: Params, model: str, search: str, weights: Path, out: Path) -> None:
    """Choose a search's proxy images: proxy.json."""
    provenance.check_inputs(params, [weights], {"model": model})
    proxy = params.proxy(search)
    if proxy is None:
        content: dict[str, Any] = {"dataset": None, "count": 0}
    else:
        from seam.data.fetch import fetch as fetch_dataset
        from seam.data.proxy import describe_proxy

        target = manifest = _manifest(params)  # the fetch stage has verified the target
        if params.target.image_size:
            target = {**target, "image_size": [params.target.image_size] * 2}
        if (proxy.dataset, proxy.path) != (params.target.dataset, params.target.path):
            manifest = fetch_dataset(proxy.dataset, params.data_root, proxy.path)
        as_trained = params.model(model).preprocessing == "model"
        found = partial(_feature_model, params, model, weights)
        content = describe_proxy(proxy, manifest, target, params.data_root, found, as_trained)
    io.write_json(out / "proxy.json", content)
    provenance.record(params, "sample", {"model": model, "search": search}, [weights], [out / "proxy.json"])
    print(f"sample: {model}-{search}, " + (f"{content['count']} images of {proxy.dataset}" if proxy else "no images"))


def search(params: Params, job: Job, weights: Path, proxy: Path, out: Path) -> None:
    """Search a policy on the proxy: policy.json, cost.json, history.csv."""
    if params.proxy(job.search) is not None:
        import_torch()
    from seam.layers import Layer
    from seam.policy import make_policy
    from seam.search import load_method, needs_classifier, needs_kernels, needs_network, solve
    from seam.search.problem import Problem
    from seam.tracking import live

    described = weights.with_name("layers.json")
    inputs = [weights, described, proxy]
    if table := params.model(job.model).latency:
        inputs.append(Path(table))
    provenance.check_inputs(params, inputs, job)
    settings, method = params.settings(job.search), load_method(params.method(job.search))
    device = network = images = None
    if needs_network(method) or params.proxy(job.search) is not None:
        device = set_up(params.device, settings.threads, job.seed)
    meter = Meter(device)
    with meter.part("setup"):
        model, about = io.read_json(described), io.read_json(proxy)
        layers = _locked(params, job.model, [Layer(**layer) for layer in model["layers"]])
        budgets = _budgets(params, job.model, job.budget, layers, settings.bits)
        if device is not None:
            network, images = _searched(params, job, weights, about, device, meter, needs_classifier(method))
    if images is not None and needs_kernels(method):
        from seam.quant.kernels import use_kernels

        with meter.part("kernels"):
            meter.kernels, meter.seconds_once = use_kernels(settings.kernels, (1, len(settings.bits)), device)
    resume = _resume_file(params, "search", job._asdict(), inputs)
    with live(params, job, "search") as log:
        problem = Problem(network, layers, images, budgets, settings, job.seed, device, meter, resume, live=log.log)
        preferences = method.preferences(problem)
    with meter.part("solve"):
        assigned = solve(method, problem, preferences, budgets)
    cost = meter.cost(**{"logit_entropy": None, **problem.report})
    policy = make_policy(
        layers,
        assigned,
        budgets[0],
        {"alias": job.model, **model["model"]},
        method=params.method(job.search),
        search=job.search,
        seed=job.seed,
        more_budgets=budgets[1:],
        proxy=about,
        cost=cost,
        versions=True,
    )
    io.write_json(out / "policy.json", policy)
    io.write_csv(out / "history.csv", problem.history, list(next(iter(problem.history), SEARCH_COLUMNS)))
    io.write_json(out / "cost.json", cost)
    outputs = [out / n for n in ("policy.json", "cost.json", "history.csv")]
    provenance.record(params, "search", job._asdict(), inputs, outputs)
    _forget(resume)
    print(f"search: {job.name}, {policy['budget']['share']:.3f} of the budget, {meter.seconds():.1f} s")


def finetune(params: Params, job: Job, weights: Path, policy: Path, out: Path) -> None:
    """Quantization-aware training of the target model under a policy: model.safetensors."""
    import_torch()
    from seam import training
    from seam.quant.kernels import use_kernels
    from seam.tracking import live

    provenance.check_inputs(params, [weights, policy], job)
    settings = params.finetune
    device = set_up(params.device, settings.threads, job.seed)
    meter = Meter(device)
    with meter.part("kernels"):
        meter.kernels, meter.seconds_once = use_kernels(settings.kernels, device=device)
    with meter.part("setup"):
        network, train, _, _ = _quantized(params, job, weights, policy, device)
    resume = _resume_file(params, "finetune", job._asdict(), [weights, policy])
    with live(params, job, "finetune") as log:
        more = {"live": log.log, "label": f"finetune {job.name}"}
        history = training.train(network, settings, train, job.seed, device, meter, resume=resume, **more)
    io.save_tensors(out / "model.safetensors", network.state_dict())
    io.write_csv(out / "history.csv", history, TRAIN_COLUMNS)
    io.write_json(out / "cost.json", meter.cost())
    outputs = [out / n for n in ("model.safetensors", "history.csv", "cost.json")]
    provenance.record(params, "finetune", job._asdict(), [weights, policy], outputs)
    _forget(resume)
    print(f"finetune: {job.name}, {meter.seconds():.0f} s")


def evaluate(params: Params, job: Job, weights: Path, policy: Path, finetuned: Path, out: Path) -> None:
    """Measure a policy on the target's test set, calibrated only and after finetuning: metrics.json, hits.json."""
    import_torch()
    from seam.evaluate import evaluate_each as measure
    from seam.policy import totals
    from seam.quant.kernels import use_kernels
    from seam.results import pack

    inputs = [weights, weights.with_name("metrics.json"), policy, finetuned]
    provenance.check_inputs(params, inputs, job)
    device = set_up(params.device, params.evaluate.threads, job.seed)
    use_kernels(params.finetune.kernels, device=device)
    network, _, layers, bits = _quantized(params, job, weights, policy, device)
    test = _target(params, job.model, network, "test", params.target.test_images)
    calibrated, hits_before = measure(network, test, params.evaluate.batch_size, device)
    network.load_state_dict(io.load_tensors(finetuned))
    tuned, hits = measure(network, test, params.evaluate.batch_size, device)
    full = io.read_json(weights.with_name("metrics.json"))
    keys = ("top1", "top5", "class_margin")
    metrics = {
        **tuned,
        **{f"calibrated_{k}": calibrated[k] for k in keys},
        **{f"fp_{k}": full[k] for k in keys},
        **{k: v for k, v in totals(layers, bits).items() if k in ("bitops_g", "bitops_g_fixed", "size_mb")},
        "budget_share": io.read_json(policy).get("budget", {}).get("share"),
        "images": len(test),
    }
    io.write_json(out / "metrics.json", metrics)
    packed = {"top1": pack(hits.numpy()), "calibrated_top1": pack(hits_before.numpy())}
    io.write_json(out / "hits.json", {"images": len(test), **packed})
    outputs = [out / n for n in ("metrics.json", "hits.json")]
    provenance.record(params, "evaluate", job._asdict(), inputs, outputs)
    print(
        f"evaluate: {job.name}, top-1 {metrics['top1']:.2f} % "
        f"(full precision {metrics['fp_top1']:.2f}, calibrated only {metrics['calibrated_top1']:.2f}), "
        f"{metrics['bitops_g']:.3f} GBitOPs, {metrics['size_mb']:.2f} MB"
    )


def _manifest(params: Params) -> dict[str, Any]:
    """The target's manifest."""
    from seam.data.fetch import described

    return described(params.target.dataset, params.data_root, params.target.path)


def _target(params: Params, model: str, network: Any, split: str, count: int | None = None, seed: int = 0) -> Any:
    """The target's images as a model wants them, or a fixed class-balanced part of them."""
    from seam.data.loaders import load
    from seam.data.sampling import sample_indices

    target = params.target
    images = load(target.dataset, params.data_root, split, target.path, image_size=target.image_size)
    _prepared(params, model, network, images)
    if count is None or count >= len(images):
        return images
    return images.subset(sample_indices(images.labels.numpy(), count, "balanced", seed))


def _prepared(params: Params, model: str, network: Any, images: Any) -> None:
    """Give images the preprocessing that timm states for the network, where its parameters say so."""
    from seam.data.loaders import prepare_as_trained

    if params.model(model).preprocessing == "model":
        prepare_as_trained(images, network.pretrained_cfg)


def _network(params: Params, model: str, weights: Path | None = None) -> tuple[Any, tuple[int, int, int]]:
    """The target's model, with weights if given, and its input size (C, H, W)."""
    from seam.models import build, input_size, load_weights

    manifest = _manifest(params)
    size = input_size(manifest["channels"], params.target.image_size or manifest["image_size"])
    network = build(params.model(model), len(manifest["classes"]), size[0])
    if weights is not None:
        load_weights(network, weights)
    return network, size


def _searched(
    params: Params, job: Job, weights: Path, about: dict[str, Any], device: Any, meter: Any, classifier: bool
) -> tuple[Any, Any]:
    """A search's network, if it asks for it with a classifier of its proxy's classes, and the images that proxy.json
    describes (or None)."""
    import torch

    from seam.data.loaders import load
    from seam.models import input_size, replace_head, total_macs
    from seam.taps import cut_taps

    network, (channels, *_) = _network(params, job.model, weights)
    images = None
    if (proxy := params.proxy(job.search)) is not None:
        size = tuple(about["image_size"])
        images = load(proxy.dataset, params.data_root, proxy.split, proxy.path, about["indices"], size, channels)
        _prepared(params, job.model, network, images)
        if classifier and (proxy.dataset, proxy.path) != (params.target.dataset, params.target.path):
            replace_head(network, len(images.classes))
        seen = input_size(channels, images.image_size)
        cut_taps(network, seen)
        meter.macs_per_image = total_macs(network, seen)
    return network.to(device, memory_format=torch.channels_last), images


def _quantized(
    params: Params, job: Job, weights: Path, policy: Path, device: Any
) -> tuple[Any, Any, Any, dict[str, tuple[int, int]]]:
    """The target's model under a policy, calibrated on its first finetuning images; these, its layers, their bits."""
    import torch

    from seam.models import find_layers
    from seam.policy import load_policy, policy_layers
    from seam.quant.apply import calibrate, quantize

    network, size = _network(params, job.model, weights)
    layers = find_layers(network, size)
    bits = load_policy(policy, layers)
    layers = policy_layers(io.read_json(policy), layers)
    network = quantize(network.to(device, memory_format=torch.channels_last), bits, layers, size)
    train = _target(params, job.model, network, "train", params.finetune.images, params.finetune.seed)
    batches = train.batches(min(CALIBRATION_IMAGES, len(train)), seed=params.finetune.seed, device=device)
    calibrate(network, [next(iter(batches))])
    return network, train, layers, bits


def _locked(params: Params, model: str, layers: Any) -> Any:
    """A model's layers, with the bits that its parameters lock and the layers that they exclude."""
    from seam.locks import apply_locks

    return apply_locks(layers, params.model(model).lock, params.model(model).exclude)


def _budgets(params: Params, model: str, budget: str, layers: Any, bits: Iterable[int]) -> list[Any]:
    """The limits that a budget of the parameters stands for; refused when no policy meets them."""
    from seam.cost import parse_budgets, read_latency

    table = params.model(model).latency
    return parse_budgets(params.budget(budget), layers, bits, read_latency(table, layers) if table else None)


def _feature_model(params: Params, model: str, weights: Path) -> Any:
    """The pretrained target model and its device, for sampling by features."""

    device = set_up(params.device, params.pretrain.threads, 0)
    return _network(params, model, weights)[0].to(device), device


def _forget(resume: Path) -> None:
    """Delete the checkpoints of a finished job."""
    for path in resume.parent.glob(f"{resume.stem}*"):
        path.unlink()


def _resume_file(params: Params, stage: str, job: dict[str, Any], inputs: Iterable[Path]) -> Path:
    """Checkpoint file of a job; another parameter or input gives another file, so a stale one is never resumed."""
    import hashlib
    import json

    key = json.dumps([params.slice(stage, **job), job, [io.sha256(path) for path in inputs]], sort_keys=True)
    return Path(params.results) / ".resume" / f"{stage}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.pt"


CALIBRATION_IMAGES = 512
TRAIN_COLUMNS = ("step", "epoch", "loss", "top1", "lr", "seconds")
SEARCH_COLUMNS = ("step", "epoch", "loss", "budget", "entropy", "lr", "seconds")  # of a method that takes no steps
