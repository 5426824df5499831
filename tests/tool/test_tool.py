"""The tool and the Python API: a model, a folder of images, a limit; no pipeline."""

import json
import re
import shutil

import numpy as np
import pytest
import timm
import torch
from digit_images import save_digits
from forked import seam as run
from onnxruntime import InferenceSession
from PIL import Image
from real_weights import efficientnet_lite0
from sklearn.linear_model import LogisticRegression

import seam.tool as seam
from seam.errors import SeamError
from seam.io import read_json, save_tensors, sha256, write_json
from seam.models.build import replace_head
from seam.models.features import extract_features
from seam.models.find import find_layers
from seam.policy.file import entries

SIZE = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """train/ and val/ with digits as PNG files, and a flat folder with the same classes."""
    base = tmp_path_factory.mktemp("digits")
    save_digits(base / "split" / "train", range(0, 200))
    save_digits(base / "split" / "val", range(200, 260))
    for path in sorted((base / "split" / "val").rglob("*.png"))[:4]:  # not square
        Image.open(path).resize((48, 36)).save(path)
    save_digits(base / "flat", range(0, 100))
    return base


@pytest.fixture
def model():
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=10).eval()


def test_search_quantize_calibrate_finetune_evaluate(folder, model):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images = seam.open_images(folder / "split", model, image_size=SIZE)
    policy = seam.search(model, images, "w4a4", method="seam", steps=4, settings={"kernels": "eager"})
    assert policy["budget"]["share"] <= 1
    assert policy["proxy"]["count"] == 200
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    full = seam.open_images(folder / "split", model, image_size=SIZE)
    quantized = seam.calibrate(seam.quantize(model, policy), full)
    history = seam.finetune(quantized, full, epochs=4, lr=0.05, batch_norm="updated", augment=False)
    assert history[-1]["loss"] < history[0]["loss"]
    metrics = seam.evaluate(quantized, seam.open_images(folder / "split", model, "test", image_size=SIZE))
    assert 0 <= metrics["top1"] <= metrics["top5"] <= 100


@pytest.mark.parametrize(("level", "taught", "lost"), [("steps", False, 0), ("norm", False, 15), ("norm", True, 5)])
def test_finetuning_a_network_with_imagenet_weights_is_no_harm(folder, level, taught, lost):
    """By labels, and by full precision's example; statistics that followed the new images would end far below.

    From level norm, near full precision, ten steps do cost something (docs/calibration.md), but no 40 points, as those.
    """
    model = efficientnet_lite0()
    train, test = (seam.open_images(folder / "split", model, part, image_size=64) for part in ("train", "test"))
    train = train.subset(range(0, 200, 2))
    features, labels = extract_features(model, train.batches(50))
    fitted = LogisticRegression(C=0.01, max_iter=1000).fit(features.numpy(), labels.numpy())
    replace_head(model, 10)
    model.classifier.load_state_dict(
        {"weight": torch.from_numpy(fitted.coef_), "bias": torch.from_numpy(fitted.intercept_)}
    )
    model.pretrained_cfg["input_size"] = (3, 64, 64)
    quantized = seam.calibrate(seam.quantize(model, seam.search(model, train, "w5a5")), train, level=level)
    full, before = seam.evaluate(model, test)["top1"], seam.evaluate(quantized, test)["top1"]
    seam.finetune(quantized, train, epochs=2, batch_size=20, teacher=model if taught else None)
    after = seam.evaluate(quantized, test)["top1"]
    assert full > 60 and after >= before - lost
    assert level == "steps" or before > full - 10


@pytest.mark.parametrize("method", ["jacobian", "seam", "joint"])
def test_the_same_seed_gives_the_same_policy(folder, model, method):
    images = seam.open_images(folder / "flat", model, image_size=SIZE)
    options = {"method": method, "steps": 3, "settings": {"kernels": "eager"}}
    first, second = (seam.search(model, images, "w3a3", **options) for _ in range(2))
    assert json.dumps(first) == json.dumps(second)
    assert first["threads"] == torch.get_num_threads()


