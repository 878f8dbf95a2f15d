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
from gen.diffusion.foreign_schedule import is_edm, is_flow, read_schedule, read_times
from gen.models.interop.pipelines.own_sampling import solver_of
from tests.pipelines.tiny import call, tiny

pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers' schedulers

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
NOISE = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
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
VARIANCES = [{"variance_type": "fixed_large"}, {"variance_type": "fixed_small_log"}]
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
    "EDMEulerScheduler": [
        {}, {"prediction_type": "v_prediction"}, {"sigma_schedule": "exponential"},
        {"sigma_max": 120.0, "sigma_data": 1.0},
    ],
    "DPMSolverMultistepScheduler": [
        {}, *SPACINGS, *PREDICTIONS, *RESPACED, *LAST, *FLOWS, {**FLOWS[0], **LAST[0]}, {"solver_order": 1},
        {"solver_order": 3}, {"solver_type": "heun"}, {"algorithm_type": "sde-dpmsolver++"}, {"thresholding": True},
        {"algorithm_type": "dpmsolver", **LAST[0]}, {"euler_at_final": True}, {"use_lu_lambdas": True},
        {"lower_order_final": False}, {"lambda_min_clipped": -3.0},
    ],
    "UniPCMultistepScheduler": [
        {}, *SPACINGS, *PREDICTIONS, *RESPACED, HIGH, *LAST, *FLOWS, {**FLOWS[0], **LAST[0]}, {"solver_order": 1},
        {"solver_order": 3}, {"solver_type": "bh1"}, {"predict_x0": False}, {"disable_corrector": [0, 1]},
        {"thresholding": True}, {"lower_order_final": False},
    ],
    "FlowMatchEulerDiscreteScheduler": [
        {}, {"shift": 3.0}, {"shift": 2.0, "shift_terminal": 0.1}, *RESPACED, {"stochastic_sampling": True},
    ],
    "FlowMatchHeunDiscreteScheduler": [{}, {"shift": 3.0}],
}  # fmt: skip


def network(h, k):
    return 0.8 * torch.tanh(1.2 * h + 0.3 * NOISE) + 0.1 * h + 0.3 * torch.sin(torch.as_tensor(k).float() / 180)


def theirs(scheduler, steps):
    """Return the first input of diffusers' loop, as our path has it, and its result."""
    scheduler.set_timesteps(steps)
    x, first = START * getattr(scheduler, "init_noise_sigma", 1.0), None
    module = importlib.import_module(type(scheduler).__module__)
    with mock.patch.object(module, "randn_tensor", lambda *_, **__: NOISE, create=True):
        for t in scheduler.timesteps:
            h = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            first = (x if is_edm(scheduler) else h) if first is None else first
            x = scheduler.step(network(h, t), t, x, return_dict=False)[0]
    return first, x


def ours(scheduler, x, spec):
    path, parameterisation, scale = read_schedule(scheduler)
    whole = is_flow(scheduler) and not scheduler.timesteps.is_floating_point()  # as PipelineNet cuts them

    def f(x, t, *, s=None):
        k = path.t_to_network(t) * scale
        k = (k + 1e-4).floor() if whole else k
        return parameterisation.solve(path, x, network(x * float(parameterisation.scale(path, t)), k), t)

    solver = gen.build("samplers.solvers", spec)
    state = solver.init()
    for t, s in itertools.pairwise(read_times(scheduler, path)):
        x, state = solver.step(f, path, x, t, s, state, lambda: NOISE)
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
