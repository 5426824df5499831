"""Which of timm's architectures the search works for: one model of every architecture module, one search step each.

    python benchmarks/coverage.py [--only MODULE ...] [--csv benchmarks/coverage.csv] [--seconds 300] [--gigabytes 14]

Of each module the model with the fewest parameters is taken, at the smallest image size that it runs on. It is built
with random weights, turned into the search network, calibrated, and makes one search step on two random images:
cross-entropy, margin and budget, backward, with a check that all gradients of bit-width logits and steps are finite.
Then one exact assignment for w3a3, and the quantized model of that policy makes one training step too, with a check
that each layer is given quantized numbers, and that leaving activations to quantizers (`fused_activations`) changes no
gradient by a bit.
Built anew, the model gets random biases and BatchNorm statistics, each layer random bits from 2 to 8, and it is
exported and compared with PyTorch layer by layer, on four random images (`seam.onnx.parity`).
Each part runs in a process of its own, limited in time and memory. What the CSV has already is skipped, so an
interrupted run goes on; --only runs the named modules again.

Columns: timm's module, model, image size, searchable and fixed layers, tied layers (in groups of at least two), share
of the model's weights in layers (the rest stays in full precision: positions, recurrent cells, 1-D convolutions),
activations left to quantizers, the search's result: "works" or the reason why not, the export's: "equal" or why not.
"""

import argparse
import csv
import hashlib
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

COLUMNS = ("module", "model", "size", "layers", "tied", "weights_percent", "clamps", "result", "export")
PARTS = {"result": "works", "export": "equal"}  # column -> what it says if all is well
SIZES = (32, 64, 96, 112, 128, 160, 192, 224, 256, 288, 320, 384, 448, 512, 768, 1024)


def candidates() -> dict[str, list[str]]:
    """timm's architecture modules and their models."""
    import timm
    from timm.models import _registry

    return {module: timm.list_models(module=module) for module in sorted(_registry._module_to_models)}


def smallest(names: list[str]) -> list[str]:
    """Models by their number of parameters; counted without allocating them. At most 40 are tried."""
    import timm
    import torch

    likely = sorted(
        names, key=lambda n: (not re.search(r"tiny|nano|atto|pico|femto|test|small|mini|_s\d?_|lite", n), n)
    )
    counts = {}
    for name in likely[:40]:
        try:
            with torch.device("meta"):
                model = timm.create_model(name)
            counts[name] = sum(p.numel() for p in model.parameters())
        except Exception:  # whatever a model raises without memory, another is taken
            continue
    return sorted(counts, key=counts.get) or likely


def build(name: str):
    """The model at the smallest size that it runs on: (model, layers, size)."""
    import timm

    from seam.errors import SeamError
    from seam.models.build import build
    from seam.models.find import default_input_size, find_layers
    from seam.settings import Model

    usual = default_input_size(timm.create_model(name))
    reason: Exception | None = None
    for side in [s for s in SIZES if s < usual[1]] + [usual[1]]:
        size = (usual[0], side, side if side != usual[1] else usual[2])
        # Models with positions for one size must be told another; the rest take any, or have no such option.
        for options in ({"img_size": side}, {}) if side != usual[1] else ({},):
            try:
                model = build(Model(name=name, kwargs=options), 10, usual[0])
                layers = find_layers(model, size)
                check_step(model, size)
                return model, layers, size
            except (SeamError, RuntimeError, ValueError, AssertionError, TypeError, KeyError, IndexError) as error:
                reason = error
    raise reason


def check_step(model, size) -> None:
    """Raise if full-precision training on two images of this size does not work."""
    import torch

    model.train()
    with torch.no_grad():
        model(torch.zeros(2, *size))
    model.eval()


def count_on_grid(model, x) -> int:
    """Uses of F.linear and F.conv2d in one forward whose input and weight channels have at most 256 values."""
    import torch
    from torch.overrides import TorchFunctionMode

    from seam.models.shared_inputs import WEIGHTED, layer_input, weight_argument

    class Count(TorchFunctionMode):
        uses = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):
            kwargs = kwargs or {}
            if func in WEIGHTED:
                levels = [layer_input(args, kwargs).unique().numel()]
                levels += [channel.unique().numel() for channel in weight_argument(args, kwargs)[:4]]
                self.uses += max(levels) <= 256 + 1  # padding adds a zero
            return func(*args, **kwargs)

    with torch.no_grad(), Count() as count:
        model(x)
    return count.uses


