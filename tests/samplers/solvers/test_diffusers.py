"""Every solver that diffusers has too, against it: the same noise levels, the same analytic model, the same start.

diffusers keeps its noise levels in float32, hence the tolerances. What it does otherwise is a named test.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass

import pytest
import torch

from gen.config.spec import build
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.parameterisation import V
from gen.diffusion.path import DDPM, EDM, Flow, ZeroSNR
from gen.diffusion.sampling import integrate
from gen.samplers.grids.timesteps import Timesteps
from tests.samplers.solvers.worlds import mixture

pytestmark = [pytest.mark.filterwarnings(f"ignore::{w}Warning") for w in ("Deprecation", "Future")]  # theirs, of numpy
UNIT = torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def scheduler(module, name, **config):
    """A scheduler by its module: importing diffusers as a whole needs more than it does."""
    return getattr(importlib.import_module(f"diffusers.schedulers.scheduling_{module}"), name)(**config)


def image(x):
    return x[:, :, None, None]


def output(kind, x, sigma):
    """What a network of a prediction type says at x = x0 + sigma eps."""
    pred = mixture(EDM(1e4))(x, sigma)
    if kind == "v_prediction":
        return (pred.eps - sigma * pred.x0) / (1 + sigma**2).sqrt()
    return pred.eps if kind == "epsilon" else pred.x0


def vp_walk(theirs, steps, kind="epsilon", noise=None):
    """Their walk and ours' start and grid, for schedulers whose state is x / sqrt(1 + sigma^2)."""
    theirs.set_timesteps(steps)
    sigmas = theirs.sigmas.double()
    x = UNIT * sigmas[0] / (1 + sigmas[0] ** 2).sqrt()
    for i, t in enumerate(theirs.timesteps):
        ve = x * (1 + sigmas[i] ** 2).sqrt()
        more = {} if noise is None else {"variance_noise": image(noise.normal(i, (2,)).double())}
        x = theirs.step(image(output(kind, ve, sigmas[i])), t, image(x), **more).prev_sample[..., 0, 0].double()
    return x * (1 + sigmas[-1] ** 2).sqrt(), UNIT * sigmas[0], sigmas


def worst(theirs, x, grid, solver, noise=None):
    return float((integrate(mixture(EDM(1e4)), x, grid, solver, noise=noise) - theirs).abs().max())


def both(module, name, solver, steps, noise=None, kind="epsilon", **config):
    theirs = scheduler(module, name, prediction_type=kind, **config)
    return worst(*vp_walk(theirs, steps, kind, noise), solver, noise)


MULTISTEP = {"lower_order_final": False}


@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("steps", [10, 25])
@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_dpmpp(order, kind, steps, final):
    ours = build("samplers.solvers", "dpmpp", solver_order=order, compat="diffusers")
    name = ("dpmsolver_multistep", "DPMSolverMultistepScheduler")
    assert both(*name, ours, steps, kind=kind, solver_order=order, final_sigmas_type=final, **MULTISTEP) < 1e-5


@pytest.mark.parametrize("steps", [10, 25])
def test_dpmpp_of_the_heun_kind(steps):
    ours = build("samplers.solvers", "dpmpp", kind="heun")
    name = ("dpmsolver_multistep", "DPMSolverMultistepScheduler")
    assert both(*name, ours, steps, solver_type="heun", **MULTISTEP) < 1e-5


def test_their_third_order_is_not_ours_unless_asked_for():
    ours = build("samplers.solvers", "dpmpp", solver_order=3)
    name = ("dpmsolver_multistep", "DPMSolverMultistepScheduler")
    assert both(*name, ours, 10, solver_order=3, **MULTISTEP) > 1e-4


@pytest.mark.parametrize("kind", ["bh1", "bh2"])
@pytest.mark.parametrize("steps", [10, 25])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc(order, steps, kind):
    ours = build("samplers.solvers", "unipc", solver_order=order, kind=kind)
    config = {"solver_order": order, "solver_type": kind, "final_sigmas_type": "sigma_min", **MULTISTEP}
    assert both("unipc_multistep", "UniPCMultistepScheduler", ours, steps, **config) < 1e-5


