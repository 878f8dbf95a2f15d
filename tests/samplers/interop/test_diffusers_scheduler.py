"""Every solver handed to a loop that pushes, against our own loop, which is pulled; then a real pipeline."""

from __future__ import annotations

import importlib

import pytest
import torch

from gen.config.errors import UserError
from gen.config.spec import build, names
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.noise import Noise, sample_seeds
from gen.diffusion.parameterisation import EDMPrecond, Eps, V, Velocity
from gen.diffusion.path import DDPM, EDM, Flow, expand
from gen.diffusion.sampling import integrate
from gen.diffusion.worlds import Gaussian
from gen.samplers.grids.karras import Karras
from gen.samplers.grids.linear import Linear
from gen.samplers.interop.diffusers_scheduler import as_scheduler
from gen.samplers.solvers.euler import Euler
from gen.samplers.solvers.heun import Heun
from gen.samplers.solvers.renoise import Renoise
from tests.over import over
from tests.pipelines.tiny import tiny

TIMES = {DDPM: lambda t: t + 1, Flow: lambda t: t, EDM: lambda t: torch.exp(4 * t)}  # the inverses of t_to_network


class Net(torch.nn.Module):
    """The network whose denoiser is that of one Gaussian: curved paths, and an exact flow map where s is told."""

    def __init__(self, path=None, parameterisation=None):
        super().__init__()
        self.path, self.parameterisation, self.calls = path or Flow(), parameterisation or Velocity(), 0
        self.world = Gaussian(self.path, torch.tensor([0.5, -1.0]).double(), torch.tensor([0.3, 0.7]).double())

    def forward(self, x, t, cond, *, s=None, tap=None):
        self.calls += 1
        t = TIMES[type(self.path)](t.double())
        s = None if s is None else TIMES[type(self.path)](s.double())
        pred = self.world(x.double() / expand(self.parameterisation.scale(self.path, t), x.double()), t, s=s)
        return self.parameterisation.target(self.path, *pred, t).to(x.dtype)


def push(scheduler, net, x, steps, generator=None):
    """What a pipeline of diffusers does, with one network call for each timestep."""
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        target = None if scheduler.target is None else scheduler.target.expand(len(x))
        out = net(scheduler.scale_model_input(x, t), t.expand(len(x)), {}, s=target)
        x = scheduler.step(out, t, x, generator=generator, return_dict=False)[0]
    return x


CASES = [
    pytest.param(DDPM(), Eps(), Linear(0.999), id="ddpm-eps"),
    pytest.param(Flow(), Velocity(), Linear(), id="flow"),
    pytest.param(EDM(), EDMPrecond(), Karras(), id="edm"),
]


@pytest.mark.parametrize(("path", "param", "grid"), CASES)
@pytest.mark.parametrize("solver", names("samplers.solvers"))
@over(dtype=[torch.float64, torch.float32])
def test_pushed_and_pulled_are_the_same(solver, path, param, grid, dtype):
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6}[dtype]
    solver, steps = build("samplers.solvers", solver), 6
    noise = Noise(tuple(sample_seeds(3, 4)))
    times = grid.times(path, steps)
    x = path.start(noise.normal("start", (2,)).to(dtype), times[0])
    net = Net(path, param)
    pulled = integrate(Denoiser(net, path, param), x, times, solver, noise=noise)
    evaluations, net.calls = net.calls, 0
    pushed = push(as_scheduler(solver, path, param, grid, seed=3), net, x, steps)
    assert net.calls == evaluations
    assert pushed.dtype == pulled.dtype == dtype
    assert float((pushed - pulled).abs().max()) <= tolerance * max(1.0, float(pulled.abs().max()))


def test_timesteps_list_every_evaluation_as_the_network_is_told_them():
    scheduler = as_scheduler(Heun(), DDPM(), Eps(), Linear())
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [999, 749, 749, 499, 499, 249, 249]
    assert scheduler.init_noise_sigma == pytest.approx(1, abs=1e-4)
    flow = as_scheduler(Euler(), Flow(), Velocity(), Linear(), time_scale=1000)
    flow.set_timesteps(4)
    assert flow.timesteps.tolist() == [1000, 750, 500, 250]


STRENGTHS = [k / 20 for k in range(1, 21)]
LOOPS = (0.2, 0.65, 1.0)


