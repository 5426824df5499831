"""`seam pretrain`: the full-precision model of the target."""

from pathlib import Path
from typing import Any

from seam import io
from seam.experiment import provenance
from seam.experiment.params import Params
from seam.runtime.imports import import_torch
from seam.runtime.process import set_up

COLUMNS = ("step", "epoch", "loss", "top1", "lr", "seconds")  # of history.csv, here and in finetuning


def pretrain(params: Params, model: str, data: Path, out: Path) -> None:
    """Train the model on the target, or take given weights, and measure it.

    Writes fp.safetensors, layers.json, history.csv, metrics.json, classes.json and cost.json.
    """
    import_torch()
    import torch

    from seam.models.find import find_layers
    from seam.runtime.meter import Meter
    from seam.stages.resume import forget, resume_file
    from seam.stages.target import Target
    from seam.training.evaluate import evaluate_each
    from seam.training.supervised import train as train_supervised

    settings, spec = params.training("pretrain", model), params.model(model)
    inputs = [data, Path(spec.weights)] if spec.weights else [data]
    provenance.check_inputs(params, inputs)
    device = set_up(params.device, settings.threads, settings.seed)
    meter = Meter(device)
    with meter.part("setup"):
        target = Target(params, model)
        network = target.network()
        train = target.images(network, "train", settings.images, settings.seed)
        test = target.images(network, "test", params.target.test_images)
        layers = find_layers(network, target.size)
        _check_budgets(params, model, layers)
        network = network.to(device, memory_format=torch.channels_last)
    history: list[dict[str, Any]] = []
    resume = resume_file(params, "pretrain", {"model": model}, inputs)
    if spec.from_scratch or spec.train:
        more = {"resume": resume, "label": f"pretrain {model}"}
        more["section"] = params.training_key("pretrain", model)
        history = train_supervised(network, settings, train, settings.seed, device, meter, **more)
    with meter.part("evaluate"):
        metrics, _, classes = evaluate_each(network, test, params.evaluate.batch_size, device)
    channels, *_ = size = target.size
    about = {"name": spec.name, "num_classes": len(train.classes), "in_chans": channels, "input_size": list(size)}
    names = ("fp.safetensors", "layers.json", "history.csv", "metrics.json", "classes.json", "cost.json")
    outputs = [out / name for name in names]
    with provenance.writing(params, "pretrain", {"model": model}, inputs, outputs) as folder:
        io.save_tensors(folder / "fp.safetensors", network.state_dict())
        io.write_json(folder / "layers.json", {"model": about, "layers": [layer._asdict() for layer in layers]})
        io.write_csv(folder / "history.csv", history, COLUMNS)
        io.write_json(folder / "metrics.json", {**metrics, "images": len(test)})
        io.write_json(folder / "classes.json", {"names": list(test.classes), "full_precision": classes})
        io.write_json(folder / "cost.json", meter.cost())
    forget(resume)
    print(f"pretrain: {model}, top-1 {metrics['top1']:.2f} %, {meter.seconds():.0f} s")


def _check_budgets(params: Params, model: str, layers: list) -> None:
    """Refuse now, not after the training, a budget of the grid that no policy of the model meets."""
    from seam.stages.target import budgets_of, locked_layers

    for budget in params.grid.budgets:
        for search in params.grid.searches:
            budgets_of(params, model, budget, locked_layers(params, model, layers), params.settings(search))
