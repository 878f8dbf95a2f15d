"""Shifted, even log-SNR, integer, given and searched times."""

from __future__ import annotations

import importlib
import json
import math

import pytest
import torch

from gen.config.errors import UserError
from gen.config.spec import build
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.parameterisation import Eps
from gen.diffusion.path import DDPM, EDM, VP, Flow
from gen.diffusion.sampling import integrate
from gen.samplers.grids.exponential import Exponential
from gen.samplers.grids.given import Given
from gen.samplers.grids.searched import Searched
from gen.samplers.grids.shift import Shift
from gen.samplers.grids.timesteps import Timesteps
from gen.samplers.solvers.ddim import DDIM


def test_a_shift_multiplies_sigma_over_alpha_on_flow():
    even, shifted = torch.linspace(1, 0, 9, dtype=torch.float64)[1:-1], Shift(3.0).times(Flow(), 8)[1:-1]
    torch.testing.assert_close(shifted / (1 - shifted), 3 * even / (1 - even), rtol=1e-12, atol=0)


def test_every_shift_begins_at_t1_exactly():
    """Rounding must not put the first time above t1, where no sampler may start."""
    assert all(float(Shift(i / 1000).times(Flow(), 1)[0]) == 1.0 for i in range(1, 3000))


def test_a_dynamic_shift_follows_the_number_of_tokens():
    assert Shift(tokens=256).factor == pytest.approx(math.exp(0.5))
    assert Shift(tokens=4096).factor == pytest.approx(math.exp(1.15))
    assert Shift(tokens=2176).factor == pytest.approx(math.exp(0.825))


@pytest.mark.parametrize("path", [Flow(), VP(), EDM(), DDPM()], ids=repr)
def test_exponential_is_even_in_log_snr(path):
    times = Exponential(0.02, 20.0).times(path, 12)
    torch.testing.assert_close(path.lam(times[:-1]).diff(), torch.full((11,), math.log(1000) / 11).double())
    assert float(path.lam(times[-2])) == pytest.approx(-math.log(0.02))


@pytest.mark.parametrize(
    ("spacing", "entries"),
    [
        ("leading", [800, 600, 400, 200, 0]),
        ("trailing", [999, 799, 599, 399, 199]),
        ("linspace", [999, 749, 500, 250, 0]),
    ],
)
def test_the_integer_spacings(spacing, entries):
    assert Timesteps(spacing).entries(5).tolist() == entries
    assert Timesteps(spacing).times(DDPM(), 5).tolist() == [k + 1 for k in entries] + [0]
    assert Timesteps("leading", offset=1).entries(5).tolist() == [801, 601, 401, 201, 1]


def test_one_linspace_step_is_entry_0_as_in_diffusers():
    assert Timesteps("linspace").times(DDPM(), 1).tolist() == [1, 0]
    assert Timesteps("trailing").times(DDPM(), 1).tolist() == [1000, 0]
    scheduler = importlib.import_module("diffusers").DDIMScheduler(timestep_spacing="linspace")
    scheduler.set_timesteps(1)
    assert scheduler.timesteps.tolist() == [0]


def test_a_loop_may_end_at_an_entry_of_the_table():
    """Stable Diffusion's DDIM ends at entry 0, t = 1, since set_alpha_to_one is false: as diffusers, in float64."""
    path = DDPM("scaled_linear", beta_start=0.00085, beta_end=0.012)
    settings = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
    theirs = importlib.import_module("diffusers").DDIMScheduler(**settings, steps_offset=1, set_alpha_to_one=False)
    theirs.alphas_cumprod = path.alpha(torch.arange(1, 1001, dtype=torch.float64)) ** 2
    theirs.final_alpha_cumprod = theirs.alphas_cumprod[0]
    theirs.set_timesteps(5)
    times = Timesteps("leading", offset=1, stop=0).times(path, 5)
    assert times.tolist() == [802, 602, 402, 202, 2, 1]
    x = start = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for k in theirs.timesteps:
        x = theirs.step(torch.tanh(x + int(k) / 1000), int(k), x).prev_sample

    class Net(torch.nn.Module):
        def forward(self, x, t, cond, *, s=None, tap=None):
            return torch.tanh(x + t[:, None] / 1000)

    ours = integrate(Denoiser(Net(), path, Eps()), start, times, DDIM())
    torch.testing.assert_close(ours, x, rtol=1e-12, atol=1e-12)
    clean = integrate(Denoiser(Net(), path, Eps()), start, [*times[:-1].tolist(), 0.0], DDIM())
    assert float((clean - x).abs().max()) > 1e-3
    with pytest.raises(UserError, match="stop = 1 must lie below it"):
        Timesteps("leading", offset=1, stop=1).times(path, 5)


def test_given_times_are_used_as_they_are():
    assert Given((1.0, 0.3)).times(Flow(), 1).tolist() == [1.0, 0.3]
    assert Given((1.0, 0.3, 0.0)).times(Flow(), 2).tolist() == [1.0, 0.3, 0.0]
    assert build("samplers.grids", {"name": "given", "values": [1, 0.3, 0]}) == Given((1.0, 0.3, 0.0))


@pytest.mark.parametrize(
    ("values", "steps"), [((1.0, 0.3, 0.0), 3), ((1.0, -0.3), 1), ((0.3, 1.0, 0.0), 2), ((2.0, 0.0), 1), ((0.0,), 0)]
)
def test_wrong_times_are_refused(values, steps):
    with pytest.raises(UserError, match="times"):
        Given(values).times(Flow(), steps)


def test_searched_times_belong_to_their_path(tmp_path):
    file = tmp_path / "grid.json"
    file.write_text(json.dumps({"path": {"name": "flow"}, "times": [1, 0.4, 0], "fitness": 0.1}))
    assert Searched(str(file)).times(Flow(), 2).tolist() == [1.0, 0.4, 0.0]
    with pytest.raises(UserError, match="path"):
        Searched(str(file)).times(VP(), 2)
    with pytest.raises(UserError, match="not of 3"):
        Searched(str(file)).times(Flow(), 3)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"times": [1, "a"], "path": "flow"}', '{"times": [1, 0]}'])
def test_a_file_without_times_is_refused(tmp_path, text):
    file = tmp_path / "grid.json"
    file.write_text(text)
    with pytest.raises(UserError, match=r"searched times|is no JSON"):
        Searched(str(file)).times(Flow(), 1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Shift(0.0),
        lambda: Shift(tokens=0),
        lambda: Exponential(3.0, 2.0),
        lambda: Exponential(sigma_min=0.5).times(EDM(sigma_max=0.25), 4),
        lambda: Timesteps(offset=-1),
        lambda: Timesteps(total=10).times(DDPM(), 11),
        lambda: Timesteps("leading", total=10, offset=5).times(DDPM(), 10),
    ],
)
def test_wrong_numbers_are_refused(make):
    with pytest.raises(UserError):
        make()
