"""A search for a user's own model and images."""

import copy
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from seam.models.find import class_count, find_layers
from seam.tool.images import has_classes_of, input_size, open_images, preprocessing_settings
from seam.tool.models import weights_sha256

METHOD = "jacobian"  # of the methods here the one whose policies lose least (docs/results.md)
PROXY_IMAGES = 1024  # that a search looks at, class-balanced; more only cost time to decode
BATCH = 32  # of a search that trains


def search(
    model: nn.Module,
    images: Any = None,
    budget: str | Sequence[str] = (),
    *,
    budgets: Sequence[str] = (),
    method: str = METHOD,
    lock: Sequence[str] = (),
    exclude: Sequence[str] = (),
    latency: str | Path | None = None,
    steps: int = 64,
    seed: int = 0,
    name: str = "",
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
) -> dict[str, Any] | list[dict[str, Any]]:
    """Search a policy; the model is left as it was.

    Args:
        images: the proxy; by default scikit-learn's digits. A folder with as many classes as the model is taken to
            have the model's own; with others, and for a dataset by name, `joint` trains a new classifier first.
        budget: one limit or several to be met at once (`seam.policy.budget`); the first is the one spent. By
            default w4a4.
        budgets: a curve: one search at the budget in the middle, then an assignment for each; returns a list. Limits
            in `budget` are met by each as well.
        lock, exclude: as in `seam.models.locks.apply_locks`.
        latency: CSV (layer,w,a,ms), for budgets in ms.
        steps: of a search that trains, on batches of 32.
        name: the model's, for the policy file.
        settings: others of seam.settings.SearchSettings.

    Where a budget limits nothing all layers get the widest bits, without a search.

    Returns: the content of policy.json (docs/policy.md), a list of it for `budgets`.
    Raises SeamError: a budget that no policy meets (with the reachable range), a pattern that matches no layer.
    """
    from seam.models.locks import apply_locks
    from seam.policy.file import make_policy
    from seam.runtime.meter import Meter
    from seam.runtime.process import set_up
    from seam.runtime.progress import phase
    from seam.search.interface import load_method
    from seam.search.problem import prepare, solve

    found, options, target = load_method(method), settings or {}, input_size(model)
    layers = apply_locks(find_layers(model, target), lock, exclude)
    with phase("read images"):
        images = _proxy(images, model, found, options)
    own = has_classes_of(model, images) and not images.by_name
    chosen = _search_settings(steps, images, own, options)
    wanted = _limits(budget, budgets, layers, chosen, latency)
    free = [_is_free(limits) for limits in wanted]
    _say_free(wanted, free)
    place = set_up(device, chosen.threads, seed)
    meter = Meter(place)
    seen = images.sha256()
    middle = sorted(wanted, key=lambda limits: limits[0].limit / limits[0].reach()[1])[len(wanted) // 2]
    network, needed = copy.deepcopy(model), not all(free)
    problem = prepare(
        found, network, images, layers, middle, chosen, seed, place, meter, own_classes=own, kernels=needed
    )
    preferences = found.preferences(problem) if needed else None
    about = {
        "alias": name or type(model).__name__,
        "name": name or type(model).__name__,
        "num_classes": class_count(model),
        "in_chans": target[0],
        "input_size": list(target),
        **preprocessing_settings(model),
        "weights_sha256": weights_sha256(model),
    }
    proxy = {
        "dataset": images.name,
        "count": len(images) if meter.images else 0,
        "image_size": [*problem.images.image_size],
        "sha256": seen,
    }
    policies = []
    for limits, limitless in zip(wanted, free, strict=True):
        used = "uniform" if limitless else method
        with phase(f"assign bits within {_named(limits)}"):
            if limitless or preferences is None:
                assigned = _widest(limits)
            else:
                assigned = solve(found, problem, preferences, limits)
        policies.append(
            make_policy(
                layers,
                assigned,
                limits[0],
                about,
                more_budgets=limits[1:],
                proxy=proxy,
                cost=meter.cost(),
                versions=True,
                method=used,
                search=used,
                seed=seed,
            )
        )
    return policies if budgets else policies[0]


def _proxy(images: Any, model: nn.Module, method: Any, settings: Mapping[str, Any]) -> Any:
    """The images that a search looks at, in memory, class-balanced where there are more than it needs."""
    from seam.data.image_sets import in_memory
    from seam.search.interface import image_count

    images = images if images is not None else open_images(None, model)
    most = image_count(method, settings.get("options", {})) or PROXY_IMAGES
    return in_memory(images.balanced(most))


def _search_settings(steps: int, images: Any, own: bool, given: Mapping[str, Any]) -> Any:
    """Settings of a search of so many steps; a classifier for classes of the proxy's own is trained half that long."""
    from seam.settings import SearchSettings, checked

    epochs = math.ceil(steps / max(len(images) // BATCH, 1))
    ours = {"epochs": epochs, "steps": steps, "batch_size": BATCH, "threads": torch.get_num_threads()}
    chosen = checked(SearchSettings, {**ours, **given})
    if not own and "warmup_epochs" not in given:
        chosen = chosen.model_copy(update={"warmup_epochs": math.ceil(chosen.epochs / 2)})
    return chosen


def _limits(
    budget: str | Sequence[str],
    budgets: Sequence[str],
    layers: Any,
    settings: Any,
    latency: str | Path | None,
) -> list[list[Any]]:
    """The budgets to be met, for each policy that is asked for."""
    from seam.policy.budget import parse_budgets
    from seam.policy.cost import read_latency

    table = read_latency(latency, layers) if latency else None
    limits = [budget] if isinstance(budget, str) else list(budget)
    specs = [[spec, *limits] for spec in budgets] or [limits or ["w4a4"]]
    return [parse_budgets(spec, layers, settings.bits, table, settings.pairs) for spec in specs]


def _widest(limits: Sequence[Any]) -> list[tuple[int, int]]:
    """The widest bits for every searchable layer; of several pairs that none exceeds, the most even one."""
    return [max(limits[0].pairs(), key=lambda pair: (min(pair), sum(pair)))] * len(limits[0].table)


def _is_free(limits: Sequence[Any]) -> bool:
    """Whether the widest bits everywhere meet the budgets."""
    return all(one.cost(_widest(limits)) <= one.limit * (1 + 1e-9) for one in limits)


def _named(limits: Sequence[Any]) -> str:
    return ", ".join(one.spec for one in limits)


def _say_free(wanted: Sequence[Sequence[Any]], free: Sequence[bool]) -> None:
    """Tell the user which budgets limit nothing, and which do not limit inputs."""
    for limits in (limits for limits, limitless in zip(wanted, free, strict=True) if limitless):
        w, a = _widest(limits)[0]
        given = f"{w}" if w == a else f"{w}/{a}"
        more = " (more can be allowed: bits, --bits)" if max(w, a) < 8 else ""
        print(f"budget {_named(limits)}: limits nothing; all layers get {given} bits{more}", file=sys.stderr)
    limiting = next((limits for limits, limitless in zip(wanted, free, strict=True) if not limitless), [])
    if limiting and limiting[0].allowed is None and not any(one.limits_inputs() for one in limiting):
        widest, more = limiting[0].bits[-1], "a second budget such as w4a4 would limit them"
        print(f"budget {_named(limiting)}: does not limit inputs; all get {widest} bits ({more})", file=sys.stderr)