def test_a_policy_is_for_the_level_at_which_the_tool_calibrates(folder, model):
    images = seam.open_images(folder, model, image_size=SIZE)
    given = ({}, {"calibration": "norm"}, {"calibration": "steps"})
    default, norm, steps = (seam.search(model, images, "w3a3", settings={"options": one})["layers"] for one in given)
    assert default == norm != steps


def test_macs_are_counted_at_the_model_s_size_not_at_the_proxy_s(folder, model):
    images = seam.open_images(folder / "flat", model, image_size=SIZE)
    policy = seam.search(model, images, "w3a3", method="uniform")
    assert {name: e["macs"] for name, e in policy["layers"].items()} == {
        layer.name: layer.macs for layer in find_layers(model, seam.input_size(model))
    }


def test_lock_exclude_and_several_budgets(model):
    names = [layer.name for layer in find_layers(model, seam.input_size(model))]
    policy = seam.search(
        model,
        budget=["w4a4", "0.2 MB"],
        method="random",
        lock=[f"{names[1]}=8/6"],
        exclude=[names[2]],
    )
    bits = {entry.name: (entry.w, entry.a) for entry in entries(policy)}
    assert bits[names[1]] == (8, 6) and bits[names[2]] == (32, 32)
    assert policy["budget"]["share"] <= 1 and policy["more_budgets"][0]["share"] <= 1
    seam.quantize(model, policy)
    with pytest.raises(SeamError, match="reachable range"):
        seam.search(model, budget="w1a1", method="random")


def test_a_curve_spends_each_of_its_budgets(model):
    policies = seam.search(model, budgets=["w2a2", "w3a3", "w5a5"], method="random")
    spent = [policy["budget"]["spent"] for policy in policies]
    assert spent == sorted(spent) and len(set(spent)) == 3
    assert all(0.97 <= policy["budget"]["share"] <= 1 for policy in policies)


def test_the_policy_says_which_images_the_search_saw(folder, model, tmp_path):
    options = {"steps": 1, "settings": {"kernels": "eager", "bits": (3, 5)}}

    def proxy(path):
        return seam.search(model, seam.open_images(path, model, image_size=SIZE), "w4a4", **options)["proxy"]

    shutil.copytree(folder / "flat", tmp_path / "copy")
    first, copied = proxy(folder / "flat"), proxy(tmp_path / "copy")
    next((tmp_path / "copy" / "3").iterdir()).unlink()
    other = proxy(tmp_path / "copy")
    assert first["sha256"] == copied["sha256"] != other["sha256"] and other["count"] == 99


def test_bits_to_choose_from(model, capsys):
    policy = seam.search(model, budget="w8a8", method="uniform", settings={"bits": (2, 8)})
    assert {(layer["w"], layer["a"]) for layer in policy["layers"].values()} == {(8, 8)}
    with pytest.raises(SeamError, match=r"bits\.0: .*greater than or equal to 2 \(found 1\)"):
        seam.search(model, method="uniform", settings={"bits": (1, 2)})


