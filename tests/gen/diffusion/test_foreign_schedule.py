"""Noise schedules of diffusers' schedulers in our terms, against their own tables and levels."""

from __future__ import annotations

import diffusers
import pytest
import torch

from gen.config.errors import UserError
from gen.diffusion.foreign_schedule import read_schedule, read_times
from gen.diffusion.parameterisation import EDMPrecond, Eps, V, Velocity
from gen.diffusion.path import DDPM, EDM, Flow, Table


def test_tables_are_paths_with_their_levels():
    for settings, kind in (
        ({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}, DDPM),
        ({"beta_schedule": "squaredcos_cap_v2"}, DDPM),
        ({"trained_betas": torch.linspace(1e-3, 0.1, 50).tolist()}, Table),
        ({"rescale_betas_zero_snr": True}, Table),
    ):
        theirs = diffusers.DDIMScheduler(**settings, prediction_type="v_prediction")
        path, parameterisation, scale = read_schedule(theirs)
        assert (type(path), parameterisation, scale) == (kind, V(), 1.0)
        times = torch.arange(1, len(theirs.alphas_cumprod) + 1).double()
        torch.testing.assert_close(path.alpha(times) ** 2, theirs.alphas_cumprod.double(), rtol=2e-5, atol=1e-12)


@pytest.mark.parametrize(
    ("theirs", "times"),
    [
        (diffusers.DDIMScheduler(), [751, 501, 251, 1, 0]),
        (diffusers.DDIMScheduler(steps_offset=1, set_alpha_to_one=False), [752, 502, 252, 2, 1]),
        (diffusers.DDIMScheduler(set_alpha_to_one=False), [751, 501, 251, 1]),  # its last step stands still
        (diffusers.PNDMScheduler(), [751, 501, 251, 1]),
        (diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1), [752, 502, 252, 2, 1]),
        (diffusers.DPMSolverMultistepScheduler(final_sigmas_type="sigma_min"), [1000, 750, 501, 251, 1]),
    ],
    ids=["ddim", "above-zero", "still", "pndm", "plms", "dpmpp"],
)
def test_times_of_tables_are_entries(theirs, times):
    theirs.set_timesteps(4)
    assert read_times(theirs, read_schedule(theirs).path).tolist() == times


def test_flows_and_edm_keep_their_sigmas():
    flow = diffusers.FlowMatchHeunDiscreteScheduler(shift=2.0)
    flow.set_timesteps(4)
    assert read_schedule(flow) == (Flow(), Velocity(), 1000.0)
    torch.testing.assert_close(read_times(flow, Flow()), flow.sigmas[[0, 2, 4, 6, 7]].double())
    edm = diffusers.EDMEulerScheduler(sigma_max=50.0)
    edm.set_timesteps(4)
    path, parameterisation, _ = read_schedule(edm)
    assert (path, parameterisation) == (EDM(50.0), EDMPrecond(0.5))
    assert torch.equal(read_times(edm, path), edm.sigmas.double())
    assert read_schedule(diffusers.DDPMScheduler()).parameterisation == Eps()
    with pytest.raises(UserError, match="IPNDMScheduler"):
        read_schedule(diffusers.IPNDMScheduler())
