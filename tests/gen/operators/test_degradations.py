"""Random degradations: kernels by their closed forms, one degradation for each seed, and LaMa's masks."""

import math

import pytest
import torch
from torch.nn.functional import conv2d, pad

from gen.config.errors import UserError
from gen.operators.gfpgan import GFPGAN
from gen.operators.inpaint import Inpaint
from gen.operators.lib.degradations import blur_kernel, filtered, resized, sinc_kernel
from gen.operators.lib.masks import lama_mask
from gen.operators.real_esrgan import KINDS, RealESRGAN


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def test_kernels_sum_to_1_and_have_their_moments():
    at = torch.arange(41, dtype=torch.float64) - 20
    assert sum(probability for *_, probability in KINDS) == pytest.approx(1)
    for kind, stretched, _ in KINDS:
        kernel = blur_kernel(41, (0.2, 3.0), kind, stretched, draw(3))
        assert float(kernel.sum()) == pytest.approx(1)
        torch.testing.assert_close(kernel, kernel.flip(0, 1))
    kernel = blur_kernel(41, (2.0, 2.0), "gaussian", True, draw())
    assert float((kernel.sum(0) * at**2).sum()) == pytest.approx(4, rel=1e-6)
    assert blur_kernel(41, (1.0, 6.0), "gaussian", True, draw()).sum(0).ne(kernel.sum(1)).any()
    kernel = sinc_kernel(301, math.pi / 2)  # passes what lies within the circle of its cutoff, and nothing else
    response = torch.fft.fft2(kernel.roll((-150, -150), (0, 1))).abs()
    assert float(response[0, :60].min()) > 0.9 and float(response[0, 95:150].max()) < 0.1
    point, core = torch.zeros(1, 19, 19, dtype=torch.float64), kernel[146:155, 146:155]
    point[0, 9, 9] = 1
    torch.testing.assert_close(filtered(point, core)[0, 5:14, 5:14], core)
    x = torch.rand(3, 8, 6, dtype=torch.float64)
    for size, mode in ((5, "reflect"), (13, "replicate")):
        kernel = blur_kernel(size, (1.0, 3.0), "gaussian", True, draw(1))
        padded = pad(x[:, None], [size // 2] * 4, mode=mode)
        torch.testing.assert_close(filtered(x, kernel), conv2d(padded, kernel[None, None])[:, 0])
    x = torch.rand(3, 8, 6)
    torch.testing.assert_close(resized(x, 4, 3, "area"), torch.nn.functional.avg_pool2d(x, 2))


def test_a_seed_is_one_degradation_of_each_picture():
    x = 2 * torch.rand(2, 3, 32, 24) - 1
    for spec, size in ((RealESRGAN, (8, 6)), (GFPGAN, (32, 24))):
        low = [spec(seed=seed).on((3, 32, 24)).A(x) for seed in (*range(8), 0)]
        assert torch.equal(low[0], low[-1]) and not torch.equal(low[0], low[1])
        for one in low:
            assert one.shape == (2, 3, *size) and -1 <= float(one.min()) <= float(one.max()) <= 1
            pixels = (one + 1) * 127.5
            torch.testing.assert_close(pixels.round(), pixels, atol=1e-4, rtol=0)
    grey = torch.linspace(-0.3, 0.3, 32).expand(1, 1, 32, 32)
    for make in (lambda seed: RealESRGAN(2, seed=seed), lambda seed: GFPGAN(seed)):
        left = torch.stack([make(seed).on((1, 32, 32)).A(grey) for seed in range(20)])
        assert abs(float(left.mean())) < 0.02  # none makes pictures brighter or darker
    sharp = torch.zeros(1, 1, 32, 32)
    sharp[..., ::2] = 1
    assert float(RealESRGAN(2).on((1, 32, 32)).A(sharp).std()) < 0.5 * float(sharp.std())
    assert not torch.equal(RealESRGAN(second=0.0).on((3, 32, 24)).A(x), RealESRGAN(second=1.0).on((3, 32, 24)).A(x))
    for shape, why in (((1, 6, 6), "factor = 4 does not divide 6 x 6"), ((2, 8, 8), "pictures")):
        with pytest.raises(UserError, match=why):
            RealESRGAN().on(shape)


def test_holes_are_strokes_boxes_or_borders():
    holes = [lama_mask(64, 64, seed) for seed in range(60)]
    shares = torch.stack([hole.float().mean() for hole in holes])
    assert float(shares.min()) > 0.005 and float(shares.max()) < 0.95 and 0.15 < float(shares.mean()) < 0.5
    edges = [bool(hole[0].all() or hole[-1].all() or hole[:, 0].all() or hole[:, -1].all()) for hole in holes]
    assert 10 <= sum(edges) <= 40  # borders, a third, and strokes that happen to
    assert all(not hole.all() for hole in holes)
    assert torch.equal(lama_mask(64, 64, 5), holes[5]) and lama_mask(3, 5, 0).shape == (3, 5)
    known = Inpaint(mask="lama", seed=5).on((3, 64, 64))
    assert torch.equal(known.known, ~holes[5])
    assert torch.equal(Inpaint(mask="lama", seed=5, box=(0, 9, 0, 9)).on((1, 64, 64)).known[9:], ~holes[5][9:])
    with pytest.raises(UserError, match="mask is of pictures"):
        Inpaint(mask="lama").on((7,))