@pytest.mark.parametrize("method", ["jacobian", "uniform", "random"])
def test_pairs_of_bits_that_a_device_has(folder, model, tmp_path, method):
    """As an engine with 8-bit inputs, and weights of 4 or 8; and one with 4/4 besides."""
    save_tensors(tmp_path / "mine.safetensors", model.state_dict())
    command = ("search", "--model", "test_resnet", "--weights", "mine.safetensors", "--method", method)
    for pairs, budget in (("4/8,8/8", "0.3 MB"), ("8/8, 4/8, 4/4", "w4a6")):
        done = run(*command, "--bits", pairs, "--budget", budget, "-o", "policy.json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        policy = read_json(tmp_path / "policy.json")
        found = {f"{layer.w}/{layer.a}" for layer in entries(policy) if not layer.fixed}
        assert found <= {*pairs.replace(" ", "").split(",")} and policy["budget"]["share"] <= 1
        assert len(found) > 1 or method == "uniform"
    for budget, message in (("w4a4", "no policy can meet"), ("w8a8", "limits nothing; all layers get 8 bits")):
        done = run(*command, "--bits", "4/8,8/8", "--budget", budget, "-o", "policy.json", cwd=tmp_path)
        assert message in done.stderr and done.returncode == (2 if budget == "w4a4" else 0)
    seam.quantize(model, tmp_path / "policy.json")
    for wrong in ("4/8,8", "4/9", "4/8/8"):
        done = run(*command, "--bits", wrong, "-o", "policy.json", cwd=tmp_path)
        assert done.returncode == 2 and f"--bits {wrong}: write numbers from 2 to 8" in done.stderr


def test_where_nothing_is_limited_all_layers_get_the_widest_bits(model, capsys):
    middle, free = seam.search(model, budgets=["w4a4", "w6a6"], method="random")
    assert {(layer["w"], layer["a"]) for layer in free["layers"].values() if not layer["fixed"]} == {(6, 6)}
    assert (middle["method"], free["method"]) == ("random", "uniform")
    assert "budget w6a6: limits nothing; all layers get 6 bits (more can be allowed" in capsys.readouterr().err
    also = seam.search(model, budget=["w6a6", "0.2 MB"], method="random")  # the second limits
    assert also["method"] == "random" and capsys.readouterr().err == ""


@pytest.mark.parametrize("method", ["random", "uniform"])
def test_inputs_that_no_budget_limits_get_the_widest_bits(model, capsys, method):
    """So do they with locked layers and with layers that share their input; a second budget that limits them is met."""
    name = find_layers(model, seam.input_size(model))[2].name
    policies = seam.search(model, budgets=["0.2 MB", "0.25 MB"], method=method, lock=[f"{name}=4/5"])
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "budget 0.2 MB: does not limit inputs; all get 6 bits (a second budget such as w4a4 would limit them)"
    ]
    for policy in policies:
        assert policy["budget"]["share"] <= 1
        assert {layer.a for layer in entries(policy) if not layer.fixed} == {6}
        assert {layer.a for layer in entries(policy) if layer.locked} == {5}
        assert {layer.w for layer in entries(policy) if not layer.fixed} != {6}
    both = seam.search(model, budget=["0.2 MB", "w4a4"], method=method)
    assert capsys.readouterr().err == "" and both["more_budgets"][0]["share"] <= 1
    assert both["totals"]["mean_a"] < 6


def test_a_transformer_takes_small_images(folder):
    model = timm.create_model("test_vit", num_classes=10).eval()
    images = seam.open_images(folder / "flat", model, image_size=SIZE)
    policy = seam.search(model, images, "w4a4", method="joint", steps=2, settings={"kernels": "eager"})
    assert policy["cost"]["steps"] == 2
    assert policy["model"]["input_size"] == list(seam.input_size(model))


def test_images_are_normalised_as_the_model_wants_them(folder, model):
    model.pretrained_cfg["mean"], model.pretrained_cfg["std"] = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    for data in (None, folder / "flat", folder / "split"):
        images = seam.open_images(data, model, image_size=16)
        assert (images.mean, images.std) == ([0.1, 0.2, 0.3], [0.5, 0.6, 0.7])
        assert next(iter(images.batches(4)))[0].shape == (4, 3, 16, 16)


def test_images_are_cropped_and_resized_as_the_model_wants_them(folder, model):
    model.pretrained_cfg.update(crop_pct=0.5, interpolation="bicubic", input_size=(3, 40, 40))
    path = sorted((folder / "split" / "val").rglob("*.png"))[0]
    image = Image.open(path).resize((106, 80), Image.Resampling.BICUBIC).crop((33, 20, 73, 60))
    images = seam.open_images(folder / "split", model, "test", full_size=True).subset([0])
    ((x, _),) = images.batches(1)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (images.mean, images.std))
    expected = (torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255 - mean) / std
    torch.testing.assert_close(x[0], expected)
    assert seam.preprocessing(model) == images.preprocessing


def test_a_folder_with_val_and_test_says_which_is_taken(tmp_path, model, capsys):
    for part, count in (("train", 30), ("val", 20), ("test", 10)):
        save_digits(tmp_path / part, range(count))
    assert len(seam.open_images(tmp_path, model)) == 30
    assert capsys.readouterr().err == ""
    assert len(seam.open_images(tmp_path, model, "test")) == 10
    assert "has test/ and val/; taking test/" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["val", "test"])
