"""Our solvers as schedulers inside the pipelines of diffusers, against the pipelines' own schedulers."""

from __future__ import annotations

import copy
import importlib

import pytest
import torch

import gen
from gen.config.errors import UserError
from gen.config.spec import names
from gen.diffusion.path import Flow
from gen.diffusion.sampling import integrate
from gen.models.interop.pipelines.listening import listen
from gen.models.interop.pipelines.network import denoiser_of
from gen.samplers.guides.cfg import CFG
from gen.samplers.interop.diffusers_scheduler import as_scheduler
from tests.pipelines.tiny import FAMILIES, STEPS, call, relative, tiny

COARSE = {"name": "adaptive", "per": "batch", "rtol": 0.3, "atol": 0.3, "level": 0.1}
SOLVERS = [COARSE if name == "adaptive" else name for name in names("samplers.solvers")]


def run(pipe, how):
    result = pipe(**how)
    return result.frames if hasattr(result, "frames") else result.images


def network(pipe):
    """The module that predicts, and of Wan 2.2 both."""
    parts = pipe.components
    return [parts[key] for key in ("unet", "transformer", "transformer_2") if parts.get(key) is not None]


@pytest.mark.parametrize("name", FAMILIES)
def test_euler_is_the_scheduler_of_every_pipeline(name):
    """DDIM on tables, Euler on flows: latents to rounding."""
    pipe = tiny(name)
    theirs = run(pipe, call(name))
    pipe.scheduler = as_scheduler("euler", like=pipe.scheduler)
    ours = run(pipe, call(name))
    assert ours.dtype == theirs.dtype
    assert relative(ours, theirs) < (5e-5 if name in ("sd3", "z_image") else 2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_solver_runs_in_every_pipeline(name):
    """As many evaluations as it declares, and a finite end; all in one of each kind of times, a fourth elsewhere."""
    pipe, calls = tiny(name), []
    how = call(name) | {"num_inference_steps": 3}
    how |= {key: 1.0 for key in ("guidance_scale", "true_cfg_scale") if key in how}
    how |= {"guidance_scale": 0.0} if name == "z_image" else {}
    for module in network(pipe):
        module.register_forward_pre_hook(lambda *_: calls.append(1))
    for spec in SOLVERS if name in ("sd15", "flux") else SOLVERS[list(FAMILIES).index(name) % 4 :: 4]:
        calls.clear()
        scheduler = as_scheduler(spec, like=pipe.scheduler)
        pipe.scheduler = scheduler
        out = run(pipe, how)
        assert bool(torch.isfinite(out).all()), spec
        declared = scheduler.solver.nfe(len(scheduler.times) - 1)
        if declared is not None and scheduler.times[-1] > 0:  # nfe is that of loops which end in clean data
            declared = len(scheduler.planned)
        assert declared in (None, len(calls)), spec


VARIANTS = {
    "sd15": ("StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"),
    "sdxl": ("StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"),
    "sd3": ("StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline"),
    "flux": ("FluxImg2ImgPipeline", "FluxInpaintPipeline"),
}


def variant(kind, name):
    """The pipeline of a kind on the parts of a tiny one."""
    pipe = FAMILIES["sd3"](16) if name == "sd3" else tiny(name)  # 16 channels, as its inpainting insists on
    more = {"sd15": {"requires_safety_checker": False}, "sdxl": {"add_watermarker": False}}
    built = getattr(importlib.import_module("diffusers"), kind)(**pipe.components, **more.get(name, {}))
    built.set_progress_bar_config(disable=True)
    return built


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("which", [0, 1], ids=["image_to_image", "inpainting"])
def test_image_to_image_and_inpainting_begin_where_the_pipeline_says(name, which):
    """Euler as the own scheduler; heun from the same step, and what is not to be painted stays."""
    pipe = variant(VARIANTS[name][which], name)
    mask = torch.zeros(2, 1, 16, 8)
    mask[:, :, 8:] = 1

    def how():
        draw = torch.Generator().manual_seed(3)
        given = {"image": torch.rand(2, 3, 16, 8, generator=draw), "strength": 0.6, "num_inference_steps": 5}
        given |= {"mask_image": mask} if which else {}
        given = call(name) | given
        if not which and name in ("sd15", "sdxl"):
            given = {key: value for key, value in given.items() if key not in ("height", "width")}
        return given

    own = pipe.scheduler
    theirs = run(pipe, how())
    pipe.scheduler = as_scheduler("euler", like=own)
    assert relative(run(pipe, how()), theirs) < 2e-5
    begun: list[float] = []

    def note(_, args, kwargs):
        begun.append(float(torch.as_tensor(kwargs["timestep"] if "timestep" in kwargs else args[1]).flatten()[0]))

    network(pipe)[0].register_forward_pre_hook(note, with_kwargs=True)
    first = None
    for solver in ("euler", "heun", "exp_ab", COARSE):
        begun.clear()
        pipe.scheduler = as_scheduler(solver, like=own)
        out = run(pipe, how())
        first = first or begun[0]
        assert begun[0] == pytest.approx(first)
        assert bool(torch.isfinite(out).all())
        kept = (slice(None), slice(None), slice(4)) if out.ndim == 4 else (slice(None), slice(4))
        assert not which or torch.allclose(out[kept], theirs[kept]), solver


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("solver", ["euler", "heun", "rk4", "pndm", "exp_ab", "flow_adams", "unipc"])
def test_a_loop_is_divided_between_a_pipeline_and_its_refiner(solver):
    """denoising_end and denoising_start: each part is our own loop over its times, whatever evaluations a step has."""
    base = tiny("sdxl")
    own, refiner = base.scheduler, variant("StableDiffusionXLImg2ImgPipeline", "sdxl")
    heard = listen(base, **call("sdxl"))
    f, rule = denoiser_of(heard), gen.build("samplers.solvers", solver)
    for share, first in ((0.2, 1), (0.4, 2), (0.8, 4)):  # timesteps 831, 665, .. 1
        how = call("sdxl") | {"num_inference_steps": 6}
        base.scheduler, refiner.scheduler = (as_scheduler(solver, like=own) for _ in range(2))
        middle = run(base, how | {"denoising_end": share})
        more = {key: value for key, value in how.items() if key not in ("height", "width")}
        sizes = {"original_size": (16, 8), "target_size": (16, 8)}
        end = run(refiner, more | sizes | {"image": middle, "denoising_start": share})
        times = base.scheduler.times
        guided = CFG(3.0)(f, times)
        ours = integrate(guided, heard.latents, times[: first + 1], rule, cond=heard.cond)
        assert relative(middle, ours) < 2e-5, share
        assert relative(end, integrate(guided, ours, times[first:], rule, cond=heard.cond)) < 2e-5, share


def test_a_loop_whose_refiner_would_begin_within_a_step_is_refused():
    """Heun's list is odd, as that of diffusers; the refiner adds one to even numbers of evaluations."""
    refiner = variant("StableDiffusionXLImg2ImgPipeline", "sdxl")
    refiner.scheduler = as_scheduler("midpoint", like=refiner.scheduler)
    more = {key: value for key, value in call("sdxl").items() if key not in ("height", "width")}
    with pytest.raises(UserError, match="begin index 3: a loop of 4 steps of 2 evaluations begins at a multiple of 2"):
        refiner(**more, image=torch.zeros(2, 4, 8, 4), denoising_start=0.5)


FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
TABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
KARRAS, PLMS = TABLE | {"use_karras_sigmas": True}, TABLE | {"skip_prk_steps": True, "steps_offset": 1}


@pytest.mark.parametrize(
    ("name", "kind", "settings", "solver", "rounding"),
    [
        pytest.param("wan", "UniPCMultistepScheduler", FLOW, "unipc", 0.05, id="unipc-flow"),
        pytest.param("sana", "DPMSolverMultistepScheduler", FLOW, "dpmpp", 0.05, id="dpmpp-flow"),
        pytest.param("sdxl", "DPMSolverMultistepScheduler", KARRAS, "dpmpp", 1e-3, id="karras"),
        pytest.param("pixart", "DPMSolverMultistepScheduler", {}, "dpmpp", 0, id="dpmpp"),
        pytest.param("sd15", "PNDMScheduler", PLMS, "pndm", 0, id="plms"),
        pytest.param("sd15", "LCMScheduler", TABLE, "renoise", 0, id="lcm"),
        pytest.param("sd3", "FlowMatchHeunDiscreteScheduler", {"shift": 3.0}, "heun", 0, id="heun"),
    ],
)
def test_solvers_are_the_published_schedulers(name, kind, settings, solver, rounding):
    """On the same times; where theirs cuts the network's time to whole numbers, only with network_time "like"."""
    pipe = tiny(name)
    own = pipe.scheduler = getattr(importlib.import_module("diffusers"), kind)(**settings)
    theirs = run(pipe, call(name))
    pipe.scheduler = as_scheduler(solver, like=own, network_time="like")
    assert relative(run(pipe, call(name)), theirs) < 2e-5
    assert torch.equal(pipe.scheduler.timesteps.double(), own.timesteps.double())
    pipe.scheduler = as_scheduler(solver, like=own)
    assert rounding / 10 <= relative(run(pipe, call(name)), theirs) < max(rounding, 2e-5)


def test_a_grid_of_ours_beside_the_schedule_of_theirs():
    pipe = tiny("sdxl")
    pipe.scheduler = as_scheduler("euler", like=pipe.scheduler, grid={"name": "timesteps", "spacing": "trailing"})
    run(pipe, call("sdxl"))
    assert pipe.scheduler.timesteps.tolist() == [999, 749, 499, 249]
    flux = tiny("flux")
    flux.scheduler = as_scheduler("euler", like=flux.scheduler, grid="karras")
    with pytest.raises(UserError, match="sigmas beside the grid karras"):
        run(flux, call("flux"))


def test_a_cache_on_a_live_pipeline_sees_every_evaluation():
    """Where the pipeline gives sigmas, whose number it takes for that of the evaluations."""
    pipe = tiny("flux")
    pipe.scheduler = as_scheduler("heun", like=pipe.scheduler)
    plain = run(pipe, call("flux"))
    with gen.accelerate(pipe, "fora", interval=1) as live:
        assert torch.equal(run(pipe, call("flux")), plain)
    assert live.report.evaluations == 2 * (2 * STEPS - 1)  # of both branches


@pytest.mark.parametrize("name", ["flux", "sd15"])
@pytest.mark.parametrize("solver", ["heun", "exp_ab"])
def test_a_pipeline_with_our_scheduler_is_copied_and_loaded(name, solver):
    """After a run, too; `gen.load_diffusers` takes the solver and the times from the scheduler."""
    pipe = tiny(name)
    pipe.scheduler = as_scheduler(solver, like=pipe.scheduler)
    out = run(pipe, call(name))
    assert torch.equal(run(copy.deepcopy(pipe), call(name)), out)
    given = {key: value for key, value in call(name).items() if key not in ("generator", "output_type")}
    model = gen.load_diffusers(pipe, **given)
    assert (model.own.solver["name"], model.own.differs) == (solver, ())
    unit = torch.randn(2, *model.pipeline.shape, generator=torch.Generator().manual_seed(1))
    theirs = run(pipe, given | {"latents": unit.clone(), "output_type": "latent"})
    assert relative(model.sample(noise=unit, decode=False).x, theirs) < 2e-5


def test_a_pipeline_saves_the_scheduler_that_was_replaced(tmp_path):
    pipe = tiny("pixart")
    own, ours = pipe.scheduler, as_scheduler("unipc", like=pipe.scheduler)
    pipe.scheduler = ours
    with pytest.warns(UserWarning, match=r"UniPC.*is saved as DDIMScheduler: call as_scheduler again after loading"):
        pipe.save_pretrained(tmp_path)
    loaded = type(pipe).from_pretrained(tmp_path, text_encoder=None, tokenizer=None, local_files_only=True)
    assert type(loaded.scheduler) is type(own)
    same = {key: value for key, value in own.config.items() if not key.startswith("_")}
    assert {key: loaded.scheduler.config[key] for key in same} == same
    again = type(pipe).from_pretrained(tmp_path, scheduler=ours, text_encoder=None, tokenizer=None)
    assert again.scheduler is ours
    assert as_scheduler("heun", like=ours).like is own


def test_what_a_pipeline_cannot_have_is_one_line():
    import diffusers

    ddim = diffusers.DDIMScheduler(clip_sample=False)
    with pytest.raises(UserError, match=r"DDIMScheduler has clip_sample=True and Euler clips no x0.*from_config"):
        as_scheduler("euler", like=diffusers.DDIMScheduler())
    as_scheduler({"name": "ddim", "clip": True}, like=diffusers.DDIMScheduler())
    with pytest.raises(UserError, match=r"AdaptiveSteps per sample.*batch"):
        as_scheduler("adaptive", like=ddim)
    with pytest.raises(UserError, match=r"IPNDMScheduler.*allowed are"):
        as_scheduler("euler", like=diffusers.IPNDMScheduler())
    with pytest.raises(UserError, match="invert_sigmas"):
        as_scheduler("euler", like=diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True))
    with pytest.raises(UserError, match="like = 'ddim'; allowed: a scheduler of diffusers"):
        as_scheduler("euler", like="ddim")
    with pytest.raises(UserError, match="give like="):
        as_scheduler("euler")
    with pytest.raises(UserError, match="are like's own"):
        as_scheduler("euler", Flow(), like=ddim)
    scheduler = as_scheduler("euler", like=ddim)
    with pytest.raises(UserError, match="sigmas given; DDIMScheduler takes num_inference_steps"):
        scheduler.set_timesteps(sigmas=[1.0, 0.5])
    with pytest.raises(UserError, match="strength given; it takes num_inference_steps, timesteps, sigmas, mu"):
        scheduler.set_timesteps(4, strength=0.5)
    scheduler.set_timesteps(4)
    x = torch.zeros(1, 2)
    with pytest.raises(UserError, match="eta given; it takes generator and return_dict"):
        scheduler.step(x, scheduler.timesteps[0], x, eta=0.5)
    with pytest.raises(UserError, match=r"set_timesteps of FlowMatch.*mu.*must be passed"):
        flow = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
        as_scheduler("euler", like=flow).set_timesteps(4)
