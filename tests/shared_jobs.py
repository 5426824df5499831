"""Trainings and searches on digits, for test_distributed.py: alone, or in several processes that torchrun starts."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import timm
import torch
import torch.nn.functional as F

from seam.data.loaders import ImageSet, load
from seam.errors import SeamError
from seam.models.find import find_layers
from seam.policy.budget import parse_budget
from seam.quant.apply import calibrate, quantize
from seam.runtime.distributed import processes, rank, share_out
from seam.runtime.meter import Meter
from seam.runtime.process import set_up
from seam.search import fit, gmpq, hawq, jacobian, joint, limpq, seam, sensitivity, sqnr
from seam.search.problem import Problem, solve
from seam.settings import Finetune, SearchSettings, Training
from seam.training.supervised import train

BITS = (2, 3, 4, 5, 6)
STEPS = 10
# Those that train, and the side of their images: gmpq looks at maps of several places, which digits of 8x8 do not give.
SEARCHES = {"joint": (joint, 8), "seam": (seam, 8), "gmpq": (gmpq, 32), "limpq": (limpq, 8)}
_OPTIONS = {jacobian: {"images": 40, "directions": "centroids"}, fit: {"images": 40}, hawq: {"images": 40}}
_OPTIONS[sqnr] = {"images": 40}


def jobs(folder: str) -> dict:
    """What each of them gives: history, policy, counts, and a sum of all parameters and buffers."""
    device = set_up("cpu", 1, 0)
    images = load("digits", Path(folder), "train").balanced(320)
    found = {}
    for name in ("pretrain", "finetune", *SEARCHES):
        # Adam makes a whole step of a gradient that is nothing but last digits; in double precision they stay below its
        # epsilon, and integers of weights do not tip over.
        torch.set_default_dtype(torch.float32 if name == "finetune" else torch.float64)
        model, meter = network(), Meter(device)
        method, side = SEARCHES.get(name, (None, 8))
        given = images if side == 8 else images.enlarged((side, side))
        layers = find_layers(model, given.shape)
        policy = None
        if name == "pretrain":
            history = train(model, Training(epochs=2, batch_size=32, lr=0.02), given, 0, device, meter)
        elif name == "finetune":
            teacher = network().eval()
            quantize(model, {layer.name: (3, 3) for layer in layers if not layer.fixed}, layers)
            calibrate(model, given.batches(64))
            settings = Finetune(epochs=1, batch_size=32, lr=0.02, distillation=0.5)
            history = train(model, settings, given, 0, device, meter, teacher)
        else:
            more = {"steps": STEPS, "calibration_images": 64, "kernels": "eager"}
            settings = SearchSettings(bits=BITS, epochs=1, batch_size=32, **more)
            budgets = [parse_budget("w3a3", layers, BITS)]
            problem = Problem(model, layers, given, budgets, settings, 0, device, meter)
            policy = solve(method, problem, method.preferences(problem), budgets)
            history = problem.history
        rows = [{key: value for key, value in row.items() if key != "seconds"} for row in history]
        weights = sum(value.double().abs().sum().item() for value in model.state_dict().values())
        counts = [meter.images, meter.forwards, meter.steps, meter.epochs]
        found[name] = {"history": rows, "policy": policy, "counts": counts, "weights": weights}
    torch.set_default_dtype(torch.float32)
    found["apart"] = apart(images, device)
    for method in (jacobian, fit, hawq, sensitivity, sqnr):  # without training
        model, meter, done = network(), Meter(device), []
        layers = find_layers(model, (1, 8, 8))
        settings = SearchSettings(bits=BITS, calibration_images=40, kernels="eager", options=_OPTIONS.get(method, {}))
        budgets = [parse_budget("w3a3", layers, BITS)]
        (fit if method is hawq else method).share_out = noted(done)
        table = method.preferences(Problem(model, layers, images, budgets, settings, 0, device, meter))
        counts = [meter.images, meter.forwards]
        found[method.__name__] = {"table": table.tolist(), "counts": counts, "done": done}
    for name, batch_size, given in (("odd", 31, images), ("few", 32, images.subset([0]))) if processes() > 1 else ():
        try:
            train(model, Training(epochs=1, batch_size=batch_size), given, 0, device, meter, section="search")
        except SeamError as error:
            found[name] = str(error)
    return found


def apart(images: ImageSet, device: torch.device) -> list[float]:
    """Losses of the first two steps, by shares of a batch that are normalised each by itself."""
    if processes() > 1:
        settings = Training(epochs=1, batch_size=32, lr=1e-9, augment=False, sync_batch_norm=False)
        return [row["loss"] for row in train(network(), settings, images, 0, device, Meter(device), steps=2)]
    model = network().train()
    shares = [images.batches(32, seed=0, drop_last=True, share=(i, 2)) for i in range(2)]
    return [
        sum(F.cross_entropy(model(x), y).item() for x, y in batches) / 2
        for batches, _ in zip(zip(*shares, strict=True), range(2), strict=False)
    ]


def network() -> torch.nn.Module:
    """Without ties, which last digits would decide: values of few bits are often equal in max pooling, and those of a
    channel without any variance lie at BatchNorm's bias, which begins where ReLU does."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=10, in_chans=1).to(memory_format=torch.channels_last)
    model.maxpool = torch.nn.Identity()
    for name, value in model.named_parameters():
        if value.dim() == 1:
            torch.nn.init.uniform_(value, *((0.5, 1.5) if name.endswith("weight") else (-0.5, 0.5)))
    model.register_forward_pre_hook(lambda _, args: (args[0].to(torch.get_default_dtype()),))
    return model


def noted(done: list[int]) -> Callable:
    """`share_out`, with a note of which of the jobs this process does."""

    def share(jobs: Sequence, do: Callable, like: torch.Tensor, label: str) -> torch.Tensor:
        def noting(i: int) -> torch.Tensor:
            done.append(i)
            return do(jobs[i])

        return share_out(range(len(jobs)), noting, like, label)

    return share


if __name__ == "__main__":
    results = jobs(sys.argv[1])
    Path(sys.argv[1], f"{rank()}.json").write_text(json.dumps(results))
