"""Solvers of schedulers of diffusers: their loop against ours on one function, for every option of every class.

A scheduler that is called the same rule samples the same; others have the options named in which they differ.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
from unittest import mock

import diffusers
import pytest
import torch

import gen
from gen.config.errors import UserError
from gen.diffusion.denoiser import LearnedVariance
from gen.diffusion.foreign_schedule import is_edm, is_flow, read_schedule, read_times
from gen.diffusion.noise import Noise, sample_seeds
from gen.diffusion.tap import FeatureRecorder
from gen.models.interop.pipelines.own_sampling import solver_of
from tests.pipelines.tiny import call, tiny

pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers' schedulers

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
NOISE = torch.randn(9, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))  # of each step
START = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
SPACINGS = [{"timestep_spacing": kind} for kind in ("leading", "trailing", "linspace")]
RESPACED = [{name: True} for name in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")]
CLIPS = [{"clip_sample": True}, {"clip_sample": True, "clip_sample_range": 2.0}, {"thresholding": True}]
HIGH = {"use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 10.0}
LOW = {"use_karras_sigmas": True, "sigma_min": 0.002, "sigma_max": 10.0}
SVD = {"timestep_type": "continuous", "prediction_type": "v_prediction"}
FLOWS = [{"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}]
ENDS = [{"set_alpha_to_one": False}, {"set_alpha_to_one": False, "steps_offset": 1}]
PREDICTIONS = [{"prediction_type": "v_prediction"}, {"prediction_type": "sample"}]
LAST = [{"final_sigmas_type": "sigma_min"}, {"final_sigmas_type": "sigma_min", "lower_order_final": False}]
VARIANCES = [{"variance_type": kind} for kind in ("fixed_large", "fixed_small_log", "learned_range", "learned")]
SDE = {"algorithm_type": "sde-dpmsolver++"}
STEPS = 7  # which does not divide 1000
UNNAMED = {"prediction_type", "steps_offset", "set_alpha_to_one", "shift", "sigma_max", "skip_prk_steps", *SVD}

CASES = {
    "DDIMScheduler": [{}, *SPACINGS, *ENDS, *PREDICTIONS, *CLIPS, {"rescale_betas_zero_snr": True, **PREDICTIONS[0]}],
    "CogVideoXDDIMScheduler": [{}, *SPACINGS, *ENDS],
    "PNDMScheduler": [{}, *({"skip_prk_steps": True, **one} for one in ({}, *SPACINGS, *ENDS))],
    "DDPMScheduler": [{}, *SPACINGS, *PREDICTIONS, *CLIPS, *VARIANCES],
    "LCMScheduler": [{}, *ENDS, *PREDICTIONS, *CLIPS, {"timestep_scaling": 1.0}],
    "EulerDiscreteScheduler": [
        {}, *SPACINGS, *PREDICTIONS, *RESPACED, HIGH, LOW, SVD, {**SVD, **LOW}, {**SVD, **LOW, "sigma_max": 700.0},
        LAST[0], {"timestep_spacing": "leading", "steps_offset": 1}, {"rescale_betas_zero_snr": True},
    ],
    "EulerAncestralDiscreteScheduler": [{}, *SPACINGS, PREDICTIONS[0]],
    "TCDScheduler": [{}, *ENDS, *PREDICTIONS, {"thresholding": True}],
    "EDMEulerScheduler": [
        {}, {"prediction_type": "v_prediction"}, {"sigma_schedule": "exponential"},
        {"sigma_max": 120.0, "sigma_data": 1.0},
    ],
    "DPMSolverMultistepScheduler": [
        {}, *SPACINGS, *PREDICTIONS, *RESPACED, *LAST, *FLOWS, {**FLOWS[0], **LAST[0]}, {"solver_order": 1},
        {"solver_order": 3}, {"solver_type": "heun"}, {"thresholding": True},
        SDE, *({**SDE, **one} for one in ({"solver_order": 1}, {"solver_type": "heun"}, FLOWS[0], {"solver_order": 3})),
        {"algorithm_type": "dpmsolver", **LAST[0]}, {"euler_at_final": True}, {"use_lu_lambdas": True},
        {"lower_order_final": False}, {"lambda_min_clipped": -3.0},
    ],
    "UniPCMultistepScheduler": [
        {}, *SPACINGS, *PREDICTIONS, *RESPACED, HIGH, *LAST, *FLOWS, {**FLOWS[0], **LAST[0]}, {"solver_order": 1},
        {"solver_order": 3}, {"solver_type": "bh1"}, {"predict_x0": False}, {"disable_corrector": [0, 1]},
        {"thresholding": True}, {"lower_order_final": False}, {**FLOWS[0], "sigma_min": 0.1},
        {**FLOWS[0], "shift_terminal": 0.1},
    ],
    "FlowMatchEulerDiscreteScheduler": [
        {}, {"shift": 3.0}, {"shift": 2.0, "shift_terminal": 0.1}, *RESPACED, {"stochastic_sampling": True},
    ],
    "FlowMatchHeunDiscreteScheduler": [{}, {"shift": 3.0}],
}  # fmt: skip


def network(h, k):
    return 0.8 * torch.tanh(1.2 * h + 0.3 * NOISE[0]) + 0.1 * h + 0.3 * torch.sin(torch.as_tensor(k).float() / 180)


def theirs(scheduler, steps):
    """Return the first input of diffusers' loop, as our path has it, and its result; noise of a step is its own."""
    scheduler.set_timesteps(steps)
    x, first = START * getattr(scheduler, "init_noise_sigma", 1.0), None
    module = importlib.import_module(type(scheduler).__module__)
    step = 0
    with mock.patch.object(module, "randn_tensor", lambda *_, **__: NOISE[step], create=True):
        for step, t in enumerate(scheduler.timesteps):  # noqa: B007 - of the noise
            h = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            first = (x if is_edm(scheduler) else h) if first is None else first
            learned = scheduler.config.get("variance_type") in ("learned", "learned_range")
            out = torch.cat([network(h, t), NOISE[-1]], 1) if learned else network(h, t)
            x = scheduler.step(out, t, x, return_dict=False)[0]
    return first, x


