"""Image to image, inpainting, start noise, trajectories and callbacks of Pipeline.sample, on a world that is exact."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from gen.config.errors import UserError
from gen.config.spec import names
from gen.diffusion.noise import Noise, sample_seeds
from gen.diffusion.path import EDM, Flow
from gen.diffusion.sampling import integrate
from gen.diffusion.worlds import Gaussian
from gen.pipeline import Pipeline
from gen.samplers.solvers.euler import Euler
from gen.text.pipeline import TextPipeline
from gen.training.run import Sampler
from tests.gen.tiny import tiny


class Pictures:
    """A Gaussian of pictures [1, 4, 4] as a denoiser."""

    def __init__(self, path):
        self.path, self.world = path, Gaussian(path, torch.zeros(16), torch.full((16,), 0.5))

    def __call__(self, x, t, cond=None, *, s=None, tap=None):
        pred = self.world(x.flatten(1), t, cond)
        return type(pred)(pred.x0.reshape(x.shape), pred.eps.reshape(x.shape))

    def null(self, cond):
        return cond


def pipeline(path=None, solver="euler", steps=10):
    return Pipeline(Pictures(path or Flow()), (1, 4, 4), sampler=Sampler(solver, steps=steps), name="world")


IMAGE = torch.linspace(-1, 1, 16).reshape(1, 4, 4)


@pytest.mark.parametrize("path", [Flow(), EDM()], ids=["flow", "edm"])
@pytest.mark.parametrize(("strength", "steps"), [(1.0, 10), (0.35, 3), (None, 8)])
def test_image_to_image_begins_at_the_strength(path, strength, steps):
    pipe = pipeline(path)
    done = pipe.sample(3, image=IMAGE, strength=strength, seed=5, trajectory=True)
    times = pipe.sampler.grid.times(path, 10)[10 - steps :]
    unit = Noise(tuple(sample_seeds(5, 3))).normal("start", (1, 4, 4))
    x = path.mix(IMAGE.expand(3, 1, 4, 4), unit, times[0])
    torch.testing.assert_close(done.x, integrate(pipe.denoiser, x, times, Euler()).float())
    assert done.nfe == steps
    assert done.trajectory.shape == (3, steps + 1, 1, 4, 4)
    assert torch.equal(done.trajectory[:, 0], x) and torch.equal(done.trajectory[:, -1], done.x)


@pytest.mark.parametrize("solver", names("samplers.solvers"))
def test_inpainting_keeps_what_the_mask_does_not_paint(solver):
    mask = torch.zeros(4, 4)
    mask[:, 2:] = 1
    try:
        done = pipeline(solver=solver).sample(2, image=IMAGE, mask=mask, strength=0.65)
    except UserError as error:
        assert "variances" in str(error)
        return
    torch.testing.assert_close(done.x[..., :2], IMAGE[None, ..., :2].expand(2, 1, 4, 2), rtol=0, atol=0)
    assert bool(done.x.isfinite().all()) and not torch.equal(done.x[0, ..., 2:], IMAGE[..., 2:])


def test_pictures_are_images_too():
    grey = Image.fromarray(((IMAGE[0] + 1) * 127.5).round().to(torch.uint8).numpy())
    by_picture, by_tensor = (pipeline().sample(2, image=given, strength=0.5).x for given in (grey, IMAGE))
    torch.testing.assert_close(by_picture, by_tensor, rtol=0, atol=0.01)


def test_start_noise_is_what_the_seeds_would_have_drawn():
    unit = Noise(tuple(sample_seeds(7, 4))).normal("start", (1, 4, 4))
    drawn, given = pipeline().sample(4, seed=7).x, pipeline().sample(4, noise=unit, batch_size=3).x
    torch.testing.assert_close(given, drawn)


def test_a_callback_sees_every_step_and_may_change_it():
    seen = []
    pipeline().sample(3, batch_size=2, callback=lambda i, t, x: seen.append((i, round(t, 6), len(x))))
    assert seen[:3] == [(0, 0.9, 2), (1, 0.8, 2), (2, 0.7, 2)] and len(seen) == 20
    zeros = pipeline().sample(2, callback=lambda i, t, x: torch.zeros_like(x)).x
    assert not zeros.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": torch.ones(4, 4)}, "mask is given without an image"),
        ({"strength": 0.5}, "strength is given without an image"),
        ({"image": IMAGE, "strength": 0.0}, r"strength = 0.0; it must be in \(0, 1\]"),
        ({"image": IMAGE, "strength": 0.05}, "strength = 0.05 of 10 steps leaves none"),
        ({"image": torch.zeros(3, 4, 4)}, r"image has shape \[3, 4, 4\]; allowed: \[2, 1, 4, 4\], or one for all"),
        ({"image": IMAGE, "mask": 2 * torch.ones(4, 4)}, r"mask has values outside \[0, 1\]"),
        ({"image": IMAGE / 0}, "image has NaN or inf"),
        ({"image": "cat.png"}, "str: a picture or a tensor of 1 channels is needed"),
        ({"noise": torch.zeros(3, 1, 4, 4)}, r"noise has shape \[3, 1, 4, 4\]"),
        ({"noise": torch.zeros(1, 4, 4, dtype=torch.int64)}, "noise is torch.int64; allowed: a float tensor"),
    ],
)
def test_wrong_edits_are_one_line(options, message):
    with pytest.raises(UserError, match=message) as caught:
        pipeline().sample(2, **options)
    assert "\n" not in str(caught.value)


def test_what_users_hold_is_one_line(capfd):
    pipe = pipeline()
    net = tiny().model.build()
    text = TextPipeline(net, None)
    samples = pipe.sample(2, progress=True)
    assert "world, steps: 10/10" in capfd.readouterr().err
    pipe.sample(2)
    assert capfd.readouterr() == ("", "")
    assert repr(pipe) == "Pipeline(world: Pictures, 0 parameters (raw), 1 x 4 x 4, 0 classes, euler, 10 steps, cpu)"
    for held in (pipe, samples, text):
        assert len(repr(held)) < 200 and "\n" not in repr(held)
