"""Hostile input: mutated files of ten kinds, given to the readers that meet such files in use.

Each input is a valid file of seam's own with a few random changes: bytes flipped, cut, repeated; values of another type
or size, keys gone or doubled; cells, tensors, tags that do not fit. A reader may take it or refuse it by a SeamError.
A find is anything else: another exception, more time or memory than is due to a small file, a process that was started,
a connection, a file written elsewhere.

    python benchmarks/fuzz.py --count 100000 --csv benchmarks/fuzz.csv
    python benchmarks/fuzz.py --kind policy --count 1 --first 4711 --keep .    # one input again, and its file
    python benchmarks/fuzz.py --corpus tests/corpus                            # the files there, read again

An input depends on the seed, its kind and its number alone. What it mutates is made here, by the project's own writers.
The corpus holds some of them as earlier versions wrote them: `taken-NUMBER`, `refused-NUMBER`, and `taken-whole`, which
is not mutated. A folder that is empty or new is filled.
"""

import argparse
import contextlib
import copy
import csv
import io as text_io
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import yaml
from PIL import Image
from rich.console import Console
from safetensors.torch import save
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests"))

from handmade import make_params, write_results  # noqa: E402
from policies import COST, LAYERS, PROXY, policy  # noqa: E402

from seam import io  # noqa: E402
from seam.claims.claims import assess  # noqa: E402
from seam.data.decode import read_image  # noqa: E402
from seam.data.fetch import described, labels  # noqa: E402
from seam.data.loaders import load as load_images  # noqa: E402
from seam.data.loaders import open_folder  # noqa: E402
from seam.data.manifest import load_manifest  # noqa: E402
from seam.data.proxy import describe_proxy  # noqa: E402
from seam.errors import SeamError  # noqa: E402
from seam.experiment import results as grid_results  # noqa: E402
from seam.experiment.graph import nodes  # noqa: E402
from seam.experiment.params import load_params  # noqa: E402
from seam.experiment.provenance import check_inputs, record, verify  # noqa: E402
from seam.models.build import load_weights  # noqa: E402
from seam.models.locks import apply_locks  # noqa: E402
from seam.onnx.export import export, parity  # noqa: E402
from seam.policy import show  # noqa: E402
from seam.policy.budget import parse_budgets  # noqa: E402
from seam.policy.convert import CSV_COLUMNS, torchao  # noqa: E402
from seam.policy.cost import read_latency  # noqa: E402
from seam.policy.file import entries, fit_policy, policy_layers, read_policy  # noqa: E402
from seam.quant.apply import calibrate, quantize  # noqa: E402
from seam.quant.finetuned import is_finetuned, load_finetuned  # noqa: E402
from seam.report.claims import claims_markdown  # noqa: E402
from seam.report.tables import results_markdown, rows  # noqa: E402
from seam.settings import Proxy  # noqa: E402
from seam.tracking.records import records  # noqa: E402

SECONDS = 10.0  # an input may take; most take a few milliseconds
MEMORY = 3 << 30  # bytes of address space beyond those at the start
BITS = (2, 3, 4)

# What replaces a value, a key, a cell.
ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e-320, 1e308, -1e308, "", " ", "nan", "0", "w3a3",
    "a" * 300, "..", "../..", "/etc/passwd", "/dev/zero", "/dev/full", "/", "\0", "\x1b[31m", "\u202e", "é" * 300,
    "{model}", "$(id)", "'; id", "digits", "all", "none", [], {}, [[]], [None], [1, 2, 3], {"": None},
    {"w": 3, "a": 3}, [{}], ["a", "a"],
]  # fmt: skip
# What a key is replaced by.
NAMES = [
    "",
    " ",
    "x",
    "stage",
    "self",
    "model",
    "/dev/zero",
    "/proc/self/mem",
    "../../etc/passwd",
    "a" * 300,
    "\0",
    ".",
]
# What bytes are replaced by, or get in between.
TOKENS = [
    b"\0", b"\xff", b"\xff\xfe", b"\n", b"\r\n", b'"', b"'", b",", b"#", b"NaN", b"Infinity", b"-1",
    b"1e999", b"9" * 400,
    b"null", b"[]", b"{}", b"[" * 200, b"{" * 50, b"&a *a",
    b"<<: *a", b"!!python/object/apply:os.system [id]", b"\\ud800",
    b"../" * 5, b"/dev/zero", b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff", b"\x80" * 8,
    b" " * 1000, b"\t", b": ", b"- ", b"%s%n",
]  # fmt: skip