def image_to_image(scheduler, steps, strength):
    """The timesteps of an image-to-image pipeline of diffusers, by its own arithmetic."""
    t_start = max(steps - min(int(steps * strength), steps), 0)
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps[t_start * scheduler.order :]
    scheduler.set_begin_index(t_start * scheduler.order)
    return timesteps, t_start


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("solver", names("samplers.solvers"))
def test_index_contract_a_loop_begins_where_the_strength_says(solver):
    """Against diffusers' own scheduler of that order, and then our loop over the rest of the grid."""
    import diffusers

    path, grid, steps = DDPM(), Linear(), 20
    net, x0, noise = Net(path, Eps()), torch.randn(2, 2).double(), torch.randn(2, 2).double()
    scheduler = as_scheduler(build("samplers.solvers", solver), path, Eps(), grid, seed=3)
    kind = diffusers.HeunDiscreteScheduler if scheduler.order == 2 else diffusers.EulerDiscreteScheduler
    theirs = kind(timestep_spacing="trailing")
    for strength in STRENGTHS if solver in ("euler", "heun") else LOOPS:  # one of each order is asked for all
        timesteps, t_start = image_to_image(scheduler, steps, strength)
        assert float(timesteps[0]) == float(image_to_image(theirs, steps, strength)[0][0]), strength
        assert scheduler.num_inference_steps == steps
        assert scheduler.step_index is None
        x = scheduler.add_noise(x0, noise, timesteps[:1].repeat(2))
        torch.testing.assert_close(x, path.mix(x0, noise, grid.times(path, steps)[t_start]))
        if strength not in LOOPS:
            continue
        times = grid.times(path, steps)[t_start:]
        pulled = integrate(Denoiser(net, path, Eps()), x, times, scheduler.solver, noise=Shifted(3, 2, t_start))
        index = t_start * scheduler.order
        for t in timesteps:
            pred = net(scheduler.scale_model_input(x, t), t.expand(2), {}, s=scheduler.target)
            x = scheduler.step(pred, t, x).prev_sample
            index += 1
            assert scheduler.step_index == index
        assert float((x - pulled).abs().max()) <= 1e-12 * float(pulled.abs().max()), strength


class Shifted(Noise):
    """The noise of a loop that began `first` steps earlier."""

    def __init__(self, seed, n, first):
        super().__init__(tuple(sample_seeds(seed, n)))
        object.__setattr__(self, "first", first)

    def normal(self, step, shape):
        return super().normal(step + self.first, shape)


@pytest.mark.slow
@pytest.mark.parametrize(("path", "param", "grid"), CASES)
@pytest.mark.parametrize("solver", names("samplers.solvers"))
def test_index_contract_every_listed_timestep_takes_noise(solver, path, param, grid):
    """As inpainting needs it: at each evaluation the known part is noised to the next one's level, and blended in."""
    if solver == "adaptive":
        solver = {"name": "adaptive", "per": "batch"}  # a pipeline keeps one time for all samples
    net, x0, unit = Net(path, param), torch.randn(2, 2).double(), torch.randn(2, 2).double()
    scheduler = as_scheduler(build("samplers.solvers", solver), path, param, grid)
    scheduler.set_timesteps(5)
    known = torch.tensor([1.0, 0.0]).double()
    timesteps, x = scheduler.timesteps, unit * scheduler.init_noise_sigma
    for i, t in enumerate(timesteps):
        pred = net(scheduler.scale_model_input(x, t), t.expand(2), {}, s=scheduler.target)
        x = scheduler.step(pred, t, x).prev_sample
        kept = x0
        if i < len(timesteps) - 1:
            kept = scheduler.add_noise(x0, unit, torch.tensor([timesteps[i + 1]]))
        x = known * kept + (1 - known) * x
    assert torch.equal(x[:, 0], x0[:, 0])
    assert bool(x.isfinite().all())


def test_index_contract_no_loop_begins_inside_a_step():
    scheduler = as_scheduler(Heun(), DDPM(), Eps(), Linear())
    scheduler.set_timesteps(20)
    scheduler.set_begin_index(4)
    with pytest.raises(UserError, match="begin index 7: a loop of 20 steps of 2 evaluations begins at a multiple of 2"):
        scheduler.set_begin_index(7)


