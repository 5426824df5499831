"""Everything that a GPU may do otherwise than a processor, in one command, into one table.

    python benchmarks/gpu_check.py --csv benchmarks/gpu_check.csv [--only kernels,steps,search,sets] [--device cpu]

kernels: quantizer and mixture, forward and backward, as compiled (Triton) against the plain functions in 64 bits:
         error of all but the 1 in 10,000 that round to another integer, as a share of the greatest number.
steps:   seconds and memory of a training step at 224 in full precision, of a search's and of QAT's, each in fp32, TF32
         and bfloat16 under autocast; ratios to the full-precision step in the same precision.
search:  seconds of `seam search --method jacobian` for ResNet-50 at 224, by its own meter and as a whole.
sets:    `experiments/smoke.yaml` and `params.yaml` (or those of `--set`) by Snakemake on this device and on the CPU:
         seconds, top-1 of each policy's network, and whether the policies are the same.

Rows are written when they are done, with the hardware's name; a run goes on with the rows that are missing. It exits
with 1 where the table's kernels are off by more than ERROR; policies may differ, since a GPU trains in bfloat16. On a
CPU (`--device cpu`) the same runs, which shows that the command itself works.
"""

import argparse
import csv
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from transfer import resumable

COLUMNS = ("check", "case", "precision", "value", "unit", "against", "hardware", "torch")
ROOT = Path(__file__).resolve().parents[1]
PARTS = ("seam", "workflow", "params.yaml", "environment.yml")  # what Snakemake needs
SHAPES = ((64, 64, 3, 3), (8, 96, 56, 56), (1000, 1280), (7, 5))
STEPS = ("resnet18@224", "resnet50@224", "mobilenetv2_100@224", "deit_tiny@224")
PRECISIONS = ("fp32", "TF32", "bfloat16")
ERROR = 1e-3  # of the greatest number: one of 1,280 that rounds to another integer moves its step's gradient by 4e-4
SETS = (ROOT / "experiments/smoke.yaml", ROOT / "params.yaml")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path, default=Path("gpu_check.csv"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", default="kernels,steps,search,sets")
    parser.add_argument("--cases", nargs="+", default=STEPS, help="of the steps (benchmarks/search_step.py)")
    parser.add_argument("--repeats", type=int, default=20, help="steps of each kind")
    parser.add_argument("--set", type=Path, nargs="+", default=SETS, help="parameters of the sets")
    options = parser.parse_args()

    import torch

    from seam.runtime.meter import processor_name

    cuda = options.device.startswith("cuda")
    hardware = torch.cuda.get_device_name(options.device) if cuda else processor_name()
    done, write = resumable(options.csv, COLUMNS, keys=3)

    def record(check: str, case: str, precision: str, value: float, unit: str, against: object = "") -> None:
        write(check, case, precision, f"{value:.4g}", unit, against, hardware, torch.__version__)

    for name in options.only.split(","):
        {"kernels": kernels, "steps": steps, "search": search, "sets": sets}[name](options, done, record)
    if wrong := failures(options.csv):
        raise SystemExit("\n".join(f"gpu_check: {line}" for line in wrong))


def failures(table: Path) -> list[str]:
    """What is wrong by the rows of a table, those of an earlier run too."""
    wrong = []
    with table.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["check"] == "kernels" and not float(row["value"]) <= ERROR:  # NaN is an error too
                wrong.append(f"kernels: {row['case']}: {row['value']} {row['unit']}, more than {ERROR:g}")
    return wrong


def kernels(options, done, record) -> None:
    import torch

    from seam.quant import functional
    from seam.quant.kernels import use_kernels

    use_kernels("compiled", (1, 5), options.device)
    for shape in SHAPES:
        for width in (1, 5):
            case = f"{'x'.join(map(str, shape))}, {width} bit-widths"
            if ("kernels", case, "fp32") in done:
                continue
            torch.manual_seed(0)
            x, g = torch.randn(2, *shape, dtype=torch.float64)
            given = [x, torch.rand(width, shape[0], dtype=torch.float64) / 8 + 0.01]
            given += [torch.softmax(torch.randn(width, dtype=torch.float64), 0)] if width > 1 else [None]
            bounds = functional.integer_bounds(list(range(2, 2 + width)), signed=True)

            def results(device, dtype):
                inputs = [None if t is None else t.to(device, dtype).requires_grad_() for t in given]  # noqa: B023
                y = functional.mix(*inputs, bounds.to(device, dtype))  # noqa: B023
                y.backward(g.to(device, dtype))  # noqa: B023
                return [y.detach(), *[t.grad for t in inputs if t is not None]]

            # What rounds to another integer in 32 bits differs by a step: a few of a million, and no error.
            worst = []
            for ours, exact in zip(results(options.device, torch.float32), results("cpu", torch.float64), strict=True):
                error = (ours.cpu().double() - exact).abs() / exact.abs().max()
                worst.append(error.flatten().kthvalue(math.ceil(error.numel() * 0.9999)).values)
            record("kernels", case, "fp32", torch.stack(worst).max().item(), "of the greatest number")  # NaN if one is


def steps(options, done, record) -> None:
    for case in options.cases:
        for precision in PRECISIONS:
            base = None
            for kind in ("fp32", "search", "qat"):
                label = {"fp32": "full precision"}.get(kind, kind)
                if ("steps", f"{case} {label}", precision) in done and kind != "fp32":
                    continue
                command = [sys.executable, __file__, case, kind, options.device, precision, str(options.repeats)]
                run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "SEAM_STEP": "1"})
                if run.returncode:
                    raise SystemExit(run.stderr)
                found = json.loads(run.stdout.splitlines()[-1])
                median = 1e3 * statistics.median(found["seconds"])
                base = base or (median, found["peak_mb"])
                if ("steps", f"{case} {label}", precision) not in done:
                    ratios = f"{median / base[0]:.2f}x, memory {found['peak_mb'] / base[1]:.2f}x"
                    record("steps", f"{case} {label}", precision, median, "ms", ratios)