class Untouched(random.Random):
    """Makes no change: with it a kind writes one of its seeds as it is, which its readers must take."""


def mutated(data: bytes, draw: random.Random) -> bytes:
    """A file's bytes with one to four changes."""
    if isinstance(draw, Untouched):
        return data
    data = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4))):
        place, other = sorted(draw.randrange(len(data) + 1) for _ in range(2))
        length = draw.choice((1, 2, 4, 16, 64))
        match draw.randrange(8):
            case 0:
                del data[place:]
            case 1:
                del data[place : place + length]
            case 2:
                data[place:place] = data[other : other + length]
            case 3:
                data[place:place] = draw.choice(TOKENS)
            case 4:
                token = draw.choice(TOKENS)
                data[place : place + len(token)] = token
            case 5:
                data[place : place + length] = draw.randbytes(length)
            case _:
                if place < len(data):
                    data[place] ^= 1 << draw.randrange(8)
    return bytes(data)


def changed(tree: Any, draw: random.Random) -> Any:
    """A tree of dictionaries and lists with one to three changes of values and keys."""
    if isinstance(draw, Untouched):
        return tree
    tree = copy.deepcopy(tree)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        held = list(_places(tree))
        if not held or draw.random() < 0.01:
            return draw.choice(ODD)
        inner, key = draw.choice(held)
        choice = draw.randrange(9)
        if choice == 0:
            del inner[key]
        elif choice == 1 and isinstance(inner, dict):
            inner[draw.choice(NAMES) or key.upper()] = inner.pop(key)
        elif choice == 2:
            inner[key] = copy.deepcopy(draw.choice([each[k] for each, k in held]))
        elif choice == 3 and isinstance(inner, list):
            inner[key:key] = [inner[key]] * draw.choice((1, 5, 300))
        elif choice == 4 and isinstance(inner[key], int | float):
            inner[key] = draw.choice((-inner[key], inner[key] + 1, inner[key] * 1.5, str(inner[key]), inner[key] // 3))
        elif choice == 5 and isinstance(inner[key], str) and inner[key]:
            inner[key] = inner[key][: draw.randrange(len(inner[key]))] + draw.choice(("", "x", ".", "/", "\n", "0"))
        else:
            inner[key] = copy.deepcopy(draw.choice(ODD))
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield tree, key
        if isinstance(value, dict | list):
            yield from _places(value)


def as_json(tree: Any, draw: random.Random) -> bytes:
    """A mutated JSON file: three of four times changed in its values, else in its bytes."""
    if draw.random() < 0.75:
        return json.dumps(changed(tree, draw)).encode()
    return mutated(json.dumps(tree).encode(), draw)


def as_csv(text: str, draw: random.Random) -> bytes:
    """A mutated CSV file: of its cells or of its bytes."""
    if isinstance(draw, Untouched):
        return text.encode()
    if draw.random() < 0.4:
        return mutated(text.encode(), draw)
    table = [line.split(",") for line in text.splitlines()]
    for _ in range(draw.choice((1, 1, 2))):
        row = draw.choice(table)
        match draw.randrange(6):
            case 0 if row:
                row.pop(draw.randrange(len(row)))
            case 1:
                row.append(str(draw.choice(ODD)))
            case 2:
                table.insert(draw.randrange(len(table)), list(row))
            case 3:
                draw.shuffle(table)
            case _ if row:
                row[draw.randrange(len(row))] = str(draw.choice([*ODD, "inf", "-inf", "1_0", "٣", "1e400", '"']))
            case _:
                pass
    return "\n".join(map(",".join, table)).encode("utf-8", "surrogatepass")


class Kind:
    """One kind of file: `write` puts a mutated one in the folder, `read` gives it to the readers."""

    def __init__(self, folder: Path):
        self.folder = folder

    def write(self, draw: random.Random) -> Path:
        raise NotImplementedError

    def read(self) -> None:
        raise NotImplementedError

    def put(self, name: str, data: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(data)
        return path


class ParamsKind(Kind):
    """Parameter files, to the plan of all jobs and each job's own parameters."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.texts = [(ROOT / f"experiments/{name}.yaml").read_bytes() for name in ("smoke", "imagenet", "efficiency")]
        self.trees = [yaml.safe_load(text) for text in self.texts]

    def write(self, draw):
        i = draw.randrange(len(self.texts))
        if draw.random() < 0.3:
            return self.put("params.yaml", mutated(self.texts[i], draw))
        return self.put("params.yaml", yaml.safe_dump(changed(self.trees[i], draw), allow_unicode=True).encode())

    def read(self):
        params = load_params(self.folder / "params.yaml")
        if sum(1 for _, job in zip(range(1000), params.jobs(), strict=False) if job) == 1000:
            return
        json.dumps(params.dump(), allow_nan=False)
        for node in nodes(params):
            json.dumps(params.slice(node.stage, **node.job), allow_nan=False)
        for search in params.searches:
            params.settings(search), params.proxy(search), params.method(search)


class PolicyKind(Kind):
    """Policy files, shown, compared, converted and fitted to a network."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        locked = apply_locks(LAYERS, ["b=4/8"], [])
        self.trees = [
            policy(proxy=PROXY, cost={**COST, "threads": 2}, versions=True),
            policy(((2, 3),), layers=locked),
            {"schema": "seam-policy/1", "layers": {layer.name: {"w": 4, "a": 4} for layer in LAYERS}},
        ]
        io.write_json(folder / "other.json", self.trees[0])

    def write(self, draw):
        return self.put("policy.json", as_json(draw.choice(self.trees), draw))

    def read(self):
        content = read_policy(self.folder / "policy.json")
        console = Console(file=text_io.StringIO(), width=200)
        show.show(content, console)
        show.diff([content, read_policy(self.folder / "other.json")], ["a", "b"], console)
        torchao(content), [[getattr(layer, key, None) for key in CSV_COLUMNS] for layer in entries(content)]
        fit_policy(content, LAYERS, self.folder / "policy.json", same_size=True)
        policy_layers(content, LAYERS)


class ProvenanceKind(Kind):
    """Provenance files of a tiny finished grid, checked by a stage and by `seam verify`."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.params = make_params(Path("results"), searches=("near", "uniform"), baseline="uniform", proxies=["near"],
                                  without_margin={}, references=["uniform"])  # fmt: skip
        self.seeds = {}
        for node in nodes(self.params):
            for path in node.outputs:
                io.write_text(path, str(path))
            record(self.params, node.stage, node.job, node.inputs, node.outputs, node.provenance)
            self.seeds[node.provenance] = node.provenance.read_bytes()
        self.changed = next(iter(self.seeds))
        self.inputs = [path for node in nodes(self.params) for path in node.outputs if node.stage == "evaluate"]

    def write(self, draw):
        self.changed.write_bytes(self.seeds[self.changed])
        self.changed = draw.choice(list(self.seeds))
        self.changed.write_bytes(as_json(json.loads(self.seeds[self.changed]), draw))
        return self.changed

    def read(self):
        verify(self.params)
        job = next(self.params.jobs())
        check_inputs(self.params, self.inputs)
        check_inputs(self.params, [path for path in self.inputs if job.search in path.parts], job)


class ResultsKind(Kind):
    """JSON files of stages: proxy, layers, metrics, hits, costs, policy, claims, the target's manifest."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        roles = {"proxies": ["near"], "without_margin": {}, "references": ["uniform"]}
        self.params = make_params(Path("results"), searches=("near", "direct", "uniform"), **roles)
        write_results(self.params, lambda job: 90.0, lambda job: 10.0 + job.seed)
        about = {"name": "toy", "num_classes": 10, "in_chans": 1, "input_size": [1, 8, 8]}
        io.write_json("results/layers.json", {"model": about, "layers": [layer._asdict() for layer in LAYERS]})
        io.write_json("results/claims.json", assess(grid_results.load(self.params)))
        paths = sorted(Path("results").rglob("*.json"))
        self.seeds = {path: path.read_bytes() for path in paths if "direct" not in path.parts}
        self.changed = next(iter(self.seeds))

    def write(self, draw):
        self.changed.write_bytes(self.seeds[self.changed])
        self.changed = draw.choice(list(self.seeds))
        self.changed.write_bytes(as_json(json.loads(self.seeds[self.changed]), draw))
        return self.changed

    def read(self):
        if self.changed.name == "layers.json":
            _, found = grid_results.read_layers(self.changed)
            parse_budgets("w3a3, 0.00003 MB", found, BITS)
            return
        found = grid_results.load(self.params)
        if self.changed.name == "proxy.json":
            grid_results.read_proxy(self.changed)
        target = load_manifest("results/data/target/manifest.json")
        claims = grid_results.read_claims("results/claims.json")
        table = rows(found, claims["design"]["roles"]["baseline"])
        results_markdown(found, table), claims_markdown(claims), list(records(found, claims, target, []))
        json.dumps(assess(found), allow_nan=False)


class LatencyKind(Kind):
    """Latency tables, to a budget in milliseconds."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        cells = [f"{x.name},{w},{a},{0.1 + 0.01 * w * a}" for x in LAYERS for w in (*BITS, 8) for a in (*BITS, 8)]
        self.text = "# ms of one image\nlayer,w,a,ms\n" + "\n".join(cells) + "\n"

    def write(self, draw):
        return self.put("latency.csv", as_csv(self.text, draw))

    def read(self):
        parse_budgets("0.5 ms", LAYERS, BITS, read_latency(self.folder / "latency.csv", LAYERS))


class HistoryKind(Kind):
    """Histories of trainings, to the curves of figures and of MLflow."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        lines = [f"{i},{i // 8},{2 / (i + 1)},{1.1},{0.9},0.01,{i * 0.5}" for i in range(20)]
        self.text = "step,epoch,loss,budget,entropy,lr,seconds\n" + "\n".join(lines) + "\n"

    def write(self, draw):
        return self.put("history.csv", as_csv(self.text, draw))

    def read(self):
        io.read_csv(self.folder / "history.csv")
        history = grid_results.columns(self.folder / "history.csv", ("step", "loss", "budget", "entropy"))
        for key, values in grid_results.curves(history, most=8).items():
            dict(zip(map(int, history["step"]), values, strict=False)), np.cumsum(history[key])


class Small(nn.Module):
    """A network with timm's classifier interface."""

    num_classes, pretrained_cfg = 3, {"input_size": (1, 8, 8)}

    def __init__(self):
        super().__init__()
        self.stem, self.body, self.norm = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def get_classifier(self):
        return self.head

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.body(torch.relu(self.stem(x))))).mean((2, 3)))


class WeightsKind(Kind):
    """Weights: safetensors and checkpoints of torch.save, full-precision and finetuned ones."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        torch.manual_seed(0)
        self.plain = Small().eval()
        self.tuned = quantize(Small(), {"stem": (8, 8), "body": (3, 4), "head": (8, 8)}).eval()
        self.states = [model.state_dict() for model in (self.plain, self.tuned)]
        self.files = [save(state) for state in self.states]
        held = text_io.BytesIO()
        torch.save({"state_dict": self.states[0], "epoch": 3}, held)
        self.checkpoint = held.getvalue()
        self.before = [copy.deepcopy(state) for state in self.states]

    def write(self, draw):
        self.path = self.folder / f"w.{draw.choice(('safetensors', 'safetensors', 'safetensors', 'pth'))}"
        data = mutated(self.checkpoint, draw) if self.path.suffix == ".pth" else self._safetensors(draw)
        return self.put(self.path.name, data)

    def _safetensors(self, draw: random.Random) -> bytes:
        data, choice = draw.choice(self.files), draw.randrange(3)
        if choice == 0 or isinstance(draw, Untouched):
            return mutated(data, draw)
        if choice == 1:  # another header, of the right length
            size = struct.unpack("<Q", data[:8])[0]
            header = json.dumps(changed(json.loads(data[8 : 8 + size]), draw)).encode()
            return struct.pack("<Q", len(header)) + header + data[8 + size :]
        state = dict(draw.choice(self.states))
        for _ in range(draw.choice((1, 2))):
            name = draw.choice(list(state))
            value = state.pop(name)
            shape = draw.choice([(), (0,), (1,), (2, 1), (1, 2, 3), tuple(value.shape)])
            kind = draw.choice([torch.float32, torch.int64, torch.bool, torch.float16, torch.complex64, torch.float64])
            other = torch.full(
                shape, draw.choice([0, 1, -1, float("nan"), float("inf")]) if kind.is_floating_point else 1
            )
            state[draw.choice((name, name, name, f"module.{name}", "", "x"))] = other.to(kind)
        return save(state)

    def read(self):
        tuned = is_finetuned(self.path)
        model, load = (self.tuned, load_finetuned) if tuned else (self.plain, load_weights)
        try:
            load(model, self.path)
        finally:
            model.load_state_dict(self.before[tuned])


class OnnxKind(Kind):
    """ONNX files, compared with the network that they were exported from."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        torch.manual_seed(0)
        self.x = torch.randn(2, 1, 8, 8)
        self.models, self.files = [], []
        for bits in ((3, 4), (2, 2)):
            model = quantize(Small(), {"stem": (8, 8), "body": bits, "head": (8, 8)}).eval()
            calibrate(model, [(self.x, None)])
            export(model, (1, 8, 8), folder / "seed.onnx")
            self.models.append(model)
            self.files.append((folder / "seed.onnx").read_bytes())

    def write(self, draw):
        self.number = draw.randrange(len(self.files))
        data = self.files[self.number]
        return self.put("model.onnx", mutated(data, draw) if draw.random() < 0.5 else self._graph(data, draw))

    def _graph(self, data: bytes, draw: random.Random) -> bytes:
        """A readable file whose graph has one to three changes: nodes, their inputs, tensors, data kept elsewhere."""
        if isinstance(draw, Untouched):
            return data
        file = onnx.load_from_string(data)
        graph = file.graph
        for _ in range(draw.choice((1, 1, 2, 3))):
            node, tensor = draw.choice(graph.node), draw.choice(graph.initializer)
            match draw.randrange(9):
                case 0:
                    graph.node.remove(node)
                case 1 if node.input:
                    node.input[draw.randrange(len(node.input))] = draw.choice(graph.node).output[0]
                case 2:
                    node.op_type = draw.choice([other.op_type for other in graph.node] + ["Loop", "x", ""])
                case 3:
                    tensor.data_type = draw.randrange(26)
                case 4:
                    tensor.dims[:] = draw.choice([[], [0], [2**40], [-1], [2**62, 4], [1, 1], [*tensor.dims, 1]])
                case 5:
                    tensor.raw_data = mutated(tensor.raw_data or b"x", draw)
                case 6:
                    tensor.data_location = onnx.TensorProto.EXTERNAL
                    place = tensor.external_data.add()
                    place.key, place.value = (
                        "location",
                        draw.choice(("/etc/passwd", "../" * 9 + "etc/passwd", "/dev/zero")),
                    )
                case 7:
                    graph.output[0].name = draw.choice(("logits", "x", "images"))
                case _:
                    file.opset_import[0].version = draw.choice((0, 1, 20, 21, 25, 99, 2**31))
        return file.SerializeToString()

    def read(self):
        parity(self.models[self.number], self.folder / "model.onnx", [(self.x, None)], torch.device("cpu"))


class FolderOfImages(Kind):
    """A folder of two classes with a few small images."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        draw = np.random.default_rng(0)
        self.images = folder / "images"
        for split, count in (("train", 3), ("val", 1)):
            for label in ("cat", "dog"):
                (self.images / split / label).mkdir(parents=True)
                for i in range(count):
                    pixels = draw.integers(0, 255, (8, 8), dtype=np.uint8)
                    Image.fromarray(pixels).save(self.images / split / label / f"{i}.png")


class ManifestKind(FolderOfImages):
    """Manifests of datasets and the decoded images beside them."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        described("folder", folder / "data", self.images)
        load_images("folder", folder / "data", "all", self.images)
        self.manifest = next((folder / "data").rglob("manifest.json"))
        self.cache = self.manifest.parent
        self.seeds = {path.name: path.read_bytes() for path in self.cache.iterdir() if path.is_file()}

    def write(self, draw):
        for path in self.cache.iterdir():
            path.unlink()
        for name, data in self.seeds.items():
            (self.cache / name).write_bytes(data)
        name = "manifest.json" if draw.random() < 0.8 else draw.choice(list(self.seeds))
        data = self.seeds[name]
        if name == "manifest.json":
            data = as_json(json.loads(data), draw)
        elif draw.random() < 0.5 and not isinstance(draw, Untouched):
            shape = draw.choice([(), (6,), (6, 8, 8, 1), (6, 4, 4, 1), (2, 8, 8, 3), (0, 8, 8, 1)])
            kind = draw.choice([torch.uint8, torch.float32, torch.bool])
            data = save({draw.choice(("pixels", "pixels", "x")): torch.zeros(shape, dtype=kind)})
        else:
            data = mutated(data, draw)
        (self.cache / name).write_bytes(data)
        return self.cache / name

    def read(self):
        root = self.folder / "data"
        manifest = described("folder", root, self.images)
        seen = load_images("folder", root, "all", self.images, [0, 5], 4, 3)
        next(iter(seen.batches(2)))
        proxy = Proxy(dataset="folder", path=str(self.images), count=4)
        describe_proxy(proxy, manifest, manifest, root, lambda: ())
        labels("folder", root, "train", self.images)


class ImagesKind(FolderOfImages):
    """Image files of ten forms, alone and in a folder; things in the folder that are no images."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        draw = np.random.default_rng(0)
        gray = Image.fromarray(draw.integers(0, 255, (8, 8), dtype=np.uint8))
        colour = Image.fromarray(draw.integers(0, 255, (9, 7, 4), dtype=np.uint8))
        deep = Image.fromarray(draw.integers(0, 65535, (8, 8), dtype=np.uint16))
        forms = [
            (gray, "png", {}),
            (colour, "png", {}),
            (deep, "png", {}),
            (gray, "jpg", {}),
            (colour.convert("CMYK"), "jpg", {}),
        ]
        forms += [
            (gray, "gif", {}),
            (colour.convert("P"), "gif", {}),
            (gray, "bmp", {}),
            (colour.convert("RGB"), "webp", {}),
        ]
        forms += [
            (gray, "tif", {}),
            (deep, "tif", {"compression": "tiff_lzw"}),
            (colour, "tif", {"compression": "tiff_deflate"}),
        ]
        forms += [(gray, "pgm", {}), (deep, "pgm", {}), (colour.convert("RGB"), "ppm", {})]
        self.seeds = []
        for image, form, options in forms:
            image.save(folder / f"seed.{form}", **options)
            self.seeds.append((form, (folder / f"seed.{form}").read_bytes()))
        self.place = self.images / "train/cat"

    def write(self, draw):
        for path in self.place.iterdir():
            if path.name != "0.png":
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        form, data = draw.choice(self.seeds)
        path = self.place / f"x.{form if draw.random() < 0.9 else 'png'}"
        match draw.randrange(60) if not isinstance(draw, Untouched) else None:
            case 0:
                path.symlink_to(draw.choice(("nowhere", ".", "/dev/zero", "x.png", "../../..")))
            case 1:
                os.mkfifo(path)
            case 2:
                path.mkdir()
            case _:
                path.write_bytes(mutated(data, draw))
        self.path = path
        return path

    def read(self):
        refused = None
        for channels in (1, 3):
            try:
                read_image(str(self.path), channels)
            except SeamError as error:
                refused = error
        images = open_folder(self.images, "train", (8, 8), 3)
        next(iter(images.batches(len(images))))
        if refused:
            raise refused


KINDS: dict[str, type[Kind]] = {
    "params": ParamsKind,
    "policy": PolicyKind,
    "provenance": ProvenanceKind,
    "results": ResultsKind,
    "latency": LatencyKind,
    "history": HistoryKind,
    "weights": WeightsKind,
    "onnx": OnnxKind,
    "manifest": ManifestKind,
    "images": ImagesKind,
}


class TooLong(BaseException):
    """An input took more than `SECONDS`."""


class Broken(Exception):
    """An input made the process do what no reader may."""


class Guard:
    """Notes what a reader must never do: start a process, connect, load a class by a pickle's word, write elsewhere."""

    NEVER = (
        "subprocess.Popen",
        "os.system",
        "os.exec",
        "os.posix_spawn",
        "os.fork",
        "socket.connect",
        "os.remove_tree",
    )

    def __init__(self):
        self.folder, self.done = "", []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple) -> None:
        if not self.folder:
            return
        if event in self.NEVER:
            self.done.append(event)
        elif event == "open" and isinstance(args[0], str) and isinstance(args[2], int):
            writes = args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes and not os.path.abspath(args[0]).startswith((self.folder, "/dev/null")):
                self.done.append(f"writes {args[0]}")

    @contextlib.contextmanager
    def __call__(self, folder: Path) -> Iterator[None]:
        self.folder, self.done = str(folder), []
        try:
            yield
        finally:
            self.folder = ""
        if self.done:
            raise Broken(self.done[0])


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Nothing on stderr, from C libraries neither."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept), os.close(nowhere)


