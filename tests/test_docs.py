"""The documentation: links resolve, commands parse, code blocks run, quoted output and messages are the real ones."""

import ast
import contextlib
import functools
import importlib.util
import itertools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from engines import REPOSITORY, environment
from forked import seam
from sklearn.datasets import load_digits
from typer.testing import CliRunner

from seam.cli import app, stages
from seam.errors import SeamError
from seam.experiment.graph import nodes
from seam.experiment.params import load_params
from seam.io import save_tensors

DOCS = REPOSITORY / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *REPOSITORY.glob("*.md"), REPOSITORY / "config/README.md"])
BLOCK = re.compile(r"(?:^<!-- not run: (?P<why>[^\n]+) -->\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
INDENTED = re.compile(r"(?:^    \S[^\n]*\n)+", re.M)
LINK = re.compile(r"\]\(([^)\s]+)\)")
SMALL = {"resnet18": "test_resnet", "mobilenetv2_100": "test_resnet"}  # what the examples run with here: quick
CLASSES = 20


def name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def blocks(path: Path, kind: str) -> list[re.Match]:
    return [found for found in BLOCK.finditer(path.read_text(encoding="utf-8")) if found["kind"] == kind]


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", BLOCK.sub("", text))


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    found: dict[str, int] = {}
    result = set()
    for heading in re.findall(r"^#+ (.*)$", text, re.M):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        count = found.get(slug, 0)
        found[slug] = count + 1
        result.add(f"{slug}-{count}" if count else slug)
    return result


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_anchors_resolve(page):
    broken = []
    for target in LINK.findall(without_code(page.read_text(encoding="utf-8"))):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


def test_generated_pages_are_up_to_date():
    done = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], cwd=REPOSITORY, env=environment(REPOSITORY), text=True,
        capture_output=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def loaded(name, folder=DOCS):
    """A module of docs/, or of another folder."""
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tables(tmp_path):
    """The module of docs/ that makes tables, of CSVs in an empty folder."""
    module = loaded("tables")
    module.BENCHMARKS = tmp_path
    return module


def test_tables_compare_seed_by_seed_and_correct_for_their_number():
    tables = loaded("tables")
    assert tables.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    value, low, high, p = tables.paired([0.1, 0.2, 0.3])
    assert (value, low, high) == pytest.approx((0.2, 0.2 - 0.2484, 0.2 + 0.2484), abs=1e-3)  # t(2) = 4.303
    assert p == pytest.approx(0.0742, abs=1e-3)


def test_every_table_of_the_results_page_is_made_from_rows(tables, tmp_path):
    pages = ((DOCS / page).read_text(encoding="utf-8") for page in ("results.md", "calibration.md"))
    named = [name for page in pages for name in re.findall(r"<!-- table (\w+) -->", page)]
    assert named and set(named) <= set(tables.TABLES)
    (tmp_path / "scale224.csv").write_text(
        "search,seed,calibrated_top1,top1,search_seconds,images_seen\n"
        "direct,0,80,90,1000,50000\ndirect,1,81,91,1200,50000\njacobian,0,79,91,4,128\njacobian,1,81,91,6,128\n"
        "uniform,0,50,70,1,0\n"
    )
    lines = tables.fill("<!-- table scale224 -->\nold\n<!-- end -->").splitlines()
    assert "| `direct` | 2 | 80.50 ± 0.71 | – | 90.50 ± 0.71 | – | 1000.0 | 1x |" in lines
    assert "| `jacobian` | 2 | 80.00 ± 1.41 | -0.50 | 91.00 ± 0.00 | +0.50 | 5.0 | 200x |" in lines
    assert "| `uniform` | 1 | 50.00 | -30.00 | 70.00 | -20.00 | – | – |" in lines
    assert "old" not in lines


