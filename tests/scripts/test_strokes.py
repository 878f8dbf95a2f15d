"""scripts/strokes.py: drawings are moved by a model, and each is by itself."""

import torch

from gen.diffusion.denoiser import Denoiser
from gen.diffusion.parameterisation import Velocity
from gen.diffusion.path import Flow
from scripts import strokes
from tests.samplers.caches.toy import random_dit


def test_drawings_are_moved_by_the_model_and_do_not_depend_on_the_others():
    few, many = strokes.Drawings(2, 0), strokes.Drawings(3, 0)
    torch.testing.assert_close(many.render()[:2], few.render())
    assert few.render().shape == (2, 1, 8, 8) and few.render().min() >= -1 and few.svg(0).count("<path") == 2
    teacher = Denoiser(random_dit(classes=10), Flow(), Velocity())
    drawings, y = strokes.drawn(teacher, "vsd", 3, 2, 0, 3.0)
    assert y.tolist() == [0, 1, 2] and (drawings.points - many.points).abs().amax((1, 2, 3)).min() > 0.001