def test_their_unipc_cannot_end_at_zero_noise_and_ours_can():
    """Without lower_order_final its last step divides by an infinite log-SNR: NaN, or a singular system."""
    theirs = scheduler("unipc_multistep", "UniPCMultistepScheduler", solver_order=3, **MULTISTEP)
    theirs.set_timesteps(10)
    grid = theirs.sigmas.double()
    ours = integrate(mixture(EDM(1e4)), UNIT * grid[0], grid, build("samplers.solvers", "unipc", solver_order=3))
    assert bool(ours.isfinite().all())
    try:
        assert bool(vp_walk(theirs, 10)[0].isnan().any())
    except torch.linalg.LinAlgError as error:
        assert "singular" in str(error)


@pytest.mark.parametrize("steps", [10, 25])
@pytest.mark.parametrize(("order", "limit"), [(1, 1e-5), (2, 1e-5), (3, 5e-5)])
def test_deis(order, limit, steps):
    ours = build("samplers.solvers", "deis", solver_order=order)
    config = {"solver_order": order, **MULTISTEP}
    assert both("deis_multistep", "DEISMultistepScheduler", ours, steps, **config) < limit


@dataclass(frozen=True)
class Injected:
    """The same noise for theirs and ours."""

    def normal(self, step, shape):
        generator = torch.Generator().manual_seed(step)
        return torch.randn(len(UNIT), *shape, generator=generator)


@pytest.mark.parametrize("steps", [10, 25])
def test_sde_dpmpp(steps):
    ours = build("samplers.solvers", "dpmpp_sde")
    name = ("dpmsolver_multistep", "DPMSolverMultistepScheduler")
    assert both(*name, ours, steps, Injected(), algorithm_type="sde-dpmsolver++", **MULTISTEP) < 1e-5


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("steps", [10, 50])
def test_ddim(spacing, steps):
    theirs = scheduler("ddim", "DDIMScheduler", timestep_spacing=spacing, clip_sample=False)
    theirs.set_timesteps(steps)
    path, x = DDPM(), UNIT
    grid = Timesteps(spacing).times(path, steps)
    assert (grid[:-1] - 1).tolist() == theirs.timesteps.tolist()
    for t, k in zip(grid, theirs.timesteps, strict=False):
        x = theirs.step(image(mixture(path)(x, t).eps), k, image(x)).prev_sample[..., 0, 0].double()
    ours = integrate(mixture(path), UNIT, grid, build("samplers.solvers", "ddim"))
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", [10, 50])
def test_their_ddim_does_not_walk_down_its_own_linspace(steps):
    """It steps to t - 1000 // N, not to the next of its timesteps."""
    theirs = scheduler("ddim", "DDIMScheduler", timestep_spacing="linspace", clip_sample=False)
    theirs.set_timesteps(steps)
    path, x = DDPM(), UNIT
    grid = Timesteps("linspace").times(path, steps)
    assert (grid[:-1] - 1).tolist() == theirs.timesteps.tolist()
    for t, k in zip(grid, theirs.timesteps, strict=False):
        x = theirs.step(image(mixture(path)(x, t).eps), k, image(x)).prev_sample[..., 0, 0].double()
    ours = integrate(mixture(path), UNIT, grid, build("samplers.solvers", "ddim"))
    assert float((ours - x).abs().max()) > 0.01


def ve_walk(theirs, steps, kind="epsilon"):
    """Their walk in x = x0 + sigma eps; a Heun scheduler lists its inner levels twice."""
    theirs.set_timesteps(steps)
    sigmas = theirs.sigmas.double()
    x = UNIT * sigmas[0]
    for i, t in enumerate(theirs.timesteps):
        theirs.scale_model_input(image(x), t)
        x = theirs.step(image(output(kind, x, sigmas[i])), t, image(x)).prev_sample[..., 0, 0].double()
    return x, UNIT * sigmas[0], torch.unique_consecutive(sigmas)


@pytest.mark.parametrize("steps", [10, 25])
@pytest.mark.parametrize(
    ("module", "name", "ours"),
    [
        ("euler_discrete", "EulerDiscreteScheduler", "euler"),
        ("heun_discrete", "HeunDiscreteScheduler", "heun"),
    ],
)
def test_euler_and_heun(module, name, ours, steps):
    assert worst(*ve_walk(scheduler(module, name), steps), build("samplers.solvers", ours)) < 1e-5