def test_the_benchmark_s_table_pairs_seeds_and_leaves_references_untested(tables, tmp_path):
    rows = ["model,search,budget,seed,calibrated_top1,top1,search_seconds"]
    for i, model in enumerate(("a", "b")):
        for seed in (2, 0, 1):  # of the seeds, jacobian has 60, 62, 67: unequal, and in another order than the others
            first = 60 + (0, 2, 7)[seed]
            rows.append(f"{model},jacobian,w3a3,{seed},{first},{first + 10},100")
        for seed in (0, 1, 2):
            better = 60 + (0, 2, 7)[seed] + 1 + i + 0.1 * seed
            rows.append(f"{model},ours,w3a3,{seed},{better},{better + 8},4")
            rows.append(f"{model},uniform,w3a3,{seed},{30 + seed},{40 + seed},1")
    (tmp_path / "benchmark.csv").write_text("\n".join(rows) + "\n")
    lines = [line for line in tables.benchmark().splitlines() if "`ours`" in line or "`uniform`" in line]
    # Mean differences of 1.5, 1.6 and 1.7, of -0.5, -0.4 and -0.3 after finetuning; t(2) = 4.303, p of 27.7 and -6.93
    assert lines[0] == (
        "| `ours` | 64.1, 72.1 | 65.1, 73.1 | +1.60 [+1.35, +1.85] | <0.01 | -0.40 [-0.65, -0.15] | 0.02 | 4.0 |"
    )
    assert lines[1].count("| – |") == 2


def test_the_tables_of_ranks_have_a_column_a_network_and_a_mean_of_all(tables, tmp_path):
    (tmp_path / "ranks.csv").write_text(
        "model,level,budget,method,proxy,spearman,low,high,chosen_top1,percentile,scores\n"
        "tf_efficientnet_lite0,steps,w4a4,fit,digits,0.9,0.8,0.95,70,100,-4 -3 -2 -1\n"
        "tf_efficientnet_lite1,steps,w4a4,fit,digits,0.8,0.7,0.85,71,90.4,-4 -3 -2 -1\n"
        "tf_efficientnet_lite0,steps,w4a4,class margin,digits,-0.4,-0.6,-0.1,,,1 2 3 4\n"
    )
    (tmp_path / "ranks_policies.csv").write_text(
        "model,level,budget,kind,top1\n"
        # Without the second policy the ranks are those of the scores (1) and the opposite (-1).
        "tf_efficientnet_lite0,steps,w4a4,random,10\ntf_efficientnet_lite0,steps,w4a4,fit with noise 0.1,99\n"
        "tf_efficientnet_lite0,steps,w4a4,random,30\ntf_efficientnet_lite0,steps,w4a4,random,40\n"
        "tf_efficientnet_lite0,steps,w4a4,chosen,70\n"
        "tf_efficientnet_lite1,steps,w4a4,random,72\ntf_efficientnet_lite1,steps,w4a4,fit with noise 0.1,1\n"
        "tf_efficientnet_lite1,steps,w4a4,random,30\ntf_efficientnet_lite1,steps,w4a4,random,20\n"
    )
    ranks, choices = tables.ranks().splitlines(), tables.choices().splitlines()
    assert ranks[0] == "| score | seen | Lite0 w4a4 | Lite1 w4a4 | mean | own left out |"
    assert ranks[2] == "| `fit` | digits | 0.90 [0.80, 0.95] | 0.80 [0.70, 0.85] | 0.85 | 0.00 |"
    assert ranks[3] == "| class margin | digits | -0.40 [-0.60, -0.10] | – | – | – |"
    assert choices[2] == "| `fit` | digits | 70.0 (100) | 71.0 (90) |"
    assert choices[3:] == ["| best of those drawn |  | 99.0 | 72.0 |"]
    assert tables.place_name("pretrained/resnet18", "w3a3") == "ResNet-18 w3a3"

    # The other file of ranks: of each network the mean of its two foreign proxies, apart from the target's own images.
    (tmp_path / "ranks_pretrained.csv").write_text(
        "model,level,budget,method,proxy,spearman,low,high,chosen_top1,percentile,scores\n"
        "pretrained/vit,steps,w3a3,fit,digits,0.5,0,1,70,80,-4 -3 -2 -1\n"
        "pretrained/vit,steps,w3a3,fit,fashion_mnist,0.3,0,1,70,60,-4 -3 -2 -1\n"
        "pretrained/vit,steps,w3a3,fit,target,0.99,0,1,70,99,-4 -3 -2 -1\n"
        "pretrained/vit,steps,w3a3,hawq,digits,0.1,0,1,70,20,-4 -3 -2 -1\n"
    )
    (tmp_path / "ranks_pretrained_policies.csv").write_text(
        "model,level,budget,kind,top1\n"
        "pretrained/vit,steps,w3a3,random,10\npretrained/vit,steps,w3a3,fit with noise 0.1,99\n"
        "pretrained/vit,steps,w3a3,random,30\npretrained/vit,steps,w3a3,random,40\n"
    )
    summary = tables.ranks_of_all().splitlines()
    assert summary[0].startswith("| score | Lite0 w4a4 | Lite1 w4a4 | ViT-S w3a3 | mean |")
    # (0.9 + 0.8 + 0.4) / 3, and (1 - 1 + 1) / 3 without its own; one network alone saw the target's images
    assert summary[2] == "| `fit` | 0.90 | 0.80 | 0.40 | 0.70 | 0.33 | – | 83 |"
    assert summary[3:] == [
        "| `hawq` | – | – | 0.10 | – | – | – | 20 |",
        "| class margin | -0.40 | – | – | – | – | – | – |",
    ]