@pytest.mark.parametrize("given", ["steps", "sigmas", "timesteps", "mu", "sigmas and mu", "shift and sigmas"])
def test_custom_times_are_those_of_diffusers(given):
    """Its flow scheduler's contract, through the call by which its pipelines choose times."""
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.flux.pipeline_flux import retrieve_timesteps

    dynamic, shift = "mu" in given, 3.0 if "shift" in given else 1.0
    sigmas, how = [1.0, 0.7, 0.4, 0.05], {}
    how |= {"sigmas": sigmas} if "sigmas" in given else {}
    how |= {"timesteps": [1000.0, 600.0, 30.0]} if given == "timesteps" else {}
    how |= {"mu": 0.8} if dynamic else {}
    n = None if {"sigmas", "timesteps"} & how.keys() else 5
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift, use_dynamic_shifting=dynamic)
    grid = build("samplers.grids", {"name": "shift", "shift": shift}) if shift != 1 else Linear()
    ours = as_scheduler(Euler(), Flow(), Velocity(), grid, time_scale=1000.0, use_dynamic_shifting=dynamic)
    if n is not None:  # ours ends in equal steps, theirs at its sigma_min
        how, n = {**how, "sigmas": torch.linspace(1, 1 / n, n).tolist()}, None
    expected, count = retrieve_timesteps(theirs, n, "cpu", **how)
    got, steps = retrieve_timesteps(ours, n, "cpu", **how)
    assert steps == count
    torch.testing.assert_close(got, expected.double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("path", "param", "grid"), CASES)
def test_given_timesteps_are_the_times_they_are_listed_at(path, param, grid):
    scheduler = as_scheduler(Euler(), path, param, Linear())
    scheduler.set_timesteps(6)
    listed, times = scheduler.timesteps, scheduler.times
    scheduler.set_timesteps(timesteps=listed)
    torch.testing.assert_close(scheduler.times, times, rtol=1e-9, atol=1e-9)
    levels = path.sigma(times) if path == Flow() else path.sigma(times) / path.alpha(times)
    scheduler.set_timesteps(sigmas=levels[1:])
    torch.testing.assert_close(scheduler.times, times[1:], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({}, "give one of"),
        ({"sigmas": [1.0, 0.5], "timesteps": [1.0, 0.5]}, "give one of"),
        ({"sigmas": [0.5, 1.0]}, "they fall from at most 1"),
        ({"sigmas": [1.5, 1.0]}, "they fall from at most 1"),
        ({"timesteps": []}, "they fall"),
        ({"sigmas": [1.0, 0.5], "num_inference_steps": 3}, "num_inference_steps = 3 beside 2 sigmas"),
    ],
)
def test_custom_times_that_are_none_are_one_line(how, message):
    scheduler = as_scheduler(Euler(), Flow(), Velocity(), Linear())
    with pytest.raises(UserError, match=message):
        scheduler.set_timesteps(**how)
    with pytest.raises(UserError, match="needs mu"):
        as_scheduler(Euler(), Flow(), Velocity(), Linear(), use_dynamic_shifting=True).set_timesteps(4)
    with pytest.raises(UserError, match="beside the grid karras"):
        as_scheduler(Euler(), EDM(), EDMPrecond(), Karras()).set_timesteps(sigmas=[1.0, 0.5])


def test_one_scheduler_serves_walks_of_different_lengths():
    x = torch.randn(2, 2, dtype=torch.float64)
    scheduler = as_scheduler(Heun(), Flow(), Velocity(), Linear())
    once = [push(scheduler, Net(), x, steps) for steps in (3, 5, 3)]
    assert torch.equal(once[0], once[2])
    assert not torch.equal(once[0], once[1])


