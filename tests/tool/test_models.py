"""Models that a name, a policy and a file of weights say: what they were trained for, and whether they fit together."""

import pytest
import timm
import torch
from digit_images import save_digits
from forked import seam as run
from torch import nn

import seam.tool as seam
from seam.errors import SeamError
from seam.io import read_json, save_tensors, write_json
from seam.tool.models import weights_sha256

TRAINED_FOR = {"mean": [0.4], "std": [0.2], "crop_pct": 0.5, "interpolation": "bilinear"}


@pytest.fixture
def gray():
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=10, in_chans=1).eval()


def test_what_weights_were_trained_for_goes_from_the_search_into_the_file(gray, tmp_path):
    save_digits(tmp_path / "photos", range(40))
    torch.save(gray.state_dict(), tmp_path / "mine.pth")
    said = ("size=1,48,40", "mean=0.4", "std=0.2", "crop=0.5", "interpolation=bilinear")
    said = [word for text in said for word in ("--input", text)]
    given = ("--weights", "mine.pth", "--data", "photos")
    done = run(
        *("search", "--model", "test_resnet", *given, *said, "--method", "uniform", "-o", "policy.json"), cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    about = read_json(tmp_path / "policy.json")["model"]
    assert about["input_size"] == [1, 48, 40] and {key: about[key] for key in TRAINED_FOR} == TRAINED_FOR
    done = run("show", "policy.json", cwd=tmp_path)
    assert "input 1x48x40" in done.stdout and "mean 0.4, std 0.2, centre crop of 0.5, bilinear" in done.stdout
    done = run("export", "--policy", "policy.json", *given, "--images", 8, "-o", "m.onnx", cwd=tmp_path)
    assert done.returncode == 0 and "was searched for other weights" not in done.stderr, done.stderr
    how = read_json(tmp_path / "m.parity.json")["metadata"]["preprocessing"]
    assert how["resize"] == [96, 80] and how["crop"] == [48, 40] and how["interpolation"] == "bilinear"
    assert (how["colour"], how["mean"], how["std"]) == ("L", [0.4], [0.2])
    whole = ("evaluate", "--model", "test_resnet", *given, *said, "-o", "metrics.json")
    assert run(*whole, cwd=tmp_path).returncode == 0
    images = seam.open_images(
        tmp_path / "photos", seam.set_preprocessing(gray, input_size=(1, 48, 40), **TRAINED_FOR), full_size=True
    )
    assert read_json(tmp_path / "metrics.json")["loss"] == pytest.approx(seam.evaluate(gray, images)["loss"], rel=1e-4)
    done = run(*whole, "--policy", "policy.json", cwd=tmp_path)
    assert done.returncode == 2 and "--input is for a model without --policy" in done.stderr
    done = run("layers", "--model", "test_resnet", "--input", "size=64", cwd=tmp_path)
    assert done.returncode == 0 and "3x64x64" in done.stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sise=64", "unknown key 'sise'; did you mean size?"),
        ("size=64,x", "--input size=64,x: not a number"),
        ("size=64,64", "input size 64,64: write channels (1 or 3), height and width"),
        ("size=4,64,64", "input size 4,64,64"),
        ("mean=127", "a number a channel (3) from 0 to 1, or one for all: pixels are scaled to 0..1 first"),
        ("mean=0.1,0.2", "mean [0.1, 0.2]"),
        ("std=0", "std [0.0]"),
        ("crop=1.5", "crop 1.5: must be above 0, at most 1"),
        ("interpolation=cubic", "unknown interpolation 'cubic'; did you mean bicubic?"),
    ],
)
def test_what_cannot_be_is_named(tmp_path, text, message):
    done = run("layers", "--model", "test_resnet", "--input", text, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr


def test_a_transformer_is_built_for_the_size_that_its_weights_are_for(tmp_path):
    trained = timm.create_model("test_vit", num_classes=10, img_size=96)
    save_tensors(tmp_path / "vit.safetensors", trained.state_dict())
    with pytest.raises(SeamError, match="pos_embed has shape"):
        seam.open_model("test_vit", tmp_path / "vit.safetensors")
    model = seam.open_model("test_vit", tmp_path / "vit.safetensors", input_size=[96])
    assert seam.input_size(model) == (3, 96, 96)
    policy = seam.search(model, method="uniform", name="test_vit")
    again = seam.model_of(policy, tmp_path / "vit.safetensors")
    assert seam.input_size(again) == (3, 96, 96)
    assert all(torch.equal(value, trained.state_dict()[key]) for key, value in again.state_dict().items())


def test_weights_that_a_policy_was_not_searched_for_are_told(gray, tmp_path, capsys):
    save_tensors(tmp_path / "first.safetensors", gray.state_dict())
    policy = seam.search(gray, method="uniform", name="test_resnet")
    write_json(tmp_path / "policy.json", policy)
    with torch.no_grad():
        gray.get_classifier().bias[3] += 1e-3
    save_tensors(tmp_path / "second.safetensors", gray.state_dict())
    seam.model_of(tmp_path / "policy.json", tmp_path / "first.safetensors")
    assert capsys.readouterr().err == ""
    seam.model_of(tmp_path / "policy.json", tmp_path / "second.safetensors")
    assert "policy.json: was searched for other weights than" in capsys.readouterr().err
    del policy["model"]["weights_sha256"]
    seam.model_of(policy, tmp_path / "second.safetensors")
    assert capsys.readouterr().err == ""
    before = weights_sha256(gray)
    assert weights_sha256(gray.half()) != before


def test_gray_images_need_not_be_told(gray, tmp_path):
    save_tensors(tmp_path / "gray.safetensors", gray.state_dict())
    assert seam.input_size(gray) == seam.input_size(seam.open_model("test_resnet", tmp_path / "gray.safetensors"))
    assert seam.input_size(gray)[0] == 1 and seam.input_size(timm.create_model("test_resnet"))[0] == 3
    with pytest.raises(SeamError, match="weights do not fit the model"):
        seam.open_model("test_resnet", tmp_path / "gray.safetensors", channels=3)


def test_a_policy_that_names_no_model_needs_a_name(gray, tmp_path):
    policy = seam.search(gray, method="uniform", name="test_resnet")
    del policy["model"]
    write_json(tmp_path / "policy.json", policy)
    with pytest.raises(SeamError, match=r"policy\.json: does not name its model; give --model"):
        seam.model_of(tmp_path / "policy.json", untrained=True)
    assert seam.model_of(policy, name="test_resnet", untrained=True).num_classes == 1000


def test_a_quantized_model_is_saved_and_opened_again(gray, tmp_path):
    """As docs/tool.md has it."""
    save_tensors(tmp_path / "mine.safetensors", gray.state_dict())
    images = seam.open_images(None, gray, full_size=True).subset(range(16))
    policy = seam.search(gray, budget="w4a4", method="uniform", name="test_resnet")
    quantized = seam.calibrate(seam.quantize(gray, policy), images)
    save_tensors(tmp_path / "quantized.safetensors", quantized.state_dict())
    again = seam.quantize(seam.model_of(policy, untrained=True), policy)
    seam.load_finetuned(again, tmp_path / "quantized.safetensors")
    ((x, _),) = images.batches(16)
    with torch.no_grad():
        torch.testing.assert_close(again(x), quantized(x))


class Mine(nn.Module):
    """What a user may bring: no timm model."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU())
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        return self.fc(self.body(x).mean((2, 3)))


class Complete(Mine):
    num_classes = 10

    def get_classifier(self):
        return self.fc


def test_a_module_of_one_s_own_says_what_it_lacks():
    model = seam.set_preprocessing(Mine().eval(), input_size=[32])
    with pytest.raises(SeamError, match=r"Mine: .*needs num_classes"):
        seam.search(model)
    model.num_classes = 10
    with pytest.raises(SeamError, match=r"Mine: .*needs get_classifier\(\)"):
        seam.search(model)
    model = seam.set_preprocessing(Complete().eval(), input_size=[32])
    policy = seam.search(model, budget="w4a4")
    assert policy["model"]["num_classes"] == 10 and policy["model"]["input_size"] == [3, 32, 32]