def test_ranks_at_another_level_of_calibration_are_a_table_of_their_own(tables, tmp_path):
    head = "model,level,budget,method,proxy,spearman,low,high,chosen_top1,percentile,scores\n"
    policies = "model,level,budget,kind,top1\n"
    for level, spearman, top1 in (("steps", 0.9, (1, 2, 3)), ("norm", 0.4, (3, 2, 1))):
        head += f"vit,{level},w4a4,jacobian norm,digits,{spearman},0,1,70,80,-3 -2 -1\n"
        head += f"vit,{level},w4a4,jacobian norm,cifar10,0.1,0,1,70,60,-3 -2 -1\n" * (level == "norm")
        head += f"vit,{level},w4a4,jacobian norm,photographs,0.3,0,1,70,60,-3 -2 -1\n" * (level == "norm")
        policies += "".join(f"vit,{level},w4a4,random,{value}\n" for value in top1)
    (tmp_path / "ranks.csv").write_text(head)
    (tmp_path / "ranks_policies.csv").write_text(policies)
    (tmp_path / "ranks_pretrained.csv").write_text(head.splitlines()[0] + "\n")
    steps, norm = (tables.TABLES[name]().splitlines() for name in ("ranks_of_all", "ranks_of_all_norm"))
    assert steps[2:] == ["| `jacobian` norm | 0.90 | 0.90 | 1.00 | – | 80 |"]
    assert norm[2:] == ["| `jacobian` norm | 0.40 | 0.40 | -1.00 | 0.30 | 80 |"]  # foreign images: digits alone


def test_where_finetuning_begins_and_what_norm_keeps_have_a_column_each(tables, tmp_path):
    (tmp_path / "finetune_start_pretrained.csv").write_text(
        "model,search,budget,level,seed,lr,distillation,batch_norm,calibrated,finetuned\n"
        "mobilenetv2,uniform,w3a3,norm,0,0.005,0.0,re-estimated,58.1,58.9\n"
        "mobilenetv2,uniform,w3a3,norm,0,0.005,0.0,frozen,58.1,58.6\nmobilenetv2,uniform,w3a3,output,0,0.005,0.0,frozen,10,15.6\n"
        "mobilenetv2,jacobian-digits,w3a3,norm,0,0.005,0.0,frozen,64.9,66.6\n"
        "mobilenetv2,jacobian-digits,w3a3,norm,0,0.002,1.0,frozen,64.9,68.2\n"
        "resnet18,jacobian-digits,w4a4,norm,0,0.002,1.0,frozen,75.6,74\n"
    )
    assert tables.finetune_start().splitlines() == [
        "| network | policy | from `norm` | from `output` |",
        "| --- | --- | ---: | ---: |",
        "| MobileNetV2 w3a3 | `uniform` | 58.1 → 58.6 | 10.0 → 15.6 |",
        "| MobileNetV2 w3a3 | `jacobian-digits` | 64.9 → 66.6 | – |",
    ]
    assert tables.finetune_recipe().splitlines() == [
        "| statistics | distillation | lr | MobileNetV2 w3a3 | ResNet-18 w4a4 |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| calibrated |  |  | 64.9 | 75.6 |",
        "| frozen | 0 | 0.005 | 66.6 | – |",
        "| frozen | 1 | 0.002 | 68.2 | 74.0 |",
    ]
    (tmp_path / "norm_level.csv").write_text(
        "model,budget,search,top1\nnet,w4a4,jacobian,84.4\nnet,w4a4,jacobian-steps,83.9\nnet,w4a4,jacobian-steps,83.3\n"
        "a/resnet18,w3a3,jacobian-digits,70\na/resnet18,w3a3,uniform,60\n"
    )
    assert tables.norm_level().splitlines()[2:] == [
        "| net w4a4 | 83.9, 83.3 | 84.4 | – | – |",
        "| ResNet-18 w3a3 | – | 70.0 | – | 60.0 |",
    ]
    (tmp_path / "norm_images.csv").write_text(
        "model,budget,search,top1,cross_entropy\nnet,w4a4,jacobian,84.4,0.951\nnet,w4a4,jacobian,83.2,0.977\n"
        "net,w4a4,jacobian-64,83.7,1.0045\n"
    )
    assert tables.norm_images().splitlines()[2:] == ["| net w4a4 | 84.4 (0.95), 83.2 (0.98) | 83.7 (1.00) | – |"]


