"""An exported file by itself: it says how images are prepared and which classes it names."""

import re
import shutil

import onnx
import pytest
import timm
import torch
from digit_images import save_digits
from forked import seam as run

import seam.tool as seam
from seam.errors import SeamError
from seam.io import read_json


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder with val/ of digits, model.onnx, and the model that it was made from."""
    base = tmp_path_factory.mktemp("exported")
    save_digits(base / "photos" / "train", range(60))
    save_digits(base / "photos" / "val", range(100, 160))
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=10).eval()
    seam.set_preprocessing(model, input_size=[48], mean=[0.3], std=[0.2], crop_pct=0.9, interpolation="bicubic")
    quantized = seam.quantize(model, seam.search(model, budget="w4a4", method="uniform"))
    seam.calibrate(quantized, seam.open_images(base / "photos", model, full_size=True), 32)
    seam.export(quantized, base / "model.onnx", seam.open_images(base / "photos", model, "test", full_size=True))
    return base, quantized


def test_a_file_is_measured_on_images_prepared_as_it_says(exported, tmp_path):
    base, quantized = exported
    file = seam.OnnxFile(base / "model.onnx")
    images = seam.open_images(base / "photos", file, "test", full_size=True)
    ours = seam.open_images(base / "photos", quantized, "test", full_size=True)
    assert images.preprocessing == ours.preprocessing and images.image_size == (48, 48)
    found, expected = file.evaluate(images, 25), seam.evaluate(quantized, ours)
    assert found["loss"] == pytest.approx(expected["loss"], rel=0.02)
    assert abs(found["top1"] - expected["top1"]) <= 5 and abs(found["top5"] - expected["top5"]) <= 5
    given = ("--onnx", base / "model.onnx", "--data", base / "photos")
    done = run("evaluate", *given, "-o", "metrics.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"evaluate: model\.onnx, 60 images, top1 [\d.]+, top5 [\d.]+, loss [\d.]+\n", done.stdout)
    assert read_json(tmp_path / "metrics.json") == pytest.approx(file.evaluate(images))
    done = run("evaluate", *given, "--model", "test_resnet", cwd=tmp_path)
    assert done.returncode == 2 and "--onnx takes a file that says all itself" in done.stderr


def test_images_of_other_classes_are_refused(exported, tmp_path):
    base, _ = exported
    file = seam.OnnxFile(base / "model.onnx")
    shutil.copytree(base / "photos" / "val", tmp_path / "val")
    (tmp_path / "val" / "3").rename(tmp_path / "val" / "three")
    with pytest.raises(SeamError, match=r"model\.onnx: class 3 is '3' in the file, '4' in the images"):
        file.evaluate(seam.open_images(tmp_path, file, full_size=True))
    shutil.rmtree(tmp_path / "val" / "three")
    with pytest.raises(SeamError, match="9 classes, the model 10"):
        file.evaluate(seam.open_images(tmp_path, file, full_size=True))


def test_a_file_that_says_nothing_of_its_images_is_refused(exported, tmp_path):
    base, _ = exported
    plain = onnx.load(base / "model.onnx")
    del plain.metadata_props[:]
    onnx.save(plain, tmp_path / "plain.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"no such thing")
    for name, message in (
        ("plain", "no ONNX file of `seam export`"),
        ("broken", "no ONNX file"),
        ("none", "no such file"),
    ):
        with pytest.raises(SeamError, match=message):
            seam.OnnxFile(tmp_path / f"{name}.onnx")