def one_step(case: str, kind: str, device: str, precision: str, repeats: str) -> None:
    """In a process of its own: prints what `search_step.measure` finds."""
    import torch
    from search_step import measure

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "TF32"
    print(json.dumps(measure(case, kind, int(repeats), os.cpu_count(), device, precision == "bfloat16")))


def search(options, done, record) -> None:
    if ("search", "resnet50@224", "fp32") in done:
        return
    import timm

    from seam.io import save_tensors

    with tempfile.TemporaryDirectory() as folder:
        save_tensors(f"{folder}/random.safetensors", timm.create_model("resnet50").state_dict())
        command = [sys.executable, "-m", "seam", "search", "--model", "resnet50", "--weights", "random.safetensors"]
        command += ["--method", "jacobian", "--size", "224", "--device", options.device, "-o", "policy.json"]
        start = time.perf_counter()
        subprocess.run(command, check=True, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)})
        seconds = time.perf_counter() - start
        cost = json.loads(Path(folder, "policy.json").read_text())["cost"]
    record("search", "resnet50@224", "fp32", cost["seconds"], "s", f"{seconds:.1f} s in all")


def sets(options, done, record) -> None:
    for params in options.set:
        one_set(params, options.device, done, record)


def one_set(params: Path, device: str, done, record) -> None:
    import yaml

    name = params.stem
    if ("sets", f"{name} seconds", "") in done:
        return
    found: list[tuple] = []
    with tempfile.TemporaryDirectory() as folder:
        for place in ("cpu", device):  # the same twice, if that is the CPU
            root = Path(folder, str(len(found)))
            root.mkdir()
            for part in PARTS:
                copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
                copy(ROOT / part, root / part)
            raw = {**yaml.safe_load(params.read_text()), "device": place, "data_root": f"{folder}/data"}
            (root / "set.yaml").write_text(yaml.safe_dump(raw))
            command = [sys.executable, "-m", "snakemake", "--cores", str(os.cpu_count()), "--configfile", "set.yaml"]
            start = time.perf_counter()
            subprocess.run(command, cwd=root, check=True, env={**os.environ, "PYTHONPATH": str(root)})
            results = root / raw["results"]
            policies = {
                str(path.parent.relative_to(results / "search")): json.loads(path.read_text())["layers"]
                for path in sorted(results.glob("search/**/policy.json"))
            }
            top1 = {
                str(path.parent.relative_to(results / "evaluate")): json.loads(path.read_text())["top1"]
                for path in sorted(results.glob("evaluate/**/metrics.json"))
            }
            found.append((time.perf_counter() - start, policies, top1))
    (cpu_seconds, cpu_policies, cpu_top1), (seconds, policies, top1) = found
    others = [key for key, layers in policies.items() if layers != cpu_policies[key]]
    same = len(policies) - len(others)
    against = f"of {len(policies)}" + (f", all but {', '.join(others)}" if others else "")
    record("sets", f"{name} same policies", "", same, "policies", against)
    for key, value in top1.items():
        record("sets", f"{name} {key}", "", value, "% top-1", f"{cpu_top1[key]:.2f} on the CPU")
    record("sets", f"{name} seconds", "", seconds, "s", f"{cpu_seconds:.0f} s on the CPU")


if __name__ == "__main__":
    if os.environ.pop("SEAM_STEP", ""):
        one_step(*sys.argv[1:])
    else:
        main()
