"""What single operators measure, against other tools and closed forms."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from gen.config.errors import UserError
from gen.operators.bicubic import Bicubic
from gen.operators.blur import Blur
from gen.operators.fourier import Fourier
from gen.operators.inpaint import Inpaint
from gen.operators.radon import Radon
from tests.over import over


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def close(got, want, within=1e-10):
    torch.testing.assert_close(got, want, rtol=within, atol=within)


@over(factor=[2, 4])
def test_bicubic_is_pils_inside_and_mirrors_at_the_edges(factor):
    x = normal(1, 1, 32, 24)
    op = Bicubic(factor).on((1, 32, 24))
    theirs = Image.fromarray(x[0, 0].numpy().astype(np.float32)).resize((24 // factor, 32 // factor), Image.BICUBIC)
    close(op.A(x)[0, 0, 2:-2, 2:-2], torch.from_numpy(np.array(theirs)).double()[2:-2, 2:-2], 1e-5)
    mirrored = torch.cat((x.flip(3), x, x.flip(3)), 3)
    wide = Bicubic(factor).on((1, 32, 72)).A(mirrored)
    close(op.A(x), wide[..., 24 // factor : 48 // factor])


def test_blurs_keep_constants_and_have_their_width():
    """A motion's second moment is length^2 / 12 along its line, and 1/6 at most more of interpolation."""
    for kernel in ("gaussian", "motion"):
        for edges in ("circular", "reflect"):
            op = Blur(kernel, 3.0, 20, edges).on((1, 31, 31))
            close(op.A(torch.ones(1, 1, 31, 31, dtype=torch.float64)), torch.ones(1, 1, 31, 31, dtype=torch.float64))
    dot = torch.zeros(1, 1, 31, 31, dtype=torch.float64)
    dot[..., 15, 15] = 1
    at = torch.arange(31, dtype=torch.float64) - 15
    spread = [(Blur("gaussian", 2.0).on((1, 31, 31)).A(dot)[0, 0].sum(dim) * at**2).sum() for dim in (0, 1)]
    assert spread == pytest.approx([4, 4], rel=2e-3)
    line = Blur("motion", 9.0, 90, "reflect").on((1, 31, 31)).A(dot)[0, 0]
    assert (line.sum(1) * at**2).sum() == pytest.approx(9**2 / 12 + 1 / 6, abs=0.01)
    assert (line.sum(0) * at**2).sum() == pytest.approx(0, abs=1e-12)
    diagonal = Blur("motion", 9.0, 45).on((1, 31, 31)).A(dot)[0, 0]
    assert (diagonal * at[:, None] * at).sum() < -2  # up to the right


def test_projections_are_line_integrals():
    """Along the axes sums of columns and rows; a centred square at 45 degrees casts a triangle, 4 h wide."""
    x = normal(1, 1, 7, 5)
    y = Radon(views=2, detectors=9).on((1, 7, 5)).A(x)[0, 0]
    close(y[0, 2:7], x[0, 0].sum(0))
    close(y[1, 1:8], x[0, 0].flip(0).sum(1))
    square = torch.ones(1, 1, 8, 8, dtype=torch.float64)
    shadow = Radon(views=1, start=45, detectors=12).on((1, 8, 8)).A(square)[0, 0, 0]
    edges = torch.arange(-6, 7, dtype=torch.float64)
    half = 4 * math.sqrt(2)  # the shadow at u is 2 (half - |u|)
    left = (half - edges.abs()).clamp(min=0)
    integral = torch.where(edges < 0, left**2, 2 * half**2 - left**2)
    close(shadow, integral.diff())
    assert float(shadow.sum()) == pytest.approx(64)


def test_back_projection_inverts_many_views():
    at = torch.arange(32, dtype=torch.float64) - 15.5
    disc = ((at[:, None] ** 2 + at**2) < 100).double()[None, None]
    for spec in (Radon(views=64), Radon(views=128, arc=360)):
        op = spec.on((1, 32, 32))
        back = op.fbp(op.A(disc))
        inside = (at[:, None] ** 2 + at**2) < 64
        assert float(back[0, 0][inside].mean()) == pytest.approx(1, abs=0.01)
        assert float((back - disc)[0, 0][inside].abs().max()) < 0.1


def test_the_pattern_of_a_scan():
    mask = Fourier(acceleration=4, centre=0.1).mask(8, 64)
    assert int(mask[0].sum()) == 16
    assert (mask == mask[:1]).all()
    assert mask[0, :4].all()  # the lowest frequencies
    assert mask[0, -3:].all()
    assert not torch.equal(mask, Fourier(acceleration=4, centre=0.1, seed=1).mask(8, 64))


def test_a_mask_is_read_from_a_picture(tmp_path):
    mask = torch.zeros(6, 4, dtype=torch.uint8)
    mask[2:4, 1:] = 255
    Image.fromarray(mask.numpy()).save(tmp_path / "mask.png")
    op = Inpaint(file=str(tmp_path / "mask.png")).on((3, 6, 4))
    assert torch.equal(op.known, mask == 0)
    with pytest.raises(UserError, match="6 x 4 pixels"):
        Inpaint(file=str(tmp_path / "mask.png")).on((3, 8, 8))
