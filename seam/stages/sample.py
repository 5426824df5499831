"""`seam sample`: the images that a search sees."""

from pathlib import Path
from typing import Any

from seam import io
from seam.experiment import provenance
from seam.experiment.params import Params


def sample(params: Params, model: str, search: str, weights: Path, out: Path) -> None:
    """Choose a search's proxy images and write `proxy.json`."""
    provenance.check_inputs(params, [weights], {"model": model})
    proxy = params.proxy(search)
    content: dict[str, Any] = {"dataset": None, "count": 0}
    if proxy is not None:
        content = _describe(params, model, proxy, weights)
    job = {"model": model, "search": search}
    with provenance.writing(params, "sample", job, [weights], [out / "proxy.json"]) as folder:
        io.write_json(folder / "proxy.json", content)
    print(f"sample: {model}-{search}, " + (f"{content['count']} images of {proxy.dataset}" if proxy else "no images"))


def _describe(params: Params, model: str, proxy: Any, weights: Path) -> dict[str, Any]:
    from seam.data.fetch import fetch as fetch_dataset
    from seam.data.proxy import describe_proxy
    from seam.runtime.process import set_up
    from seam.stages.target import Target

    def features() -> tuple:  # only for samplers that look at the target model's features
        device = set_up(params.device, params.evaluate.threads, 0)
        return target.network(weights).to(device), device

    target = Target(params, model)
    manifest = target.manifest
    if not target.is_own(proxy.dataset, proxy.path):
        manifest = fetch_dataset(proxy.dataset, params.data_root, proxy.path)
    seen = {**target.manifest, "image_size": [*target.size[1:]]}
    as_trained = target.spec.preprocessing == "model"
    return describe_proxy(proxy, manifest, seen, params.data_root, features, as_trained)
