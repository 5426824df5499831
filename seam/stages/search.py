"""`seam search --params`: a policy, searched on the proxy."""

from pathlib import Path
from typing import Any

from seam import io
from seam.experiment import provenance
from seam.experiment.params import Job, Params
from seam.runtime.imports import import_torch
from seam.runtime.process import set_up

COLUMNS = ("step", "epoch", "loss", "budget", "entropy", "lr", "seconds")  # of a method that takes no steps


def search(params: Params, job: Job, weights: Path, proxy: Path, out: Path) -> None:
    """Search a policy within the budget and write policy.json, cost.json and history.csv."""
    if params.proxy(job.search) is not None:
        import_torch()
    from seam.experiment.results import read_layers, read_proxy
    from seam.policy.file import make_policy
    from seam.runtime.meter import Meter
    from seam.search.interface import load_method, needs_network
    from seam.search.problem import prepare, solve
    from seam.stages.resume import forget, resume_file
    from seam.stages.target import budgets_of, locked_layers
    from seam.tracking.live import live

    described = weights.with_name("layers.json")
    inputs = [weights, described, proxy]
    if table := params.model(job.model).latency:
        inputs.append(Path(table))
    provenance.check_inputs(params, inputs, job)
    settings, method = params.settings(job.search), load_method(params.method(job.search))
    device = network = images = None
    own = True
    if needs_network(method) or params.proxy(job.search) is not None:
        device = set_up(params.device, settings.threads, job.seed)
    meter = Meter(device)
    with meter.part("setup"):
        (model, found), about = read_layers(described), read_proxy(proxy)
        layers = locked_layers(params, job.model, found)
        budgets = budgets_of(params, job.model, job.budget, layers, settings)
        if device is not None:
            network, images, own = _network_and_images(params, job, weights, about)
    problem = prepare(method, network, images, layers, budgets, settings, job.seed, device, meter, own_classes=own)
    problem.resume = resume = resume_file(params, "search", job._asdict(), inputs)
    with live(params, job, "search", meter) as log:
        problem.live = log.log
        preferences = method.preferences(problem)
    with meter.part("solve"):
        assigned = solve(method, problem, preferences, budgets)
    cost = meter.cost(**{"logit_entropy": None, **problem.report})
    policy = make_policy(
        layers,
        assigned,
        budgets[0],
        {"alias": job.model, **model},
        method=params.method(job.search),
        search=job.search,
        seed=job.seed,
        more_budgets=budgets[1:],
        proxy=about,
        cost=cost,
        versions=True,
    )
    outputs = [out / n for n in ("policy.json", "cost.json", "history.csv")]
    with provenance.writing(params, "search", job, inputs, outputs) as folder:
        io.write_json(folder / "policy.json", policy)
        io.write_csv(folder / "history.csv", problem.history, list(next(iter(problem.history), COLUMNS)))
        io.write_json(folder / "cost.json", cost)
    forget(resume)
    print(f"search: {job.name}, {policy['budget']['share']:.3f} of the budget, {meter.seconds():.1f} s")


def _network_and_images(params: Params, job: Job, weights: Path, about: dict[str, Any]) -> tuple[Any, Any, bool]:
    """The target's network, the images that proxy.json describes (or None), and whether these have its classes."""
    from seam.data.loaders import load
    from seam.stages.target import Target

    target, proxy = Target(params, job.model), params.proxy(job.search)
    network = target.network(weights)
    if proxy is None:
        return network, None, True
    size, channels = tuple(about["image_size"]), target.size[0]
    images = load(proxy.dataset, params.data_root, proxy.split, proxy.path, about["indices"], size, channels)
    target.prepare(network, images)
    return network, images, target.is_own(proxy.dataset, proxy.path)
