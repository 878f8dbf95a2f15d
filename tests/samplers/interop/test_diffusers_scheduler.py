"""Every solver handed to a loop that pushes, against our own loop, which is pulled; then a real pipeline."""

from __future__ import annotations

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
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("solver", names("samplers.solvers"))
def test_pushed_and_pulled_are_the_same(solver, path, param, grid, dtype, tolerance):
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
    diffusers = pytest.importorskip("diffusers", exc_type=ImportError)
    try:
        parts = diffusers.DiTPipeline, diffusers.DiTTransformer2DModel, diffusers.AutoencoderKL
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"diffusers does not import here: {error}")
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