def _alarm(*_: Any) -> None:
    raise TooLong


@contextlib.contextmanager
def made(name: str) -> Iterator[tuple[Kind, Path]]:
    """A kind with its seeds in a folder of its own, which is the working directory."""
    with tempfile.TemporaryDirectory(prefix="seam-fuzz-") as place:
        os.chdir(place)
        try:
            yield KINDS[name](Path(place)), Path(place)
        finally:
            os.chdir(ROOT)


def run(name: str, seed: int, first: int, count: int, guard: Guard, keep: Path | None) -> tuple[dict[str, Any], dict]:
    """`count` inputs of a kind from number `first` on: a row of figures, and of each sort of find an example."""
    finds: dict[tuple[str, str], list] = {}
    with made(name) as (kind, place):
        kind.write(Untouched(0))
        kind.read()
        start, slowest, refused, found = time.perf_counter(), 0.0, 0, 0
        for number in range(first, first + count):
            path = kind.write(random.Random(f"{seed}/{name}/{number}"))
            began = time.perf_counter()
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            try:
                with guard(place), silent():
                    kind.read()
            except SeamError as error:
                refused += 1
                if len(str(error)) > 20_000:
                    found += 1
                    finds.setdefault(
                        ("SeamError", "message of more than 20,000 characters"), [number, str(error)[:300]]
                    )
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                signal.setitimer(signal.ITIMER_REAL, 0)
                found += 1
                frames = [
                    f
                    for f in traceback.extract_tb(error.__traceback__)
                    if "/seam/" in f.filename and "fuzz" not in f.filename
                ]
                where = f"{Path(frames[-1].filename).name}:{frames[-1].name}:{frames[-1].lineno}" if frames else "?"
                finds.setdefault((type(error).__name__, where), [number, f"{path.name}: {str(error)[:200]}"])
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            slowest = max(slowest, time.perf_counter() - began)
            if keep and path.is_file() and not path.is_symlink():
                shutil.copy(path, keep / f"{name}-{number}{path.suffix}")
        seconds = time.perf_counter() - start
    row = {"kind": name, "seed": seed, "inputs": count, "refused": refused, "finds": found}
    return {**row, "seconds": round(seconds, 1), "slowest_ms": round(1000 * slowest)}, finds