def ours(scheduler, x, spec):
    path, parameterisation, scale = read_schedule(scheduler)
    whole = is_flow(scheduler) and not scheduler.timesteps.is_floating_point()  # as PipelineNet cuts them

    def f(x, t, *, s=None):
        k = path.t_to_network(t) * scale
        k = (k + 1e-4).floor() if whole else k
        pred = parameterisation.solve(path, x, network(x * float(parameterisation.scale(path, t)), k), t)
        return LearnedVariance(*pred, NOISE[-1])

    solver = gen.build("samplers.solvers", spec)
    state = solver.init()
    for noise, (t, s) in zip(NOISE, itertools.pairwise(read_times(scheduler, path)), strict=False):
        x, state = solver.step(f, path, x, t, s, state, noise.clone)
    return x


@pytest.mark.parametrize("kind", CASES)
def test_the_same_rule_samples_the_same(kind):
    """An option is followed, or it is named."""
    takes = inspect.signature(getattr(diffusers, kind)).parameters
    same = 0
    for options in CASES[kind]:
        given = {**{key: value for key, value in {**SD, "clip_sample": False}.items() if key in takes}, **options}
        scheduler = getattr(diffusers, kind)(**given)
        for steps in (4, STEPS):
            spec, differs = solver_of(scheduler, steps)
            first, x = theirs(scheduler, steps)
            error = float((ours(scheduler, first, spec) - x).norm() / x.norm())
            assert differs or error < 1e-5, (options, steps, error)
            assert not differs or set(options) - UNNAMED or kind == "PNDMScheduler", (options, steps, differs)
            same += not differs
    assert same >= 4 or kind in ("FlowMatchHeunDiscreteScheduler",)


def test_options_that_differ_are_named():
    for kind, options, names in (
        ("DDIMScheduler", {}, ("clip_sample",)),
        ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "linspace"}, ("timestep_spacing",)),
        ("DDPMScheduler", {"clip_sample_range": 2.0}, ("clip_sample",)),
        ("LCMScheduler", {"thresholding": True}, ("thresholding",)),
        ("PNDMScheduler", {}, ("skip_prk_steps",)),
        ("UniPCMultistepScheduler", {"disable_corrector": [0]}, ("disable_corrector",)),
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, ("use_karras_sigmas",)),
        ("DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min"}, ("final_sigmas_type",)),
        ("EulerDiscreteScheduler", {**SD, **LOW}, ("sigma_min",)),
        ("HeunDiscreteScheduler", {}, ("rule",)),
        ("KDPM2DiscreteScheduler", {}, ("rule",)),
    ):
        spec, differs = solver_of(getattr(diffusers, kind)(**options))
        assert differs == names and gen.build("samplers.solvers", spec)
    pipe = tiny("sd15")
    pipe.scheduler = diffusers.DDIMScheduler(**SD, thresholding=True, clip_sample=False)
    assert "ddim (nearest to its DDIMScheduler, but for its thresholding)" in repr(gen.load_diffusers(pipe, **given()))


def test_schedules_that_cannot_be_followed_are_refused():
    for scheduler in (
        diffusers.DDIMInverseScheduler(),
        diffusers.DPMSolverMultistepInverseScheduler(),
        diffusers.UnCLIPScheduler(),
        diffusers.EulerDiscreteScheduler(interpolation_type="log_linear"),
    ):
        with pytest.raises(UserError, match=f"{type(scheduler).__name__}.*allowed"):
            read_schedule(scheduler)
    high = diffusers.EulerDiscreteScheduler(**SD, **{**LOW, "sigma_max": 700.0})
    high.set_timesteps(4)
    with pytest.raises(UserError, match="begins at sigma 700, above its table: sigma_max of at most 14"):
        read_times(high, read_schedule(high).path)


@pytest.mark.parametrize("name", ["flux", "sd15"])
def test_a_scheduler_that_chooses_its_times_is_refused(name):
    pipe = tiny(name)
    pipe.scheduler = gen.as_scheduler({"name": "adaptive", "per": "batch"}, like=pipe.scheduler)
    with pytest.raises(UserError, match=r"AdaptiveSteps in place of .* chooses its times as it goes"):
        repr(gen.load_diffusers(pipe, **given(name)))