def test_the_testbed_s_table_has_a_line_a_network_and_budget(tables, tmp_path):
    (tmp_path / "pretrained.csv").write_text(
        "model,search,budget,seed,calibrated_top1,top1,delta_fp\n"
        "vit,ours,w3a3,0,70,80,-10\nvit,ours,w4a4,0,85,88,-2\nvit,uniform,w4a4,0,60,75,-15\nresnet,uniform,w4a4,0,50,75,5\n"
    )
    assert tables.pretrained().splitlines()[2:] == [
        "| ViT-S, 90.0 | w4a4 | 85.0 → 88.0 | 60.0 → 75.0 |",
        "| ViT-S, 90.0 | w3a3 | 70.0 → 80.0 | – |",
        "| resnet, 70.0 | w4a4 | – | 50.0 → 75.0 |",
    ]
    of_two = tables.pretrained(of=("uniform", "random")).splitlines()
    assert of_two[0] == "| network, full precision % | budget | `uniform` | `random` |"
    assert of_two[2:] == ["| ViT-S, 90.0 | w4a4 | 60.0 → 75.0 | – |", "| resnet, 70.0 | w4a4 | 50.0 → 75.0 | – |"]


def test_the_default_experiment_s_table_has_a_line_a_search_and_medians_of_costs(tables, tmp_path):
    (tmp_path / "default.csv").write_text(
        "model,search,seed,proxy_images,calibrated_top1,top1,delta_fp,search_seconds,speedup,speedup_image_macs\n"
        "resnet18,ours,0,128,70,80,-10,9,30,100\nresnet18,ours,1,128,74,84,-6,11,32,100\n"
        "resnet18,ours,2,128,72,82,-8,40,8,100\nresnet18,uniform,0,0,60,75,-15,0.5,,\n"
    )
    assert tables.default().splitlines()[2:] == [
        "| ResNet-18 (90.00) | `ours` | 128 | 72.00 ± 2.00 | 82.00 ± 2.00 | 11.0 | 30.0x, 100x |",
        "|  | `uniform` | – | 60.00 | 75.00 | – | – |",
    ]


def test_the_figure_shows_the_stages_and_what_they_read():
    generate = loaded("generate")
    graph = nodes(load_params(REPOSITORY / "experiments/smoke.yaml"))
    maker = {path: node.stage for node in graph for path in node.outputs}
    read = {(maker[path], node.stage) for node in graph for path in node.inputs}
    assert set(generate.edges()) == read
    figure = (DOCS / "img/pipeline.svg").read_text(encoding="utf-8")
    assert all(f">{node.stage}</text>" in figure for node in graph)


def commands(path: Path) -> list[list[str]]:
    """All `seam` commands of a page, in blocks and lines of code."""
    text = path.read_text(encoding="utf-8")
    code = [found["text"] for found in BLOCK.finditer(text) if found["kind"] in ("sh", "")]
    code += [re.sub("^    ", "", found[0], flags=re.M) for found in INDENTED.finditer(BLOCK.sub("", text))]
    lines = "\n".join(code).replace("\\\n", " ").splitlines()
    words = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines if re.match(r"(\$ )?seam \w", line)]
    return [part for line in words for part in split(line) if part and part[0] == "seam"]


def split(words: list[str]) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for word in words:
        if word == "&&":
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


