"""Trainings and searches on digits, for test_distributed.py: alone, or in several processes that torchrun starts."""

import json
import sys
from pathlib import Path

import timm
import torch

from seam.data.loaders import load
from seam.errors import SeamError
from seam.models.find import find_layers
from seam.policy.budget import parse_budget
from seam.runtime.distributed import processes, rank
from seam.runtime.meter import Meter
from seam.runtime.process import set_up
from seam.search import fit, hawq, jacobian, joint, seam, sensitivity
from seam.search.problem import Problem, solve
from seam.settings import SearchSettings, Training
from seam.training.supervised import train

BITS = (2, 3, 4, 5, 6)
_OPTIONS = {jacobian: {"images": 40, "directions": "centroids"}, fit: {"images": 40}, hawq: {"images": 40}}


def jobs(folder: str) -> dict:
    """What each of them gives: history, policy, counts, and a sum of all parameters and buffers."""
    device = set_up("cpu", 1, 0)
    images = load("digits", Path(folder), "train").balanced(320)
    found = {}
    for name, method, steps in (("pretrain", None, None), ("joint", joint, 1), ("seam", seam, 10)):
        torch.manual_seed(0)
        model = timm.create_model("test_resnet", num_classes=10, in_chans=1).to(memory_format=torch.channels_last)
        layers, meter = find_layers(model, (1, 8, 8)), Meter(device)
        if method is None:
            history = train(model, Training(epochs=2, batch_size=32, lr=0.02), images, 0, device, meter)
            policy = None
        else:
            more = {"steps": steps, "calibration_images": 64, "kernels": "eager"}
            settings = SearchSettings(bits=BITS, epochs=1, batch_size=32, **more)
            budgets = [parse_budget("w3a3", layers, BITS)]
            problem = Problem(model, layers, images, budgets, settings, 0, device, meter)
            policy = solve(method, problem, method.preferences(problem), budgets)
            history = problem.history
        rows = [{key: value for key, value in row.items() if key != "seconds"} for row in history]
        weights = sum(value.double().abs().sum().item() for value in model.state_dict().values())
        counts = [meter.images, meter.forwards, meter.steps, meter.epochs]
        found[name] = {"history": rows, "policy": policy, "counts": counts, "weights": weights}
    for method in (jacobian, fit, hawq, sensitivity):  # without training
        torch.manual_seed(0)
        model, meter = timm.create_model("test_resnet", num_classes=10, in_chans=1), Meter(device)
        layers = find_layers(model, (1, 8, 8))
        settings = SearchSettings(bits=BITS, calibration_images=40, kernels="eager", options=_OPTIONS.get(method, {}))
        budgets = [parse_budget("w3a3", layers, BITS)]
        table = method.preferences(Problem(model, layers, images, budgets, settings, 0, device, meter))
        found[method.__name__] = {"table": table.tolist(), "counts": [meter.images, meter.forwards]}
    for name, batch_size, given in (("odd", 31, images), ("few", 32, images.subset([0]))) if processes() > 1 else ():
        try:
            train(model, Training(epochs=1, batch_size=batch_size), given, 0, device, meter, section="search")
        except SeamError as error:
            found[name] = str(error)
    return found


if __name__ == "__main__":
    results = jobs(sys.argv[1])
    Path(sys.argv[1], f"{rank()}.json").write_text(json.dumps(results))