def draw_of(name: str, number: str) -> random.Random:
    """What input `number` of a kind is made with, of seed 0; "whole" is a valid file."""
    return Untouched(0) if number == "whole" else random.Random(f"0/{name}/{number}")


def verdict(kind: Kind, guard: Guard, place: Path) -> str:
    try:
        with guard(place), silent():
            kind.read()
    except SeamError:
        return "refused"
    return "taken"


def fill(folder: Path, name: str, guard: Guard) -> None:
    """Keep a whole file of a kind and the first six others, at most four of a verdict and 20 kB each."""
    kept = {"taken": 0, "refused": 0}
    with made(name) as (kind, place):
        for number in ("whole", *map(str, range(60))):
            path = kind.write(draw_of(name, number))
            if path.is_symlink() or not path.is_file() or path.stat().st_size > 20_000 or sum(kept.values()) == 7:
                continue
            data = path.read_bytes()
            if kept[said := verdict(kind, guard, place)] < 4:
                kept[said] += 1
                (folder / name).mkdir(parents=True, exist_ok=True)
                (folder / name / f"{said}-{number}{path.suffix}").write_bytes(data)


def replay(folder: Path, name: str, guard: Guard) -> Iterator[tuple[str, str]]:
    """(file, verdict) of the files of a kind: each takes the place of the input of its number."""
    with made(name) as (kind, place):
        for path in sorted((folder / name).iterdir()):
            kind.write(draw_of(name, path.stem.split("-")[1])).write_bytes(path.read_bytes())
            yield f"{name}/{path.name}", verdict(kind, guard, place)


