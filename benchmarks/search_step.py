"""Time and memory of a training step: full precision, search, QAT, search without compiled kernels, and full precision
of the network that search and QAT train, without the kernel taps that small images never reach.

    python benchmarks/search_step.py [--repeats 3] [--steps 7] [--cases resnet18@8 ...] [--csv FILE]

Each figure comes from a process of its own; the kinds take turns, so that a busy neighbour slows all of them.
Printed: the median and the least step time over all repeats, the ratio to the FP32 step of the same case, and the
greatest resident memory. Bits {2, 3, 4, 5, 6}; margin term, centroid update and all three optimizers included. Then,
for a search and a QAT step, what limits them: how many elements their quantizers pass, and how long a step would take
if nothing but these passes came to the FP32 step, (memory) at the speed of a copy, (kernels) at the kernels' own speed
on a large tensor. The activations that quantizers do on the way (`seam.quant.fused_activations`) are taken off.
"""

import argparse
import contextlib
import csv
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter

CASES = {  # name: (timm model, options, channels, image size, batch size)
    "resnet18@224": ("resnet18", {}, 3, 224, 16),
    "resnet18@32": ("resnet18", {"small_stem": True}, 3, 32, 32),
    "resnet18-stem7@32": ("resnet18", {}, 3, 32, 32),  # the network of 224x224, on a small proxy
    "resnet18@8": ("resnet18", {}, 1, 8, 64),
    "resnet50@224": ("resnet50", {}, 3, 224, 16),
    "mobilenetv2_100@224": ("mobilenetv2_100", {}, 3, 224, 16),
    "deit_tiny@224": ("deit_tiny_patch16_224", {}, 3, 224, 16),
}
KINDS = ("fp32", "search", "qat", "search-eager", "fp32-cut")


def measure(case: str, kind: str, steps: int, threads: int, device: str = "cpu", bfloat16: bool = False) -> dict:
    """Run in a process of its own: seconds of each step, and peak memory; that of the GPU, if it is one."""
    import torch
    import torch.nn.functional as F

    from seam.models.build import build
    from seam.models.features import capture_features
    from seam.models.find import find_layers
    from seam.models.padding_taps import cut_taps, without_unreached_taps
    from seam.policy.budget import parse_budget
    from seam.policy.file import policy_bits
    from seam.quant.apply import calibrate, quantize
    from seam.quant.fused_activations import clamp_in_quantizers
    from seam.quant.kernels import use_kernels
    from seam.quant.mixture import Mixture
    from seam.runtime.meter import Meter
    from seam.runtime.process import keep_memory
    from seam.search.joint import OWN
    from seam.search.training import parameter_groups
    from seam.settings import Finetune, Model, SearchSettings
    from seam.training.margin import MarginLoss
    from seam.training.supervised import training_groups

    stack = contextlib.ExitStack()
    torch.set_num_threads(threads)
    keep_memory()
    torch.manual_seed(0)
    name, options, channels, size, batch = CASES[case]
    model = build(Model(name=name, **options), 10, channels)
    layers = find_layers(model, (channels, size, size))
    if kind.startswith("search") or kind == "fp32-cut":
        cut_taps(model, (channels, size, size))
    model = model.to(device, memory_format=torch.channels_last).train()
    x = torch.randn(batch, channels, size, size).to(device, memory_format=torch.channels_last)
    y = torch.randint(0, 10, (batch,)).to(device)
    autocast = torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=bfloat16)
    settings = SearchSettings().filled(**OWN)
    if not kind.startswith("fp32"):
        use_kernels("eager" if kind.endswith("eager") else "compiled", (1, len(settings.bits)), device)
    if kind.startswith("search"):
        net = Mixture(model, layers, settings.bits)
        net.calibrate([(x, y)])
        net.train()
        budget = parse_budget("w3a3", layers, settings.bits)
        table = torch.tensor(budget.table / budget.limit, dtype=torch.float32, device=device)
        margin = MarginLoss(10, model.get_classifier().in_features).to(device)
        stack.enter_context(clamp_in_quantizers(model, (channels, size, size)))
        features = stack.enter_context(capture_features(model))
        groups = parameter_groups(net, settings)

        def loss():
            cross_entropy = F.cross_entropy(net(x), y)
            return cross_entropy + margin(features[-1], y) + 2 * net.expected(table).log().square()

    else:
        if kind == "qat":
            searchable = sum(not layer.fixed for layer in layers)
            quantize(model, policy_bits(layers, [(3, 3)] * searchable), layers, (channels, size, size))
            calibrate(model, [(x, y)])
            model.train()
            stack.enter_context(without_unreached_taps(model, (channels, size, size)))
            stack.enter_context(clamp_in_quantizers(model, (channels, size, size)))
        groups = training_groups(model, Finetune(epochs=1))

        def loss():
            return F.cross_entropy(model(x), y)

    optimizers = [group.optimizer() for group in groups if group.params]
    seconds = []
    for i in range(steps + 2):
        start = time.perf_counter()
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        with autocast:
            value = loss()
        value.backward()
        for optimizer in optimizers:
            optimizer.step()
        if x.is_cuda:
            torch.cuda.synchronize()
        if i >= 2:  # the first steps allocate
            seconds.append(time.perf_counter() - start)
    stack.close()
    return {"seconds": seconds, "peak_mb": Meter(x.device).peak_memory_mb()}