def test_a_generator_of_the_pipeline_is_the_source_of_noise():
    x = torch.randn(2, 2, dtype=torch.float64)
    scheduler = as_scheduler(Renoise(), Flow(), Velocity(), Linear())
    ends = [push(scheduler, Net(), x, 4, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_what_a_pipeline_changes_between_steps_is_kept():
    """As inpainting does: then the next step starts from the changed sample."""
    x, net, changed = torch.randn(2, 2, dtype=torch.float64), Net(), torch.ones(2, 2, dtype=torch.float64)
    scheduler = as_scheduler(Heun(), Flow(), Velocity(), Linear())
    scheduler.set_timesteps(2)
    for k, t in enumerate(scheduler.timesteps):
        x = changed if k == 2 else x  # the first evaluation of the second and last step
        x = scheduler.step(net(x, t.expand(2), {}), t, x).prev_sample
    f = Denoiser(net, Flow(), Velocity())
    torch.testing.assert_close(x, integrate(f, changed, [0.5, 0.0], Heun()), rtol=1e-14, atol=1e-14)


def test_a_walk_may_begin_on_the_way_from_a_noised_image():
    x0, noise = torch.randn(2, 2, dtype=torch.float64), torch.randn(2, 2, dtype=torch.float64)
    scheduler = as_scheduler(Euler(), DDPM(), Eps(), Linear())
    scheduler.set_timesteps(4)
    start = scheduler.timesteps[2:]
    x = scheduler.add_noise(x0, noise, start[:1].expand(2))
    torch.testing.assert_close(x, DDPM().mix(x0, noise, torch.tensor(500.0, dtype=torch.float64)))
    net = Net(DDPM(), Eps())
    exact = integrate(Denoiser(net, DDPM(), Eps()), x, [500, 250, 0], Euler())
    for t in start:
        x = scheduler.step(net(x, t.expand(2), {}), t, x).prev_sample
    assert torch.equal(x, exact)


def test_the_clean_sample_of_every_evaluation_is_told():
    x = torch.randn(2, 2, dtype=torch.float64)
    scheduler = as_scheduler(Euler(), DDPM(), V(), Linear())
    scheduler.set_timesteps(1)
    done = scheduler.step(x, scheduler.timesteps[0], x)
    torch.testing.assert_close(done.prev_sample, done.pred_original_sample)


@pytest.mark.parametrize("solver", ["euler", "unipc", "heun"])
def test_samples_of_half_precision_are_those_of_float32_rounded(solver):
    """Rounding each sample for the pipeline does not add up: the mean error is that of bfloat16 once."""
    x = torch.randn(64, 2).bfloat16()
    exact, half = (push(as_scheduler(solver, Flow(), Velocity(), Linear()), Net(), z, 60) for z in (x.double(), x))
    assert half.dtype == torch.bfloat16
    assert float(((half.double() - exact) / exact.abs().clamp(min=0.1)).abs().mean()) < 3e-3


def test_misuse_is_one_line():
    x = torch.zeros(1, 2, dtype=torch.float64)
    scheduler = as_scheduler(Euler(), DDPM(), Eps(), Linear())
    with pytest.raises(UserError, match="call set_timesteps"):
        scheduler.step(x, 999, x)
    scheduler.set_timesteps(2)
    with pytest.raises(UserError, match="timestep 300 begins no step; those that do: 999, 499"):
        scheduler.step(x, 300, x)
    x = push(scheduler, Net(DDPM(), Eps()), x, 2)
    with pytest.raises(UserError, match="over or was never begun"):
        scheduler.step(x, 0, x)


@pytest.mark.parametrize("solver", ["euler", "heun", "dpmpp", "renoise"])
def test_a_pipeline_of_diffusers_runs_with_it(solver):
    """DiTPipeline with a tiny random transformer, against our loop on the same network under the same guidance."""
    diffusers = importlib.import_module("diffusers")
    parts = diffusers.DiTPipeline, diffusers.DiTTransformer2DModel, diffusers.AutoencoderKL
    from gen.models.interop.diffusers_transformer import denoiser
    from gen.samplers.guides.cfg import CFG

    pipeline_of, transformer_of, vae_of = parts
    transformer = transformer_of(2, 8, 4, 8, num_layers=2, sample_size=8, attention_bias=True).eval()  # null is 1000
    vae = vae_of(latent_channels=4, block_out_channels=(8,), norm_num_groups=4, scaling_factor=1.0).eval()
    solver, grid = build("samplers.solvers", solver), Linear(0.999)
    scheduler = as_scheduler(solver, DDPM(), Eps(), grid, seed=5)
    pipe = pipeline_of(transformer, vae, scheduler)
    pipe.set_progress_bar_config(disable=True)
    kwargs = {"guidance_scale": 3.0, "num_inference_steps": 4, "output_type": "pt"}
    theirs = pipe([7, 400], generator=torch.Generator().manual_seed(1), **kwargs).images
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    times, noise = grid.times(DDPM(), 4), Noise(tuple(sample_seeds(5, 2)))
    with torch.no_grad():
        f = CFG(3.0)(denoiser(transformer), times)
        latents = integrate(f, x, times, solver, cond={"y": torch.tensor([7, 400])}, noise=noise)
        ours = (vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)
    assert float((ours - theirs).abs().max()) < 1e-4


def pipeline(kind, name, scheduler, **options):
    """A pipeline of a kind on the parts of a tiny one, with another scheduler."""
    pipe = kind(**{**tiny(name).components, "scheduler": scheduler}, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["euler", "heun", "midpoint", "rk4", "dpmpp_single", "exp_ab", "adaptive"])
def test_index_contract_in_pipelines_of_diffusers(solver):
    """Image to image from the noise level of the strength, against our loop; inpainting keeps what is masked."""
    import diffusers

    spec = {"name": solver, "per": "batch"} if solver == "adaptive" else solver
    scheduler = as_scheduler(build("samplers.solvers", spec), DDPM(), Eps(), Linear(0.999))
    how = {
        "image": torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1)),
        "prompt_embeds": torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(2)),
        "num_inference_steps": 8,
        "guidance_scale": 1.0,
        "output_type": "latent",
    }
    begun = []
    pipe = pipeline(diffusers.StableDiffusionImg2ImgPipeline, "sd15", scheduler, requires_safety_checker=False)
    pipe.unet.register_forward_pre_hook(lambda _, args: begun.append((args[0].clone(), args[1])))
    theirs = pipe(strength=0.5, generator=torch.Generator().manual_seed(0), **how).images
    assert float(begun[0][1]) == pytest.approx(float(Linear(0.999).times(DDPM(), 8)[4]) - 1)
    times, embeds = Linear(0.999).times(DDPM(), 8)[4:], how["prompt_embeds"]

    class Unet(torch.nn.Module):
        def forward(self, x, t, cond, *, s=None, tap=None):
            return pipe.unet(x, t[0], encoder_hidden_states=embeds).sample

    with torch.no_grad():
        ours = integrate(Denoiser(Unet(), DDPM(), Eps()), begun[0][0], times, scheduler.solver)
    assert float((ours - theirs).abs().max()) < 1e-4 * float(ours.abs().max())

    pipe = pipeline(diffusers.StableDiffusionInpaintPipeline, "sd15", scheduler, requires_safety_checker=False)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 4:] = 1  # to be painted
    how |= {"mask_image": mask, "height": 8, "width": 8, "strength": 0.65}
    latents = pipe(generator=torch.Generator().manual_seed(0), **how).images
    encoded = pipe.vae.encode(2 * how["image"] - 1).latent_dist
    kept = encoded.sample(torch.Generator().manual_seed(0)) * pipe.vae.config.scaling_factor
    assert bool(latents.isfinite().all())
    torch.testing.assert_close(latents[..., :2], kept[..., :2])