def limit_memory() -> None:
    """More memory than a small file is due is a MemoryError, a find."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--count", type=int, help="inputs in all, shared evenly by the kinds; 9000, after a corpus none"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first input of each kind")
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="only these kinds")
    parser.add_argument("--csv", type=Path, help="also write the table here")
    parser.add_argument("--keep", type=Path, help="copy the inputs to this folder")
    parser.add_argument("--corpus", type=Path, help="read the files of this folder first; fill it if it is empty")
    options = parser.parse_args()
    csv_path, keep = (path and path.absolute() for path in (options.csv, options.keep))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, _alarm)
    limit_memory()
    guard, chosen, table, wrong = Guard(), options.kind or list(KINDS), [], []
    if options.corpus:
        folder = options.corpus.absolute()
        if not folder.exists() or not any(folder.iterdir()):
            for name in chosen:
                fill(folder, name, guard)
        read = [found for name in chosen for found in replay(folder, name, guard)]
        wrong = [(path, said) for path, said in read if not Path(path).name.startswith(said)]
        print(*(f"{path}: {said}" for path, said in wrong), f"{len(read)} files, {len(wrong)} not as named", sep="\n")
        if options.count is None:
            return int(bool(wrong))
    count = 9000 if options.count is None else options.count
    shares: Callable[[int], int] = lambda i: (count + len(chosen) - 1 - i) // len(chosen)  # noqa: E731
    print("kind | inputs | refused | finds | seconds | slowest, ms")
    for i, name in enumerate(chosen):
        row, finds = run(name, options.seed, options.first, shares(i), guard, keep)
        table.append(row)
        print(" | ".join(str(row[key]) for key in row if key != "seed"), flush=True)
        for (error, where), (number, text) in finds.items():
            print(f"    {error} at {where}, input {number}: {text!r}", flush=True)
    if csv_path:
        with csv_path.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(table[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)
    return int(bool(wrong) or any(row["finds"] for row in table))


if __name__ == "__main__":
    sys.exit(main())
