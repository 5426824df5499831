"""Finetuning against a full-precision teacher."""

import copy

import pytest
import torch
import torch.nn.functional as F

from seam.data.loaders import load
from seam.models.build import build
from seam.quant.apply import calibrate, quantize
from seam.quant.kernels import use_kernels
from seam.runtime.meter import Meter
from seam.settings import Finetune, Model, Training
from seam.training.supervised import distilled, train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    use_kernels("eager")
    torch.set_num_threads(1)
    return load("digits", tmp_path_factory.mktemp("data"), "train")


@pytest.fixture
def teacher(images):
    torch.manual_seed(0)
    model = build(Model(name="test_resnet"), 10, 1)
    train(model, Training(epochs=2, batch_size=64, lr=0.05), images, 0, CPU, Meter(CPU))
    return model


def test_the_loss_is_the_stated_mixture(teacher):
    torch.manual_seed(1)
    student = build(Model(name="test_resnet"), 10, 1)
    x, y, meter = torch.randn(8, 1, 8, 8), torch.arange(8), Meter(CPU)
    p, q = teacher(x).softmax(1), student(x).softmax(1)
    moved = (p * (p.log() - q.log())).sum(1).mean()
    expected = 0.3 * moved + 0.7 * F.cross_entropy(student(x), y, label_smoothing=0.1)
    found, logs = distilled(student, teacher, 0.3, 0.1, meter)(x, y, 0.0)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert logs["top1"].item() == 100 * (q.argmax(1) == y).float().mean().item() and meter.forwards == 8


def test_distillation_brings_a_quantized_network_closer_to_full_precision_whatever_the_labels(images, teacher):
    student = copy.deepcopy(teacher)
    bits = {n: (3, 3) for n, m in student.named_modules() if isinstance(m, torch.nn.Conv2d) and n.startswith("layer")}
    quantize(student, bits)
    calibrate(student, [next(iter(images.batches(512)))])
    x = next(iter(images.batches(len(images))))[0]

    def distance() -> float:
        with torch.no_grad():
            wanted, found = teacher(x).log_softmax(1), student(x).log_softmax(1)
        return F.kl_div(found, wanted, reduction="batchmean", log_target=True).item()

    before = distance()
    shuffled = images.subset(torch.arange(len(images)))
    shuffled.labels = (images.labels + 1) % 10  # wrong all of them: a share of 1 must not look at them
    settings = Finetune(epochs=2, batch_size=64, lr=0.01, step_lr=0.003, distillation=1.0)
    meter = Meter(CPU)
    train(student, settings, shuffled, 0, CPU, meter, teacher)
    assert distance() < 0.5 * before
    trained, seen = 2 * (len(images) // 64) * 64, 512  # the latter for the statistics, the loss before and after them
    assert meter.images == trained + seen and meter.forwards == trained * (3 + 1) + seen * (3 + 2)