COMMANDS = [pytest.param(words, id=f"{name(page)}: {' '.join(words)}") for page in PAGES for words in commands(page)]


@pytest.mark.parametrize("words", COMMANDS)
def test_commands_have_options_that_exist(words, monkeypatch):
    """Each is parsed as it stands; the command itself is not run."""
    ran = []
    owner = stages if any(word.startswith("--params") for word in words) and words[1] in STAGED else app
    for command in owner.registered_commands:
        monkeypatch.setattr(command, "callback", recorded(command.callback, ran))
    done = CliRunner().invoke(owner, words[1:])
    assert done.exit_code == 0 and ran == [words[1]], done.output


STAGED = [command.callback.__name__ for command in stages.registered_commands]


def recorded(callback, ran):
    @functools.wraps(callback)
    def run(**_):
        ran.append(callback.__name__)

    return run


# Messages


def test_messages_of_the_faq_are_in_the_code():
    """Each part of a message that is long enough to tell, between what differs (CAPITALS, …), stands in the code."""
    strings = []
    for path in (REPOSITORY / "seam").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                strings.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                strings.append(node.value)
    strings += [re.sub(r'"\s*"', "", path.read_text()) for path in (REPOSITORY / "workflow").rglob("*.smk")]
    code, missing = "\n".join(strings), []
    for row in re.findall(r"^\| (?:\w+: )?`([^`]+)` \|", (DOCS / "faq.md").read_text(encoding="utf-8"), re.M):
        parts = [part.strip(" .;:") for part in re.split(r"…|\b[A-Z]{1,}\b|'[^']*'", row)]
        long = [part for part in parts if len(part) >= 14]
        missing += [part for part in long if part not in code]
    outside = {"Directory cannot be locked", "No space left on device"}  # Snakemake's, the system's
    assert set(missing) <= outside


# Code that runs


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with what the examples take: photos of 20 classes, weights, a picture."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("docs")
    pixels, _ = load_digits(return_X_y=True)
    for part, count in (("train", 4), ("val", 1)):
        for label in range(CLASSES):
            inside = folder / "photos" / part / f"{label:02}"
            inside.mkdir(parents=True)
            for number in range(count):
                row = pixels[label * 5 + number].reshape(8, 8)
                Image.fromarray((row * 15.9).astype("uint8")).resize((32, 32)).convert("RGB").save(
                    inside / f"{number}.png"
                )
    Image.open(folder / "photos/val/00/0.png").save(folder / "cat.jpg")
    torch.manual_seed(0)
    save_tensors(folder / "my.safetensors", timm.create_model("test_resnet", num_classes=CLASSES).state_dict())
    return folder


def small(text: str) -> str:
    for full, quick in SMALL.items():
        text = text.replace(full, quick)
    return text