def attempt(name: str) -> dict:
    """One search step, one assignment, one training step under the policy."""
    import torch
    import torch.nn.functional as F

    from seam.models.features import capture_features, feature_count
    from seam.models.layers import group_names
    from seam.policy.assign import assign
    from seam.policy.budget import parse_budget
    from seam.policy.file import policy_bits
    from seam.quant.apply import calibrate, quantize
    from seam.quant.fused_activations import clamp_in_quantizers
    from seam.quant.mixture import Mixture
    from seam.training.margin import MarginLoss

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, layers, size = build(name)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    groups = list(group_names(layers).values())
    parameters = sum(p.numel() for p in model.parameters())
    about = {
        "size": "x".join(map(str, size)),
        "layers": len(layers),
        "tied": sum(groups.count(g) > 1 for g in groups),
        "weights_percent": round(100 * sum(layer.params for layer in layers) / parameters, 1),
    }
    bits = (2, 3, 4, 5, 6)
    budget = parse_budget("w3a3", layers, bits)
    x, y = torch.randn(2, *size), torch.tensor([0, 1])
    net = Mixture(model, layers, bits)
    net.calibrate([(x, y)])
    net.train()
    margin = MarginLoss(10, feature_count(model))
    with clamp_in_quantizers(model, size), capture_features(model) as features:
        scores = net(x)
        assert torch.is_tensor(scores), f"gives {type(scores).__name__} in training, not class scores"
        assert scores.shape == (2, 10), f"scores have shape {tuple(scores.shape)}"
        loss = F.cross_entropy(scores, y) + margin(features[-1], y)
    loss = loss + 2 * net.expected(torch.tensor(budget.table / budget.limit, dtype=torch.float32)).log().square()
    assert torch.isfinite(loss), "the loss is not finite"
    loss.backward()
    for key in ("weight_logits", "input_logits", "weight_log_steps", "input_log_steps"):
        gradient = getattr(net, key).grad
        assert gradient is not None and gradient.isfinite().all(), f"gradients of {key} are not finite"
    assigned = assign(net.preferences(), net.names, bits, [budget])
    assert 0.97 <= budget.cost(assigned) / budget.limit <= 1 + 1e-9
    del net, scores, loss
    model, layers, _ = build(name)
    model.load_state_dict(state)
    quantize(model, policy_bits(layers, assigned), layers)
    calibrate(model, [(x, y)])
    on_grid = count_on_grid(model, x)
    own = sum(not layer.functional for layer in layers)
    assert on_grid >= own, f"only {on_grid} of {own} layers compute with quantized numbers"
    model.train()

    def gradients() -> list[str]:
        torch.manual_seed(0)
        loss = F.cross_entropy(model(x), y)
        assert torch.isfinite(loss), "the quantized model's loss is not finite"
        found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        # With random weights some are not numbers, and those have more than one pattern of bits.
        return ["" if g is None else hashlib.sha256(g.nan_to_num().contiguous().numpy()).hexdigest() for g in found]

    plain = gradients()
    with clamp_in_quantizers(model, size) as left:
        for (key, _), a, b in zip(model.named_parameters(), plain, gradients(), strict=True):
            assert a == b, f"activations left to quantizers change the gradient of {key}"
    return {**about, "clamps": len(left), "result": "works"}


def attempt_export(name: str) -> dict:
    """One file, compared with PyTorch."""
    import torch

    from seam.onnx.export import export, parity
    from seam.quant.apply import calibrate, quantize

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, layers, size = build(name)
    for key, value in model.named_parameters():  # zero in a fresh network, not in a trained one
        if key.endswith("bias"):
            torch.nn.init.normal_(value, std=0.1)
    for key, value in model.named_buffers():
        if key.endswith("running_mean"):
            value.normal_(std=0.1)
        if key.endswith("running_var"):
            value.uniform_(0.5, 1.5)
    draw, inputs = random.Random(0), {}
    bits = {
        layer.name: (draw.randint(2, 8), inputs.setdefault(layer.group or layer.name, draw.randint(2, 8)))
        for layer in layers
    }
    x = torch.randn(4, *size)
    quantize(model, bits, layers)
    calibrate(model, [(x, None)])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export(model.eval(), size, path)
        return {"export": parity(model, path, [(x, None)], torch.device("cpu"))["verdict"]}


def one(module: str, part: str, model: str, gigabytes: float) -> None:
    """Run in a process of its own: print the columns of a module that a part fills, as JSON. model: "" to choose it."""
    limit = int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    row = {"module": module, "model": model or smallest(candidates()[module])[0]}
    print(json.dumps(row | {part: "took too long or too much memory"}), flush=True)
    try:
        row |= attempt(row["model"]) if part == "result" else attempt_export(row["model"])
    except Exception as error:  # the row says what went wrong
        text = " ".join(str(error).split()) or type(error).__name__
        row[part] = text if len(text) < 200 else text[:197] + "..."
    print(json.dumps(row), flush=True)


def read(path: Path) -> dict[str, dict]:
    """Rows that are there already, by module."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {row["module"]: row for row in csv.DictReader(file)}


def main() -> None:
    from rich.progress import track

    from seam.io import write_csv

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="MODULE", help="run these again")
    parser.add_argument("--csv", type=Path, default=Path(__file__).with_name("coverage.csv"))
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--gigabytes", type=float, default=14)
    parser.add_argument("--one", nargs=3, metavar=("MODULE", "PART", "MODEL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(*options.one, options.gigabytes)
        return
    found = read(options.csv)
    rows = {module: dict.fromkeys(COLUMNS, "") | found.get(module, {"module": module}) for module in candidates()}
    chosen = options.only or rows
    runs = [(module, part) for module in chosen for part in PARTS if options.only or not rows[module][part]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for module, part in track(runs, "coverage"):
        known = "" if module in (options.only or ()) and part == "result" else rows[module]["model"]
        command = [sys.executable, __file__, "--one", module, part, known, "--gigabytes", str(options.gigabytes)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=options.seconds)
            lines = done.stdout.splitlines()
            reason = (done.stderr.strip().splitlines() or ["ended without a word"])[-1]
        except subprocess.TimeoutExpired as late:
            lines, reason = (late.stdout or b"").decode().splitlines(), "took too long"
        rows[module] |= json.loads(lines[-1]) if lines else {part: reason}
        write_csv(options.csv, list(rows.values()), COLUMNS)
    for part, good in PARTS.items():
        count = sum(row[part] == good for row in rows.values())
        print(f"{part}: {good} for {count} of {len(rows)} modules ({100 * count / len(rows):.1f} %)")


if __name__ == "__main__":
    main()