def test_held_out_images_alone_serve_all_but_training(tmp_path, model, part, capsys):
    save_digits(tmp_path / part, range(20))
    for split in ("train", "test"):
        images = seam.open_images(tmp_path, model, split)
        assert len(images) == 20 and images.classes == [str(digit) for digit in range(10)]
    assert f"has no train/; taking {part}/" in capsys.readouterr().err
    policy = seam.search(model, method="uniform")
    metrics = seam.evaluate(seam.calibrate(seam.quantize(model, policy), images), images)
    assert 0 <= metrics["top1"] <= 100


@pytest.mark.parametrize("empty", ["flat/eleven", "split/train/eleven", "split/val/3", "rest/val/eleven"])
def test_an_empty_class_folder_is_refused(tmp_path, model, empty):
    for base in ("flat", "split/train", "split/val", "rest/val"):
        save_digits(tmp_path / base, range(10))
    shutil.rmtree(tmp_path / empty, ignore_errors=True)
    data = tmp_path / empty.split("/")[0]
    assert len(seam.open_images(data, model)) == 10  # a class may be missing
    (tmp_path / empty).mkdir()
    with pytest.raises(SeamError, match=f"{tmp_path / empty}: no images; add some or delete the folder"):
        seam.open_images(data, model)


def test_held_out_images_are_those_that_training_does_not_see(folder, model):
    model.pretrained_cfg["input_size"] = (3, SIZE, SIZE)
    assert seam.held_out(folder / "flat", model) is None and seam.held_out(folder / "split" / "train", model) is None
    every, few = (seam.held_out(folder / "split", model, count=count) for count in (100, 20))
    assert len(every) == 60 and all("val" in str(path) for path in every.paths)
    assert few.labels.bincount().tolist() == [2] * 10 and few.image_size == (SIZE, SIZE)


def test_export_from_python_says_how_images_are_prepared(folder, model, tmp_path):
    model.pretrained_cfg["input_size"] = (3, SIZE, SIZE)
    images = seam.open_images(folder / "split", model, "test", full_size=True)
    quantized = seam.calibrate(seam.quantize(model, seam.search(model, budget="w4a4", method="uniform")), images)
    report = seam.export(quantized, tmp_path / "m.onnx", images, count=20, name="mine", metadata={"for": "a test"})
    assert report["verdict"] == "equal" and report["images"] == 20 and "top1_onnxruntime" in report
    stored = {key: json.loads(text) for key, text in onnx_metadata(tmp_path / "m.onnx").items()}
    assert stored["model"] == "mine" and stored["for"] == "a test" and stored["classes"] == images.classes
    assert stored["preprocessing"] == images.preprocessing
    report = seam.export(quantized, tmp_path / "m.onnx", count=8)  # digits: their classes are not taken for the model's
    assert report["images"] == 8 and "top1_onnxruntime" not in report
    assert json.loads(onnx_metadata(tmp_path / "m.onnx")["classes"]) is None


def onnx_metadata(path):
    return InferenceSession(path).get_modelmeta().custom_metadata_map


def test_a_model_that_cannot_run_on_small_images_gets_larger_ones(folder):
    model = timm.create_model("inception_v3", num_classes=10).eval()
    model.pretrained_cfg["input_size"] = (3, 96, 96)
    images = seam.open_images(folder / "flat", model, image_size=SIZE)
    few = {"exclude": ["Mixed*"], "settings": {"options": {"images": 2}, "bits": (3, 5)}}
    policy = seam.search(model, images, "w4a4", **few)
    assert policy["proxy"]["image_size"] == [96, 96]


def test_a_curve_meets_the_other_limits_too(model):
    policies = seam.search(model, budget="0.2 MB", budgets=["w3a3", "w4a4"], method="random")
    assert [policy["budget"]["spec"] for policy in policies] == ["w3a3", "w4a4"]
    assert all(policy["more_budgets"][0]["spent"] <= 0.2 for policy in policies)


@pytest.mark.parametrize(
    ("data", "message"),
    [("nowhere", "neither a folder nor a dataset"), ("half", "train/ and val/")],
)
def test_data_that_is_none(tmp_path, monkeypatch, model, data, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "half" / "train" / "cats").mkdir(parents=True)
    with pytest.raises(SeamError, match=message):
        seam.open_images(data, model)