def given(name="sd15", **changes):
    dropped = ("generator", "output_type", "num_inference_steps")
    return {key: value for key, value in call(name).items() if key not in dropped} | changes


@pytest.mark.parametrize(
    ("scheduler", "changes"),
    [
        (diffusers.DDIMScheduler(**SD, clip_sample=False, set_alpha_to_one=False, steps_offset=1), {}),
        (diffusers.DDIMScheduler(**SD, clip_sample=False), {"guidance_rescale": 0.7}),
        (diffusers.DDIMScheduler(**SD, clip_sample=False, prediction_type="v_prediction"), {"guidance_rescale": 0.7}),
        (diffusers.EulerDiscreteScheduler(**SD, timestep_spacing="leading", steps_offset=1), {}),
        (diffusers.EulerDiscreteScheduler(**SD, **SVD, **{**LOW, "sigma_max": 700.0}), {}),
        (diffusers.EDMEulerScheduler(sigma_max=120.0, sigma_data=1.0, prediction_type="v_prediction"), {}),
    ],
    ids=["ddim", "rescale", "rescale-v", "leading", "svd", "cosxl"],
)
def test_noise_is_where_the_pipeline_begins(scheduler, changes):
    """`sample(noise=)` is `pipe(latents=)`."""
    pipe = tiny("sd15")
    pipe.scheduler = scheduler
    model = gen.load_diffusers(pipe, **given(**changes))
    noise = torch.randn(2, *model.pipeline.shape, generator=torch.Generator().manual_seed(0))
    expected = pipe(**given(**changes), latents=noise.clone(), output_type="latent", num_inference_steps=5).images
    x = model.sample(noise=noise, steps=5, decode=False).x
    assert not model.own.differs and float((x - expected).norm() / expected.norm()) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("name", ["dit", "pixart"])
def test_learned_variances_are_those_of_ancestral_sampling(name):
    """By DDPM's own step on the network's whole output, which the pipelines themselves cut."""
    pipe = tiny(name)
    pipe.scheduler = diffusers.DDPMScheduler(variance_type="learned_range", clip_sample=False)
    with pytest.raises(TypeError):
        pipe(**call(name))
    model = gen.load_diffusers(pipe, **given(name))
    assert model.own.solver == {"name": "ancestral", "clip": False, "variance": "learned"} and not model.own.differs
    unit = torch.randn(2, *model.pipeline.shape, generator=torch.Generator().manual_seed(0))
    noise, net, x = Noise(tuple(sample_seeds(3, 2))), model.pipeline.denoiser.net, unit
    pipe.scheduler.set_timesteps(5)
    for i, t in enumerate(pipe.scheduler.timesteps):
        recorder = FeatureRecorder(("final",))
        net(x, t.expand(2), model.heard.cond, tap=recorder)
        drawn = noise.normal(i, x.shape[1:])
        with mock.patch("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, drawn=drawn, **__: drawn):
            x = pipe.scheduler.step(recorder.features["final"], t, x).prev_sample
    ours = model.sample(noise=unit, steps=5, seed=3, guide="none", decode=False).x
    assert float((ours - x).norm() / x.norm()) < 1e-5
    unet = tiny("sd15")
    unet.scheduler = pipe.scheduler
    with pytest.raises(UserError, match="reads learned variances, and this network has none"):
        gen.load_diffusers(unet, **given()).sample(steps=2)


def test_noise_of_each_step_by_the_pipelines_own_eta():
    """Stable Diffusion gives its eta, 0, to TCD's steps; FLUX and the like leave the scheduler's, .3."""
    pipe = tiny("sd15")
    pipe.scheduler = diffusers.TCDScheduler(**SD)
    assert gen.load_diffusers(pipe, **given()).own.solver == {"name": "tcd", "eta": 0.0, "whole": True}
    assert solver_of(diffusers.TCDScheduler(), 4) == ({"name": "tcd", "eta": 0.3, "whole": True}, ())


@pytest.mark.filterwarnings("error:in 7 steps")
def test_the_rule_is_judged_in_the_steps_that_are_asked_for():
    """DDIM jumps by 1000 // 7 = 142, and trailing timesteps lie 142 or 143 apart."""
    pipe = tiny("sd15")
    pipe.scheduler = diffusers.DDIMScheduler(**SD, clip_sample=False, timestep_spacing="trailing")
    model = gen.load_diffusers(pipe, **given(), num_inference_steps=5)
    assert "ddim (as DDIMScheduler)" in repr(model) and model.own_of(7).differs == ("timestep_spacing",)
    with pytest.warns(
        UserWarning, match="in 7 steps ddim is only the nearest to the pipeline's DDIMScheduler: its time"
    ):
        model.sample(steps=7, decode=False)
    model.sample(steps=7, decode=False, solver="ddim")  # which is what was asked for
    model.sample(steps=10, decode=False)
    assert "nearest to its DDIMScheduler, but for its timestep_spacing" in repr(model.with_call(num_inference_steps=7))
