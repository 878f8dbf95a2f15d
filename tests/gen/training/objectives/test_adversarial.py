"""Augmented pictures: each of the three by a plain loop, exact, and of a sample alone."""

import pytest
import torch

from gen.diffusion.noise import Noise
from gen.training.objectives.lib.adversarial import DiffAug


def pictures(n=3, h=8, w=6):
    return torch.randn(n, 3, h, w, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_moves_by_whole_pixels_and_fills_with_grey():
    x, augment = pictures(), DiffAug(translation=0.25)  # at most 2 of 8 rows, round(1.5) = 2 of 6 columns
    for u, move in ((0.0, -2), (0.39, -1), (0.5, 0), (0.79, 1), (0.999, 2)):
        moved = augment.translated(x, torch.tensor([[u] * 3, [0.5] * 3]))
        for row in range(8):
            expected = x[:, :, row + move] if 0 <= row + move < 8 else torch.zeros(3, 3, 6)
            assert torch.equal(moved[:, :, row], expected.double())
        sideways = augment.translated(x.mT, torch.tensor([[0.5] * 3, [u] * 3]))
        assert torch.equal(sideways.mT, augment.translated(x, torch.tensor([[u] * 3, [0.5] * 3])))


def test_colours_by_three_numbers():
    x, augment = pictures(), DiffAug()
    half = torch.full((3, 3), 0.5)
    torch.testing.assert_close(augment.coloured(x, half), x)
    brighter = augment.coloured(x, torch.tensor([[0.75], [0.5], [0.5]]).expand(3, 3))
    torch.testing.assert_close(brighter, x + 0.25)
    grey = augment.coloured(x, torch.tensor([[0.5], [0.0], [0.5]]).expand(3, 3))
    torch.testing.assert_close(grey, x.mean(1, keepdim=True).expand_as(x))
    flat = augment.coloured(x, torch.tensor([[0.5], [0.5], [0.0]]).expand(3, 3))
    torch.testing.assert_close(flat.mean((1, 2, 3)), x.mean((1, 2, 3)))
    torch.testing.assert_close(flat.std((1, 2, 3)), x.std((1, 2, 3)) / 2)
    assert DiffAug(colour=False).coloured(x, half) is x


def test_cuts_a_rectangle_out():
    x, augment = torch.ones(4, 1, 8, 8, dtype=torch.float64), DiffAug(cutout=0.5)  # 4 x 4 pixels
    whole = augment.cut(x, torch.tensor([[0.5, 0.0, 0.999, 0.5], [0.5, 0.0, 0.999, 0.0]]))
    zeros = (whole == 0).sum((1, 2, 3))
    assert zeros.tolist() == [16, 4, 4, 8]  # about the centre; corners; the middle of an edge
    assert whole[0, 0, 2:6, 2:6].abs().sum() == 0
    assert torch.equal(DiffAug(cutout=0.0).cut(x, torch.rand(2, 4)), x)


def test_augments_a_sample_by_its_own_numbers_with_gradients():
    x, noise = pictures(), Noise((5, 6, 7))
    augment = DiffAug(cutout=0.25)
    out = augment(x, noise, "real")
    assert torch.equal(out[1:2], augment(x[1:2], Noise((6,)), "real"))
    assert not torch.equal(out, augment(x, noise, "fake"))
    assert torch.equal(DiffAug(probability=0.0)(x, noise, "real"), x)
    apart = DiffAug(probability=0.5)(x.repeat(40, 1, 1, 1), Noise(tuple(range(120))), "real")
    kept = (apart == x.repeat(40, 1, 1, 1)).flatten(1).all(1)
    assert 2 < int(kept.sum()) < 40  # (1 / 2)^3 of them, the moves of 0 and the empty cut beside
    torch.autograd.gradcheck(lambda x: augment(x, noise, "real"), x[..., :4].requires_grad_())
    with pytest.raises(ValueError, match="cutout"):
        DiffAug(cutout=1.5)