def test_other_classes_than_the_model_s_cannot_be_evaluated(folder):
    model = timm.create_model("test_resnet", num_classes=7).eval()
    with pytest.raises(SeamError, match="10 classes, the model 7"):
        seam.evaluate(model, seam.open_images(folder / "flat", model, image_size=SIZE))


def test_the_four_commands(folder, model, tmp_path):
    save_tensors(tmp_path / "mine.safetensors", model.state_dict())
    data = ["--data", folder / "split"]
    done = run(
        *("search", "--model", "test_resnet", "--weights", "mine.safetensors", "--classes", 10, *data),
        *("--budget", "w6a6", "--steps", 4, "--size", 32, "-o", "policy.json"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "policy.json" in done.stdout
    assert {"load test_resnet ...", "read images ...", "assign bits within w6a6 ..."} <= {*done.stderr.splitlines()}
    about_mb = float(re.search(r"network in all: .* ONNX file about ([\d.]+) MB", done.stdout)[1])
    policy = ["--policy", "policy.json"]
    done = run("finetune", *policy, "--weights", "mine.safetensors", *data, "-o", "tuned.safetensors", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "calibrate on 200 images ..." in done.stderr and "finetune, 3 steps ..." in done.stderr
    assert "only 3 steps: fewer than about 50 seldom help; --epochs 17, or a smaller" in done.stderr
    assert re.search(r"200 images, 3 steps, loss [\d.]+ -> [\d.]+, tuned.safetensors", done.stdout)
    _, tuned_top1 = re.search(r"on 60 held-out images, .*: top1 ([\d.]+) -> ([\d.]+),", done.stdout).groups()
    done = run("evaluate", *policy, "--weights", "tuned.safetensors", *data, "-o", "metrics.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert read_json(tmp_path / "metrics.json")["top1"] == pytest.approx(float(tuned_top1), abs=1e-3)
    shown = ("--images", 40)
    done = run("export", *policy, "--weights", "tuned.safetensors", *data, *shown, "-o", "model.onnx", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = read_json(tmp_path / "model.parity.json")
    ties = f" but for rounding ties in {report['images_with_ties']}" if report["images_with_ties"] else ""
    assert f"equal to PyTorch on 40 images{ties}, top1_onnxruntime" in done.stdout
    assert "export to ONNX ..." in done.stderr and "compare with onnxruntime, " in done.stderr
    assert 0.75 <= about_mb * 1e6 / (tmp_path / "model.onnx").stat().st_size <= 1.0  # the rest is the graph
    assert report["file"] == "model.onnx"
    assert report["images"] == 40 and 0 <= report["top1_pytorch"] <= 100  # of 60, whose classes are the model's
    session = InferenceSession(tmp_path / "model.onnx")
    about = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert about == report["metadata"]
    assert about["model"] == "test_resnet" and about["classes"] == [str(digit) for digit in range(10)]
    assert about["policy_sha256"] == sha256(tmp_path / "policy.json")
    images = seam.open_images(folder / "split", model, "test", full_size=True)
    for i in (0, 30):  # one is not square
        ((x, _),) = images.subset([i]).batches(1)
        prepared = prepare(images.paths[i], about["preprocessing"])
        ours, theirs = (session.run(["logits"], {"images": values})[0] for values in (x.numpy(), prepared))
        np.testing.assert_allclose(theirs, ours, atol=1e-5)


def prepare(path, how):
    """An image file as an exported model wants it, by nothing but what the model's file says."""
    image = Image.open(path).convert(how["colour"])
    height, width = how["resize"]
    if how["keep_shape"]:
        scale = max(height / image.height, width / image.width)
        height, width = (max(a, int(b * scale)) for a, b in ((height, image.height), (width, image.width)))
    image = image.resize((width, height), Image.Resampling[how["interpolation"].upper()])
    if how["crop"]:
        top, left = (round((a - b) / 2) for a, b in zip((height, width), how["crop"], strict=True))
        image = image.crop((left, top, left + how["crop"][1], top + how["crop"][0]))
    x = (np.asarray(image, np.float32) / 255 - how["mean"]) / how["std"]
    return x.transpose(2, 0, 1)[None].astype(np.float32)


def test_the_model_in_full_precision_is_the_baseline(folder, model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "mine.pth")
    command = ("evaluate", "--model", "test_resnet", "--data", folder / "split", "--weights")
    done = run(*command, "mine.pth", "-o", "metrics.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "test_resnet in full precision, 60 images" in done.stdout
    images = seam.open_images(folder / "split", model, "test", full_size=True)
    assert read_json(tmp_path / "metrics.json")["top1"] == pytest.approx(seam.evaluate(model, images)["top1"])
    tuned = seam.quantize(model, seam.search(model, method="uniform"))
    save_tensors(tmp_path / "tuned.safetensors", tuned.state_dict())
    done = run(*command, "tuned.safetensors", cwd=tmp_path)
    assert done.returncode == 2 and "give the --policy that they were tuned under" in done.stderr


def test_a_network_reconstructed_from_images_without_classes_is_evaluated_and_exported(folder, model, tmp_path):
    save_tensors(tmp_path / "mine.safetensors", model.state_dict())
    model.pretrained_cfg["input_size"] = (3, SIZE, SIZE)
    write_json(tmp_path / "policy.json", seam.search(model, budget="w4a4", method="uniform", name="test_resnet"))
    for i, path in enumerate(sorted((folder / "flat").rglob("*.png"))[:24]):
        (tmp_path / "photos").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "photos" / f"{i}.png")
    policy, given = ("--policy", "policy.json"), ("--weights", "mine.safetensors", "--data", "photos")
    quick = ("--level", "reconstruct", "--images", 16, "--iterations", 2, "--threads", 1)
    done = run("calibrate", *policy, *given, *quick, "-o", "q.safetensors", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"calibrate: test_resnet, reconstruct, 16 images, \d+ s, q.safetensors", done.stdout)
    assert not list(tmp_path.glob(".*resume*"))
    quantized, (x, _) = seam.quantize(model, tmp_path / "policy.json"), next(iter(shown(tmp_path, model).batches(8)))
    seam.load_finetuned(quantized, tmp_path / "q.safetensors")
    again = seam.calibrate(
        seam.quantize(model, tmp_path / "policy.json"),
        shown(tmp_path, model),
        16,
        level="reconstruct",
        settings={"iterations": 2},
    )
    with torch.no_grad():
        torch.testing.assert_close(again(x), quantized(x))
    report = seam.export(quantized, tmp_path / "m.onnx", shown(tmp_path, model), count=8)
    assert report["verdict"] == "equal"
    done = run("evaluate", *policy, "--weights", "q.safetensors", "--data", folder / "split", cwd=tmp_path)
    assert done.returncode == 0 and "test_resnet, 60 images, top1" in done.stdout, done.stderr
    own = ("--weights", "mine.safetensors", "--data", folder / "split", "-o", "metrics.json")
    done = run("evaluate", *policy, *own, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    train, test = (seam.open_images(folder / "split", model, split, full_size=True) for split in ("train", "test"))
    norm, steps = (
        seam.evaluate(seam.calibrate(seam.quantize(model, tmp_path / "policy.json"), train, level=level), test)["loss"]
        for level in ("norm", "steps")
    )
    measured = read_json(tmp_path / "metrics.json")["loss"]
    assert abs(measured - norm) < 0.2 * abs(measured - steps)
    for arguments, message in (
        (("--weights", "q.safetensors", "--data", "photos"), "q.safetensors: weights of a quantized model"),
        ((*given, "--level", "outputs"), "unknown level 'outputs'; did you mean output?"),
    ):
        done = run("calibrate", *policy, *arguments, "-o", "x.safetensors", cwd=tmp_path)
        assert done.returncode == 2 and message in done.stderr
        assert not (tmp_path / "x.safetensors").exists()


def shown(base, model):
    return seam.open_images(base / "photos", model, full_size=True)


def test_images_without_classes_are_one_class(folder, model, tmp_path):
    for i, path in enumerate(sorted((folder / "flat").rglob("*.png"))[:3]):
        shutil.copy(path, tmp_path / f"{2 - i}.png")
    (tmp_path / ".hidden.png").touch()
    (tmp_path / "README.md").touch()
    images = seam.open_images(tmp_path, model)
    assert images.paths == [str(tmp_path / f"{i}.png") for i in range(3)] and images.classes == ["unlabelled"]
    with pytest.raises(SeamError, match="the images have 1 classes, the model 10"):
        seam.evaluate(model, images)


def test_train_may_be_without_classes_where_no_label_is_read(folder, model, tmp_path):
    """Natural for finetuning by a teacher: photographs to learn from, and sorted ones to measure on."""
    (tmp_path / "mine/train").mkdir(parents=True)
    for i, path in enumerate(sorted((folder / "flat").rglob("*.png"))[:64]):
        shutil.copy(path, tmp_path / "mine/train" / f"{i}.png")
    assert seam.open_images(tmp_path / "mine", model, "test").classes == ["unlabelled"]  # there are no others
    shutil.copytree(folder / "split" / "val", tmp_path / "mine/val")
    assert len(seam.open_images(tmp_path / "mine", model)) == 64
    assert len(seam.held_out(tmp_path / "mine", model)) == 60
    assert len(seam.open_images(tmp_path / "mine", model, "test").classes) == 10
    with pytest.raises(SeamError, match="the images have 1 classes, the model 10"):
        seam.evaluate(model, seam.open_images(tmp_path / "mine", model))


def test_layers_are_listed_without_a_search(tmp_path):
    done = run("layers", "--model", "resnet18", "--lock", "layer1.*=6/4", "--exclude", "layer3.0.conv2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = {words[0]: words[1:] for line in done.stdout.splitlines() if (words := line.split())}
    assert rows["conv1"] == ["118M", "9.41k", "fixed", "8/8"]
    assert rows["layer1.1.conv1"][2:] == ["locked", "6/4"]
    assert rows["layer2.0.downsample.0"] == ["6.42M", "8.19k", "inputs", "tied:", "layer2.0.conv1"]
    assert rows["layer2.1.conv1"][2:] == []
    assert rows["layer3.0.conv2"][2:] == ["full", "precision"]


def test_a_latency_table_is_laid_out_to_be_measured(tmp_path):
    command = ("--model", "resnet18", "--lock", "layer1.0.conv1=8/8", "--exclude", "layer2.*", "--bits", "4/8,8/8")
    done = run("layers", *command, "--latency-template", "table.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "table.csv").read_text().splitlines()
    assert lines[:4] == [
        "layer,w,a,ms,macs,params",
        "layer1.0.conv1,8,8,,115605504,36864",
        "layer1.0.conv2,4,8,,115605504,36864",
        "layer1.0.conv2,8,8,,115605504,36864",
    ]
    assert not any(line.startswith(("conv1", "fc", "layer2")) for line in lines)
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "mine.pth")
    given = ("--weights", "mine.pth", "--method", "random", "--latency", "table.csv", "-o", "policy.json")
    done = run("search", *command, *given, "--budget", "9 ms", cwd=tmp_path)
    assert done.returncode == 2 and "table.csv, line 2: not layer,w,a,ms with numbers" in done.stderr
    measured = [line.replace(",,", f",{int(line.split(',')[1]) / 8},") for line in lines[1:]]
    (tmp_path / "table.csv").write_text("\n".join([lines[0], *measured]))
    done = run("search", *command, *given, "--budget", "9 ms", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    budget = read_json(tmp_path / "policy.json")["budget"]
    assert budget["unit"] == "ms" and 8.7 <= budget["spent"] <= 9
    done = run("search", *command, *given, "--budget", "w5a8", cwd=tmp_path)
    assert done.returncode == 2 and "--latency table.csv: no budget is in ms; add --budget '4 ms'" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--model", "resnet81"], ["resnet81", "resnet18"]),
        (["--model", "test_resnet", "--weights", "none.safetensors"], ["none.safetensors"]),
        (["--model", "test_resnet", "--bits", "2,9"], ["--bits 2,9", "from 2 to 8"]),
    ],
)
def test_bad_input_is_named_with_exit_code_2(tmp_path, arguments, named):
    done = run("search", *arguments, "-o", "policy.json", cwd=tmp_path)
    assert done.returncode == 2
    assert all(text in done.stderr for text in named), done.stderr
    assert not (tmp_path / "policy.json").exists()


def test_input_size_is_timm_s(model):
    assert seam.input_size(model) == tuple(model.pretrained_cfg["input_size"])
    made_for_another = timm.create_model("vit_tiny_patch16_224", img_size=96, num_classes=10).eval()
    assert seam.input_size(made_for_another) == (3, 96, 96)
    policy = seam.search(made_for_another, budget="w4a4", method="uniform")
    assert policy["model"]["input_size"] == [3, 96, 96]


def test_each_optimizer_has_a_learning_rate_of_its_own(model):
    images = seam.open_images(None, model, full_size=True)
    images = images.subset(range(64))
    greatest = {}
    for optimizer in ("sgd", "adamw"):
        quantized = seam.calibrate(seam.quantize(model, seam.search(model, images, method="uniform")), images)
        history = seam.finetune(quantized, images, optimizer=optimizer, batch_size=16, epochs=2)
        greatest[optimizer] = max(row["lr"] for row in history)
    assert greatest == {"sgd": pytest.approx(0.005 / 4, rel=0.1), "adamw": pytest.approx(2e-5 / 4, rel=0.1)}
    with pytest.raises(SeamError, match="optimizer: .*'sgd' or 'adamw'"):
        seam.finetune(quantized, images, optimizer="adam")


def test_finetuning_without_labels(folder, model, tmp_path):
    """With the full-precision network as its only teacher: images may lie in one folder, or be of other classes."""
    save_tensors(tmp_path / "mine.safetensors", model.state_dict())
    write_json(tmp_path / "policy.json", seam.search(model, budget="w4a4", method="uniform", name="test_resnet"))
    (tmp_path / "photos").mkdir()
    for i, path in enumerate(sorted((folder / "flat").rglob("*.png"))[:64]):
        shutil.copy(path, tmp_path / "photos" / f"{i}.png")
    given = ("--policy", "policy.json", "--weights", "mine.safetensors", "--data", "photos")
    command = ("finetune", *given, "--threads", 1)
    done = run(*command, "--distillation", 0.9, "-o", "tuned.safetensors", cwd=tmp_path)
    assert done.returncode == 2 and not (tmp_path / "tuned.safetensors").exists()
    assert "1 classes, the model 10" in done.stderr and "distillation of 1, which reads no labels" in done.stderr
    assert "calibrate" not in done.stderr  # refused before it takes a while
    for option, value, known in (("--batch-norm", "freeze", "frozen"), ("--optimizer", "adam", "adamw")):
        done = run(*command, option, value, "-o", "tuned.safetensors", cwd=tmp_path)
        assert done.returncode == 2 and all(word in done.stderr for word in (option, value, known))
        assert "calibrate" not in done.stderr
    batches = ("--batch-size", 16, "--epochs", 2)
    done = run(*command, *batches, "-o", "tuned.safetensors", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "64 images, 8 steps" in done.stdout and "not measured: that takes train/ and val/" in done.stdout
    quantized = seam.quantize(model, tmp_path / "policy.json")
    seam.load_finetuned(quantized, tmp_path / "tuned.safetensors")

    foreign = seam.open_images(tmp_path / "photos", model, full_size=True)
    foreign.labels = torch.full_like(foreign.labels, 10)  # none of the model's
    again = seam.calibrate(seam.quantize(model, tmp_path / "policy.json"), foreign, level="norm")
    history = seam.finetune(again, foreign, teacher=model, batch_size=16, epochs=2)
    assert "top1" not in history[0]
    assert len(seam.held_out(folder / "split", model)) == 60
    assert seam.held_out(folder / "split", timm.create_model("test_resnet", num_classes=7)) is None
    for name, value in again.state_dict().items():
        torch.testing.assert_close(value, quantized.state_dict()[name])


def test_distillation_needs_its_teacher(model, tmp_path):
    images = seam.open_images(None, model, full_size=True)
    quantized = seam.calibrate(seam.quantize(model, seam.search(model, images, method="uniform")), images)
    with pytest.raises(SeamError, match="distillation: give the full-precision model as teacher"):
        seam.finetune(quantized, images, distillation=0.5)
    with pytest.raises(SeamError, match="distillation"):
        seam.finetune(quantized, images, distillation=1.5, teacher=model)