@pytest.mark.parametrize(
    ("module", "name", "ours", "config"),
    [
        ("edm_euler", "EDMEulerScheduler", "euler", {}),
        ("edm_dpmsolver_multistep", "EDMDPMSolverMultistepScheduler", "dpmpp", MULTISTEP),
    ],
)
def test_edm(module, name, ours, config):
    """They apply EDM's preconditioning themselves, to a network's raw F = (x0 - c_skip x) / c_out."""
    theirs = scheduler(module, name, **config)
    theirs.set_timesteps(18)
    sigmas, sd = theirs.sigmas.double(), 0.5
    x = UNIT * sigmas[0]
    for i, t in enumerate(theirs.timesteps):
        sigma = sigmas[i]
        theirs.scale_model_input(image(x), t)
        raw = mixture(EDM())(x, sigma).x0 - x * sd**2 / (sigma**2 + sd**2)
        raw = raw * (sigma**2 + sd**2).sqrt() / (sigma * sd)
        x = theirs.step(image(raw), t, image(x)).prev_sample[..., 0, 0].double()
    assert worst(x, UNIT * sigmas[0], sigmas, build("samplers.solvers", ours)) < 1e-5


@pytest.mark.parametrize(
    ("module", "name", "ours"),
    [
        ("flow_match_euler_discrete", "FlowMatchEulerDiscreteScheduler", "euler"),
        ("flow_match_heun_discrete", "FlowMatchHeunDiscreteScheduler", "heun"),
    ],
)
def test_flow(module, name, ours):
    theirs, x = scheduler(module, name), UNIT
    theirs.set_timesteps(10)
    sigmas = theirs.sigmas.double()
    for i, t in enumerate(theirs.timesteps):
        v = Flow().velocity(mixture(Flow())(x, sigmas[i]), sigmas[i])
        x = theirs.step(image(v), t, image(x)).prev_sample[..., 0, 0].double()
    grid = torch.unique_consecutive(sigmas)
    torch.testing.assert_close(
        integrate(mixture(Flow()), UNIT, grid, build("samplers.solvers", ours)), x, rtol=0, atol=1e-5
    )


def table_walk(theirs, path, x, kind="epsilon"):
    """Their loop over a table, in float64: both with the entries of the path."""
    theirs.alphas_cumprod = path.alpha(torch.arange(1, 1001, dtype=torch.float64)) ** 2
    theirs.final_alpha_cumprod = theirs.alphas_cumprod[0] if not theirs.config.set_alpha_to_one else torch.tensor(1.0)
    for k in theirs.timesteps:
        t = k.double() + 1
        pred = mixture(path)(x, t)
        out = pred.eps if kind == "epsilon" else path.alpha(t) * pred.eps - path.sigma(t) * pred.x0
        x = theirs.step(out, int(k), x).prev_sample
    return x


SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
TABLE = DDPM("scaled_linear", beta_start=0.00085, beta_end=0.012)


@pytest.mark.parametrize("ends_clean", [False, True])
@pytest.mark.parametrize("steps", [2, 10, 50])
def test_pndm(steps, ends_clean):
    """Stable Diffusion's own loop: leading spacing from offset 1, to the table's first entry."""
    config = {**SD, "steps_offset": 1, "set_alpha_to_one": ends_clean, "skip_prk_steps": True}
    theirs = scheduler("pndm", "PNDMScheduler", **config)
    theirs.set_timesteps(steps)
    grid = Timesteps("leading", offset=1, stop=None if ends_clean else 0).times(TABLE, steps)
    x = table_walk(theirs, TABLE, UNIT)
    ours = integrate(mixture(TABLE), UNIT, grid, build("samplers.solvers", "pndm"))
    torch.testing.assert_close(ours, x, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("snr_shift", [1.0, 3.0])
def test_ddim_from_pure_noise(snr_shift):
    """CogVideoX's loop: trailing spacing from an entry without any signal, where v alone says what the data are."""
    config = {**SD, "snr_shift_scale": snr_shift, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    theirs = scheduler("ddim_cogvideox", "CogVideoXDDIMScheduler", **config, timestep_spacing="trailing")
    theirs.set_timesteps(10)
    path = ZeroSNR(TABLE, snr_shift)
    x = table_walk(theirs, path, UNIT, "v_prediction")
    f = Denoiser(Velocities(path), path, V())
    ours = integrate(f, UNIT, Timesteps("trailing").times(path, 10), build("samplers.solvers", "ddim"))
    torch.testing.assert_close(ours, x, rtol=1e-11, atol=1e-11)


class Velocities(torch.nn.Module):
    """A network that predicts v of the mixture."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def forward(self, x, t, cond, *, s=None, tap=None):
        return V().target(self.path, *mixture(self.path)(x, t[0] + 1), t[0] + 1)
