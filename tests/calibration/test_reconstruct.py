"""What is drawn at random; what reconstruction does to networks is in test_levels.py."""

import pytest
import torch

from seam.calibration.reconstruct import _Choice, _drawn


@pytest.mark.parametrize("share", [1 / 256, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_a_share_is_drawn_in_the_order_of_the_memory(share, order):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 13, 31, 33).to(memory_format=order)
    first, second = (_drawn(x, share, generator) for _ in range(2))
    assert first.dtype == torch.bool and first.shape == x.shape and first.stride() == x.stride()
    spread = (share * (1 - share) / x.numel()) ** 0.5
    for mask in (first, second):
        assert abs(mask.float().mean().item() - share) <= 4 * spread
    assert share == 1 or abs((first & second).float().mean().item() - share**2) <= 6 * spread  # independent
    again = _drawn(x, share, torch.Generator().manual_seed(0))
    assert torch.equal(again, first)


def test_a_part_of_a_larger_tensor_gets_a_mask_of_its_own():
    x = torch.randn(6, 8, 10)[:, ::2].transpose(1, 2)
    mask = _drawn(x, 0.5, torch.Generator().manual_seed(0))
    assert mask.shape == x.shape and 0.3 < mask.float().mean() < 0.7


def test_the_choice_of_two_has_the_gradients_of_where():
    a, b = (torch.randn(6, 7, dtype=torch.double, requires_grad=True) for _ in range(2))
    mask = torch.rand(6, 7) < 0.5
    torch.testing.assert_close(_Choice.apply(mask, a, b), torch.where(mask, a, b))
    assert torch.autograd.gradcheck(lambda a, b: _Choice.apply(mask, a, b), (a, b))
