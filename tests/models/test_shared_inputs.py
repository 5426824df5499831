import pytest
import torch
import torch.nn.functional as F
from torch import nn

from seam.errors import SeamError
from seam.io import save_tensors
from seam.models.build import build
from seam.models.find import find_layers
from seam.models.layers import Layer, check_ties, settle
from seam.quant.apply import calibrate, quantize
from seam.quant.kernels import use_kernels
from seam.quant.mixture import Mixture
from seam.settings import Model


@pytest.fixture(autouse=True)
def eager():
    use_kernels("eager")


class Branches(nn.Module):
    """q, k, v read one tensor; `late` reads it after it was changed in place; `part` reads half of it."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.q, self.k, self.v = (nn.Conv2d(8, 8, 1) for _ in range(3))
        self.identity = nn.Identity()
        self.part = nn.Conv2d(4, 8, 1)
        self.late = nn.Conv2d(8, 8, 1)
        self.same = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = F.relu(self.stem(x))
        y = self.q(x) + self.k(self.identity(x)) + self.v(input=x) + self.part(x[:, :4])
        x = x * 0.5 if torch.is_grad_enabled() else x.mul_(0.5)  # autograd refuses the latter
        z = self.late(x)
        return self.head((y + z + self.same(x.view(x.shape))).mean((2, 3)))


def groups(model, size):
    found: dict[str, list[str]] = {}
    for layer in find_layers(model, size):
        found.setdefault(layer.group, []).append(layer.name)
    return found


def images(count=8):
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_readers_of_one_tensor_are_found_and_only_they():
    tied = {k: v for k, v in groups(Branches(), (1, 8, 8)).items() if len(v) > 1}
    assert tied == {"q": ["q", "k", "v"], "late": ["late", "same"]}


def test_resnet_ties_each_block_s_first_convolution_to_its_shortcut():
    tied = [v for v in groups(build(Model(name="resnet18"), 10, 1), (1, 32, 32)).values() if len(v) > 1]
    assert tied == [[f"layer{i}.0.conv1", f"layer{i}.0.downsample.0"] for i in (2, 3, 4)]


def test_inception_branches_are_tied():
    tied = groups(build(Model(name="inception_v3"), 10, 3), (3, 96, 96))
    assert tied["Mixed_5b.branch1x1.conv"] == [
        f"Mixed_5b.{name}.conv" for name in ("branch1x1", "branch5x5_1", "branch3x3dbl_1")
    ]


def test_freed_memory_is_not_taken_for_the_same_tensor():
    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(12))

        def forward(self, x):
            x = x.flatten(1)
            for layer in self.layers:
                x = layer(x)
            return x

    assert all(len(v) == 1 for v in groups(Chain(), (1, 8, 8)).values())


def test_a_fixed_layer_stands_alone_and_the_next_names_the_group():
    layers = [Layer("a", 1, 1, True, "a"), Layer("b", 1, 1, False, "a"), Layer("c", 1, 1, False, "a")]
    assert [layer.group for layer in settle(layers)] == ["a", "b", "b"]


def test_different_bits_in_a_group_are_refused_naming_both():
    layers = find_layers(Branches(), (1, 8, 8))
    bits = dict.fromkeys([layer.name for layer in layers], (4, 4)) | {"k": (3, 4)}
    check_ties(bits, {layer.name: layer.group for layer in layers})
    with pytest.raises(SeamError, match="layers q and v read the same tensor"):
        quantize(Branches(), bits | {"v": (4, 5)}, layers)


def test_tied_layers_share_one_quantizer_that_is_stored_once(tmp_path):
    torch.manual_seed(0)
    model = Branches()
    layers = find_layers(model, (1, 8, 8))
    quantize(model, {layer.name: (4, 4) for layer in layers}, layers)
    calibrate(model, [(images(), None)])
    assert model.q.input_quantizer is model.k.input_quantizer is model.v.input_quantizer
    assert model.q.input_quantizer is not model.late.input_quantizer
    state = model.state_dict()
    assert {k.split(".")[0] for k in state if "input_quantizer" in k} == {"stem", "q", "part", "late", "head"}
    save_tensors(tmp_path / "m.safetensors", state)
    torch.manual_seed(1)
    other = quantize(Branches(), {layer.name: (4, 4) for layer in layers}, layers)
    other.load_state_dict(state)
    torch.testing.assert_close(other.eval()(images()), model.eval()(images()))


def test_in_the_mixture_tied_layers_share_logits_and_mix_once(monkeypatch):
    from seam.quant import mixture

    torch.manual_seed(0)
    model = Branches()
    net = Mixture(model, find_layers(model, (1, 8, 8)), (2, 4, 6))
    net.calibrate([(images(), None)])
    assert net.names == ["q", "k", "v", "part", "late", "same"] and net.group == [0, 0, 0, 1, 2, 2]
    assert net.input_logits.shape == (3, 3) and net.weight_logits.shape == (6, 3)
    seen = []
    mix = mixture.mix
    monkeypatch.setattr(mixture, "mix", lambda x, s, *rest: seen.append(s.dim()) or mix(x, s, *rest))
    net(images()).square().sum().backward()
    # Inputs (one step a bit-width): q, k and v's once; part's; late's and its view's.
    assert seen.count(1) == 4
    assert (net.input_logits.grad.abs().sum(1) > 0).all()


def test_the_shared_mixture_is_not_kept_from_one_step_to_the_next():
    torch.manual_seed(0)
    model = Branches()
    net = Mixture(model, find_layers(model, (1, 8, 8)), (2, 4, 6))
    net.calibrate([(images(), None)])
    before = net(images())
    with torch.no_grad():
        net.input_logits[0, 0] = 30.0
    assert (net(images()) - before).abs().max() > 0


def test_a_group_s_preference_counts_once():
    torch.manual_seed(0)
    model = Branches()
    net = Mixture(model, find_layers(model, (1, 8, 8)), (2, 4, 6))
    with torch.no_grad():
        net.input_logits[0] = torch.tensor([0.0, 1.0, 2.0])
    table = net.preferences()
    expected = torch.log_softmax(torch.tensor([0.0, 1.0, 2.0]), 0)
    summed = torch.tensor(table[:3, 0, :].sum(0)).float() - 3 * torch.log(torch.tensor(1 / 3))
    torch.testing.assert_close(summed, expected)
