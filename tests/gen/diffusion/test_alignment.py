"""Alignment losses against numbers worked out by hand, and against what they must not depend on."""

import math

import pytest
import torch
from torch import nn

from gen.config.errors import UserError
from gen.diffusion.alignment import (
    Projector,
    adaptive_weight,
    manifold,
    negative_cosine,
    resample,
    tokens_of,
    vf_loss,
)


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def rotation(dim):
    return torch.linalg.qr(random(dim, dim))[0]


def test_equal_features_cost_minus_one_in_any_scale():
    h = random(3, 4, 5)
    assert float(negative_cosine(h, 7 * h)) == pytest.approx(-1, abs=1e-15)
    assert float(negative_cosine(h, -h)) == pytest.approx(1, abs=1e-15)


def test_cosine_by_hand():
    h = f64([[1, 0], [1, 1]], [[0, 2], [3, 4]])
    y = f64([[0, 5], [2, 2]], [[0, -1], [4, 3]])
    assert float(negative_cosine(h, y)) == pytest.approx(-(0 + 1 - 1 + 24 / 25) / 4, abs=1e-15)


def test_half_precision_is_computed_in_single():
    h = torch.randn(2, 8, 16)
    loss = negative_cosine(h.bfloat16(), h.bfloat16())
    assert loss.dtype == torch.float32 and float(loss) == pytest.approx(-1, abs=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert manifold(h, 2 * h).dtype == torch.float32 and float(manifold(h, 2 * h)) < 1e-12


@pytest.mark.parametrize("pairs", ["intra", "all"])
def test_the_manifold_loss_sees_angles_only(pairs):
    h, y = random(3, 5, 4), random(3, 5, 6)
    loss = manifold(h, y, pairs)
    assert float(loss) > 1e-2
    turned = manifold(h, 3 * y @ rotation(6), pairs)
    assert float(turned) == pytest.approx(float(loss), rel=1e-12)
    assert float(manifold(y @ rotation(6), y, pairs)) == pytest.approx(0, abs=1e-14)


def test_the_manifold_loss_by_hand():
    h = f64([[1, 0], [0, 1]], [[1, 0], [1, 0]])
    y = f64([[1, 0], [1, 0]], [[0, 1], [0, 1]])
    assert float(manifold(h, y)) == pytest.approx(2 / 8)  # the first sample's two ordered pairs differ by 1
    # of four tokens, h has 0, 2, 3 alike and y has 0, 1 and 2, 3: they differ on (0, 1), (0, 2), (0, 3)
    assert float(manifold(h, y, "all")) == pytest.approx(6 / 16)


def test_all_pairs_are_the_direct_sum():
    h, y = random(3, 5, 4), random(3, 5, 7)
    a, b = (nn.functional.normalize(v.flatten(0, 1), dim=1) for v in (h, y))
    direct = (b @ b.mT - a @ a.mT).square().mean()
    assert float(manifold(h, y, "all")) == pytest.approx(float(direct), rel=1e-12)
    both = [manifold(h[i : i + 1], y[i : i + 1], "all") for i in range(3)]
    assert float(manifold(h, y)) == pytest.approx(float(torch.stack(both).mean()), rel=1e-12)


def test_the_vf_loss_is_zero_and_flat_inside_its_margins():
    y = random(2, 6, 8)
    z = (y + 0.1 * random(2, 6, 8)).requires_grad_()
    loss = vf_loss(z, y)
    assert loss == 0
    (grad,) = torch.autograd.grad(loss, z)
    assert torch.equal(grad, torch.zeros_like(z))
    assert vf_loss(z, y, cos_margin=0, distance_margin=0) > 0


def test_the_vf_loss_by_hand():
    z = f64([[1, 0], [0, 1]])
    y = f64([[0, 1], [1, 1]])
    root = 1 / math.sqrt(2)  # cos(z_1, y_1), and cos(y_0, y_1) where z has 0
    near = (0.5 + 0) / 2  # relu(.5 - 0) and relu(.5 - .707)
    alike = 2 * (root - 0.25) / 4
    assert float(vf_loss(z, y)) == pytest.approx(near + alike, rel=1e-12)


def test_gradients_of_the_vf_loss_by_hand():
    """Of latents z and features f of one row: loss and gradient of the first token."""
    half = 0.5**0.5 / 2
    cases = [
        ([[2, 0]], [[0, 3]], {}, 0.5, [0, -0.5]),  # -(f / |f| - cos z / |z|) / |z|
        ([[1, 1]], [[1, 0]], {"cos_margin": 0, "distance_margin": 0}, 0.292893, [-half, half]),
        ([[1, 1]], [[1, 0]], {}, 0.0, [0, 0]),
        ([[1, 0], [1, 0]], [[1, 0], [0, 1]], {}, 0.625, [0, 0]),  # at collapse the pair has no gradient
        ([[1, 0], [1, 0.5]], [[1, 0], [0, 1]], {}, 0.348607, None),
        ([[7, 0], [7, 3.5]], [[1, 0], [0, 1]], {}, 0.348607, None),
    ]
    slopes = []
    for z, f, margins, loss, slope in cases:
        latents = f64(*[z]).requires_grad_()
        value = vf_loss(latents, f64(*[f]), **margins)
        (grad,) = torch.autograd.grad(value, latents)
        slopes.append(grad)
        assert float(value.detach()) == pytest.approx(loss, abs=1e-6), (z, f)
        assert slope is None or grad[0, 0].tolist() == pytest.approx(slope, abs=1e-12), (z, f)
    torch.testing.assert_close(slopes[5], slopes[4] / 7)


def test_the_adaptive_weight_is_a_quotient_of_gradients():
    w = f64([1.0, 2.0]).requires_grad_()
    main, other = (w * f64([3.0, 4.0])).sum(), (w**2).sum() / 2  # gradients (3, 4) and w itself
    weight = adaptive_weight(main, other, w)
    assert float(weight) == pytest.approx(5 / (math.sqrt(5) + 1e-4), rel=1e-12) and not weight.requires_grad
    assert float(adaptive_weight(1e6 * main, 0 * other, w)) == 1e8
    assert float(adaptive_weight(main, 0 * other, w)) == pytest.approx(5e4)
    main.backward()  # the graph is still there
    w = f64([3.0, 4.0]).requires_grad_()
    main, other = (w**2).sum(), (w * f64([0.3, 0.4])).sum()  # norms 10 and 0.5
    for eps, expected in ((1e-4, 19.996), (1e-6, 19.99996)):
        assert float(adaptive_weight(main, other, w, eps=eps)) == pytest.approx(expected, abs=1e-6)
    faint = other * 2.8e-9
    assert float(adaptive_weight(main, faint, w)) == pytest.approx(99_998.6, abs=0.01)
    assert float(adaptive_weight(main, faint, w, most=1e4)) == 1e4


@pytest.mark.parametrize(("width", "count"), [(768, 7_344_896), (1024, 7_869_184), (1152, 8_131_328)])
def test_the_projector_is_the_published_one(width, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in Projector(width, 768).parameters()) == count


def test_resampling_keeps_constants_and_slopes():
    ramp = torch.arange(4, dtype=torch.float64).expand(4, 4)  # the column
    tokens = torch.stack([ramp, torch.ones(4, 4).double()]).flatten(1).mT[None]  # [1, 16, 2]
    finer = resample(tokens, 8)[0].mT.unflatten(1, (8, 8))
    assert torch.allclose(finer[1], torch.ones(8, 8).double())
    assert torch.allclose(finer[0, :, 1:-1], (torch.arange(1, 7).double() / 2 - 0.25).expand(8, 6))
    assert resample(tokens, 4) is tokens
    with pytest.raises(UserError, match="5 tokens are no square grid"):
        resample(random(1, 5, 2), 4)


def test_a_feature_map_is_tokens_row_by_row():
    image = random(2, 3, 4, 5)
    tokens = tokens_of(image)
    assert tokens.shape == (2, 20, 3) and torch.equal(tokens[1, 7], image[1, :, 1, 2])
    assert tokens_of(tokens) is tokens