def limits(case: str, kind: str, threads: int) -> dict:
    """Run in a process of its own: million elements that pass quantizers in a step, those of them that are an
    activation's too, and the milliseconds that these passes add to the FP32 step."""
    import torch

    from seam.quant import functional

    passed: Counter[int] = Counter()  # number of bit-widths -> elements
    shared = 0
    plain = functional.run

    def counted(name, width, x, *rest):
        nonlocal shared
        if name == "backward":  # forward passes calibrate as well
            passed[width] += x.numel()
            shared += x.numel() if rest[1][0] > float("-inf") else 0
        return plain(name, width, x, *rest)

    functional.run = counted
    measure(case, kind, steps=-1, threads=threads)
    functional.run = plain
    n = 2**24
    x = torch.randn(n, requires_grad=True)
    out = torch.empty_like(x)

    def least(work) -> float:
        times = []
        for _ in range(7):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        return min(times)

    def kernels(width: int) -> float:
        steps, weights = (torch.full((width,), value, requires_grad=True) for value in (0.1, 1 / width))
        bounds = functional.integer_bounds(list(range(2, 2 + width)), signed=True)
        return least(lambda: functional.mix(x, steps, weights if width > 1 else None, bounds).backward(out))

    copy = least(lambda: out.copy_(x.detach()))
    # Forward reads x and writes y, backward reads x and dL/dy and writes dL/dx: 5 passes; a copy makes 2. An activation
    # that works in place makes 5 as well.
    passes = 1e3 * 2.5 * copy / n
    return {
        "elements": sum(passed.values()) / 1e6,
        "shared": shared / 1e6,
        "gb_per_s": 8 * n / copy / 1e9,
        "memory_ms": passes * (sum(passed.values()) - shared),
        "kernels_ms": sum(1e3 * kernels(width) / n * count for width, count in passed.items()) - passes * shared,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=[case for case in CASES if case != "resnet50@224"])
    parser.add_argument("--csv")
    parser.add_argument("--one", nargs=2, metavar=("CASE", "KIND"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one and options.one[1].startswith("limits-"):
        print(json.dumps(limits(options.one[0], options.one[1].removeprefix("limits-"), options.threads)))
        return
    if options.one:
        print(json.dumps(measure(*options.one, options.steps, options.threads)))
        return
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "GOMP_SPINCOUNT": "20000"}
    rows = []

    def alone(case: str, kind: str) -> dict:
        command = [sys.executable, __file__, "--one", case, kind, "--steps", str(options.steps)]
        command += ["--threads", str(options.threads)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    print(f"{'case':22}{'kind':14}{'median ms':>10}{'min ms':>9}{'x FP32':>8}{'peak MB':>9}{'x FP32':>8}")
    for case in options.cases:
        found: dict[str, list] = {kind: [] for kind in KINDS}
        for _ in range(options.repeats):
            for kind in KINDS:
                found[kind].append(alone(case, kind))
        base_time = base_memory = 1.0
        for kind in KINDS:
            times = [s * 1e3 for run in found[kind] for s in run["seconds"]]
            median, least = statistics.median(times), min(times)
            peak = statistics.median(run["peak_mb"] for run in found[kind])
            if kind == "fp32":
                base_time, base_memory = median, peak
            row = (case, kind, round(median, 1), round(least, 1), round(median / base_time, 2))
            row += (round(peak), round(peak / base_memory, 2))
            rows.append(row)
            print("{:22}{:14}{:10}{:9}{:8}{:9}{:8}".format(*row), flush=True)
        for kind in ("search", "qat"):
            limit = alone(case, f"limits-{kind}")
            print(
                f"  {kind}: {limit['elements']:.1f} M elements pass quantizers, {limit['shared']:.1f} M of them an "
                f"activation too; a copy moves {limit['gb_per_s']:.1f} GB/s; {1 + limit['memory_ms'] / base_time:.2f}x "
                f"by memory, {1 + limit['kernels_ms'] / base_time:.2f}x by kernels",
                flush=True,
            )
            for key in ("memory", "kernels"):
                total = base_time + limit[f"{key}_ms"]
                rows.append((case, f"{kind}-limit-{key}", round(total, 1), "", round(total / base_time, 2), "", ""))
    if options.csv:
        with open(options.csv, "w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("case", "kind", "median_ms", "min_ms", "time_ratio", "peak_mb", "memory_ratio"))
            writer.writerows(rows)


if __name__ == "__main__":
    main()
