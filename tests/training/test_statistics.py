import copy

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from seam.data.loaders import load
from seam.models.build import build
from seam.settings import Model
from seam.training.statistics import BATCH, re_estimate

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    torch.set_num_threads(1)
    return load("digits", tmp_path_factory.mktemp("data"), "train")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build(Model(name="test_resnet"), 10, 1).eval()


def falling():
    """A loss that is lower each time."""
    losses = iter(range(100, 0, -1))
    return lambda x, y: torch.tensor(float(next(losses)))


def norms(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}


def test_statistics_become_those_of_what_the_layers_hand_on(images, model):
    """Also where earlier layers' statistics are new: what each reads then has the moments that it holds (but for
    Bessel's correction, which a batch's own normalisation is without)."""
    read, momenta = {}, {name: norm.momentum for name, norm in norms(model).items()}
    assert re_estimate(model, images.subset(range(BATCH)), falling(), 0, CPU) == BATCH
    for name, norm in norms(model).items():
        norm.register_forward_pre_hook(lambda _, args, name=name: read.update({name: args[0]}))
    with torch.no_grad():
        model(next(iter(images.subset(range(BATCH)).batches(BATCH)))[0])
    for name, norm in norms(model).items():
        variance, mean = torch.var_mean(read[name], (0, 2, 3))
        assert torch.allclose(norm.running_var, variance, rtol=0.1), name
        assert ((norm.running_mean - mean).abs() < 0.1 * variance.sqrt()).all(), name
        assert norm.momentum == momenta[name] and not norm.training


def test_over_many_images_it_is_the_average_of_even_batches(images, model):
    first = next(iter(norms(model)))
    again, mean = copy.deepcopy(model), 0
    assert re_estimate(model, images, falling(), 3, CPU) == 512
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(3))[:512]
    for part in order.split(BATCH):
        re_estimate(again, images.subset(part), falling(), 0, CPU)
        mean = mean + norms(again)[first].running_mean / 8
    torch.testing.assert_close(norms(model)[first].running_mean, mean)


def test_of_one_image_and_of_layers_that_none_reaches_nothing_is_learned(images, model):
    before = copy.deepcopy(model.state_dict())
    assert re_estimate(model, images.subset([0]), falling(), 0, CPU) == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.idle = nn.BatchNorm2d(3)
    model.idle.running_mean += 5
    assert re_estimate(model, images.subset(range(BATCH + 1)), falling(), 0, CPU) == BATCH + 1  # no batch of one image
    assert (model.idle.running_mean == 5).all() and model.idle.num_batches_tracked == 0


def test_they_stay_where_the_loss_does_not_fall(images, model):
    """The loss of all images that it looks at: of 65 in 33 and 32, mean 2 before, and after it."""
    before = copy.deepcopy(model.state_dict())
    for after, changes in (((3.0, 0.9), True), ((3.0, 1.1), False)):
        losses = iter((2.0, 2.0, *after))
        shown = []

        def loss(x, y, losses=losses, shown=shown):
            assert not model.training and not any(norm.training for norm in norms(model).values())
            shown.append(len(y))
            return torch.tensor(next(losses))

        re_estimate(model, images.subset(range(65)), loss, 0, CPU)
        assert shown == [33, 32, 33, 32]
        same = [torch.equal(value, before[name]) for name, value in model.state_dict().items()]
        assert all(same) != changes
        assert all(norm.momentum == 0.1 for norm in norms(model).values())
        model.load_state_dict(before)


def test_memory_that_runs_out_leaves_the_network_as_it_was(images, model):
    before, momenta = copy.deepcopy(model.state_dict()), [norm.momentum for norm in norms(model).values()]
    passes = []

    def run_out(*_):
        passes.append(1)
        if len(passes) == 2:
            raise torch.OutOfMemoryError("out of memory")

    next(iter(norms(model).values())).register_forward_hook(run_out)
    with pytest.raises(torch.OutOfMemoryError):
        re_estimate(model, images.subset(range(2 * BATCH)), falling(), 0, CPU)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [norm.momentum for norm in norms(model).values()] == momenta
    assert not any(module.training for module in model.modules())


def test_of_batch_norms_with_an_activation_and_dropout_the_statistics_alone_are_in_training(images):
    """timm's BatchNormAct2d holds them: what `train()` would switch on with it."""
    model = timm.create_model("test_efficientnet", num_classes=10, in_chans=1).eval()
    norm = next(one for one in norms(model).values() if isinstance(one, BatchNormAct2d))
    norm.drop = nn.Dropout(0.5)
    norm.drop.register_forward_pre_hook(lambda drop, _: seen.append((norm.training, drop.training)))
    seen = []
    re_estimate(model, images.subset(range(32)), lambda x, y: model(x).sum(), 0, CPU)
    assert seen == [(False, False), (True, False), (False, False)]


def test_batches_are_no_larger_than_four_of_the_trainings(images, model):
    shown = []

    def loss(x, y):
        shown.append(len(y))
        return torch.zeros(())

    for batch_size, sizes in ((2, [7, 7, 7]), (1, [4, 4, 4, 3, 3, 3]), (64, [21])):
        shown.clear()
        re_estimate(model, images.subset(range(21)), loss, 0, CPU, batch_size)
        assert shown == 2 * sizes