@pytest.mark.parametrize("shifting", [False, True])
def test_flux_runs_whole_as_with_the_scheduler_of_diffusers(shifting):
    """Text to image, and image to image at several strengths, with the shift by resolution and without."""
    import diffusers

    theirs = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=shifting)
    ours = as_scheduler(Euler(), Flow(), Velocity(), Linear(), time_scale=1000.0, use_dynamic_shifting=shifting)
    draws = torch.Generator().manual_seed(1)
    how = {
        "prompt_embeds": torch.randn(2, 5, 8, generator=draws),
        "pooled_prompt_embeds": torch.randn(2, 8, generator=draws),
        "height": 16,
        "width": 16,
        "output_type": "latent",
    }
    image = torch.rand(2, 3, 16, 16, generator=draws)
    calls = [(diffusers.FluxPipeline, {"num_inference_steps": 5})]
    for strength in (0.05, 0.5, 0.77, 1.0):
        changes = {"num_inference_steps": 20, "image": image, "strength": strength}
        calls.append((diffusers.FluxImg2ImgPipeline, changes))
    for kind, changes in calls:
        given, here = (
            pipeline(kind, "flux", one)(generator=torch.Generator().manual_seed(0), **how, **changes).images
            for one in (theirs, ours)
        )
        torch.testing.assert_close(here, given, atol=3e-5, rtol=0)