def shell(folder: Path, command: str) -> subprocess.CompletedProcess:
    if re.fullmatch(r"seam [^\n|<>&;$#]+\n?", command):
        done = seam(*shlex.split(command)[1:], cwd=folder)
    else:
        environ = environment(REPOSITORY)
        done = subprocess.run(command, shell=True, cwd=folder, env=environ, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done


def test_the_tools_page_runs_from_a_model_to_a_file_and_the_file_is_used_as_the_export_page_says(place, monkeypatch):
    monkeypatch.chdir(place)
    for line in blocks(DOCS / "tool.md", "sh")[0]["text"].splitlines():
        shell(place, small(line) + (" --images 4" if " export " in line else ""))
    known: dict = {}
    for python in (found for found in blocks(DOCS / "tool.md", "python") if not found["why"]):
        exec(small(python["text"]), known)
    model, test = known["quantized"], known["test"]
    images, labels = next(iter(test.batches(2)))
    torch.testing.assert_close(known["again"](images), model(images))
    known |= {"model": model, "images": images, "labels": labels, "names": test.classes}
    first, second, third = (found["text"] for found in blocks(DOCS / "export.md", "python"))
    with contextlib.suppress(SeamError):  # of two images of random weights a tie may tip a class
        exec(first.replace("224, 224", "160, 160").replace("model.onnx", "direct.onnx"), dict(known))
    exec(second, {"images": images.numpy()})
    exec(third, {})


def test_the_method_of_the_methods_page_searches(tmp_path, monkeypatch):
    import seam.tool as tool

    (block,) = (found for found in blocks(DOCS / "methods.md", "python") if not found["why"])
    (tmp_path / "own").mkdir()
    (tmp_path / "own/first_layers.py").write_text(block["text"])
    monkeypatch.syspath_prepend(tmp_path)
    policy = tool.search(timm.create_model("test_resnet").eval(), None, "w4a4", method="own.first_layers")
    assert policy["budget"]["share"] <= 1


def test_results_are_read_as_the_reading_page_says(smoke_results, monkeypatch, capsys):
    params, root = smoke_results
    monkeypatch.chdir(root)
    (block,) = blocks(DOCS / "reading.md", "python")
    exec(block["text"].replace("results/report", f"{params.results}/report"), {})
    assert capsys.readouterr().out.startswith("resnet ")


def test_the_example_of_extending_runs(tmp_path):
    done = shell(REPOSITORY, f"python -m examples.extending {shlex.quote(str(tmp_path))}")
    assert "'top1'" in done.stdout and (tmp_path / "policy.json").exists()


def test_every_python_block_runs_in_a_test_or_says_why_not():
    counted = {"docs/tool.md": 2, "docs/export.md": 3, "docs/methods.md": 1, "docs/reading.md": 1}
    found = {name(page): sum(not block["why"] for block in blocks(page, "python")) for page in PAGES}
    assert {page: count for page, count in found.items() if count} == counted


def printed_blocks(why: bool) -> list[tuple[str, str]]:
    """(commands, what they print) of the quick start; why: of those that are not run as they stand."""
    found = list(BLOCK.finditer((DOCS / "quickstart.md").read_text(encoding="utf-8")))
    pairs = [
        (first, second)
        for first, second in itertools.pairwise(found)
        if (first["kind"], second["kind"]) == ("sh", "text")
    ]
    return [(first["text"], second["text"]) for first, second in pairs if bool(first["why"]) is why]


def test_the_quick_start_prints_what_it_says(tmp_path):
    """Each block of commands is run, and what it prints compared; numbers may differ where machines round."""
    text = (DOCS / "quickstart.md").read_text(encoding="utf-8")
    expected = dict(printed_blocks(why=False))
    assert len(expected) == 2
    for block in BLOCK.finditer(text):
        if block["kind"] == "sh" and not block["why"]:
            printed = shell(tmp_path, block["text"]).stdout
            assert words(printed) == words(expected.get(block["text"], ""))


def test_the_quick_start_shows_what_the_smoke_set_prints(smoke_results):
    _, root = smoke_results
    ((_, expected),) = printed_blocks(why=True)
    printed = [words(line) for line in root.with_name("log").read_text().splitlines()]
    stages = [
        line for line in expected.splitlines() if re.match(r"(fetch|pretrain|sample|search|finetune|evaluate): ", line)
    ]
    assert len(stages) == 14
    assert [line for line in stages if words(line) not in printed] == []


def test_verify_lists_what_the_quick_start_says(smoke_results):
    _, root = smoke_results
    text = (DOCS / "quickstart.md").read_text(encoding="utf-8")
    command, listed = re.search(r"^\$ (seam verify [^\n]*)\n(.*?)^```$", text, re.M | re.S).groups()
    assert shell(root, command).stdout == listed


def words(text: str) -> list[str]:
    """A text's words; numbers, bars and versions are left out, since processors and releases differ in them."""
    return re.findall(r"[^\W\d_][\w.]*", re.sub(r"[█─]+|sha256 \w+|\d[\w.]*", " ", text))


def test_folded_batch_norm_comes_back_and_leaves_the_network_as_it_is(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "examples")
    testbed = loaded("testbed", REPOSITORY / "examples")
    torch.manual_seed(0)
    model, x = timm.create_model("test_resnet", num_classes=3).eval(), torch.randn(32, 3, 32, 32)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:  # as where they were folded into the convolutions: only a shift is left
        norm.weight.data.fill_(1.0)
        norm.bias.data.normal_()
        norm.running_var.fill_(1 - norm.eps)
    with torch.no_grad():
        before = model(x)
        testbed.restore_batch_norm(model, x)
        torch.testing.assert_close(model(x), before, rtol=1e-3, atol=1e-3)
        # A batch's own statistics are those that it was given.
        torch.testing.assert_close(model.train()(x), before, rtol=1e-2, atol=1e-2)
