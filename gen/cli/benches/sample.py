"""Sampling from end to end: a guided loop of 20 steps, ours by every engine, and diffusers' DiTPipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from gen.cli.benches.lib.dit import Nets, compiled, forward_flops, specification, under_cudnn
from gen.cli.benches.lib.peers import of_diffusers
from gen.diffusion.denoiser import Cond, Denoiser
from gen.diffusion.net import sides
from gen.diffusion.parameterisation import Eps
from gen.diffusion.path import DDPM
from gen.diffusion.precompute import precompute_modulations
from gen.diffusion.sampling import integrate
from gen.diffusion.tap import Tap
from gen.eval.bench import BenchContext, Call, Case, Inputs
from gen.samplers.guides.cfg import CFG
from gen.samplers.solvers.euler import Euler

__all__ = ["sample"]

SCALE = 4.0  # of the guidance, DiTPipeline's own default
CPU = "on a CPU compiling takes longer than all of this part; gen bench forward does it once"
ONE = "compiled for the smallest batch and the largest only"


def sample(context: BenchContext) -> Iterator[Case]:
    """Yield cases of latents from noise by DDIM with guidance: two rows of the network for each image, 20 evaluations.

    Ours is what Pipeline.sample does once it has its noise: it precomputes the modulations of the loop, and Euler on
    DDPM's path is DDIM. Theirs is DiTPipeline itself with DDIMScheduler, and an autoencoder that hands the latents
    through, so that no pictures are decoded. Both evaluate two rows for an image in one call, and start in the same
    noise.

    Args:
        context: device, dtype and size.
    """
    steps = 4 if context.quick else 20
    for n in (1, 8, 64) if context.cuda and not context.quick else (1,):
        yield _case(context, "XL/2" if context.cuda else "S/2", n, steps, CPU if not context.cuda else ONE * (n == 8))


def _case(context: BenchContext, size: str, n: int, steps: int, reason: str) -> Case:
    """reason: why nothing is compiled; "" if it is."""
    spec = specification(size, context)
    nets = Nets(spec, context)

    def inputs(seed: int) -> Inputs:
        return seed, [(7 * i + seed) % spec.classes for i in range(n)]

    def noise(seed: int) -> Tensor:
        """As DiTPipeline draws it."""
        shape = (n, spec.channels, *sides(spec))
        generator = torch.Generator(context.device).manual_seed(seed)
        return torch.randn(shape, generator=generator, device=context.device, dtype=context.dtype)

    def ours(make: Callable[[], nn.Module], wide: torch.dtype = torch.float32) -> Callable[..., Tensor]:
        net = make()
        return lambda seed, labels: _walk(net, noise(seed).to(wide), labels, steps)

    def exact(seed: int, labels: list[int]) -> Tensor:
        return ours(nets.double, torch.float64)(seed, labels)

    calls = [Call("plain", lambda: ours(lambda: _InDtype(nets.plain, context.dtype)), ours=True)]
    calls += [Call(name, partial(ours, partial(nets.engine, name, reason)), ours=True) for name in nets.engines()]
    calls += [
        Call("diffusers eager", lambda: _pipeline(nets.theirs, context, steps)),
        Call("diffusers eager, cuDNN", lambda: under_cudnn(_pipeline(nets.theirs, context, steps), context)),
        Call("diffusers compiled", lambda: _pipeline(compiled(nets.theirs, context, reason), context, steps)),
    ]
    return Case(
        name=f"DiT-{size}{', tiny' if context.quick else ''}, {steps} steps, guided, {n} image{'s' if n > 1 else ''}",
        dtype=context.dtype,
        calls=calls,
        inputs=inputs,
        exact=exact,
        baseline="diffusers eager",
        tolerance_ulps=8192,
        flops=steps * 2 * n * forward_flops(spec),
        bytes=steps * nets.weight_bytes(),
        rates={"images/s": n},
        steps=steps,
        mfu=True,
    )


class _InDtype(nn.Module):
    """A network in another dtype than the loop's."""

    def __init__(self, net: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.net: Any = net
        self.dtype = dtype

    def forward(self, x: Tensor, t: Tensor, cond: Cond, *, s: Tensor | None = None, tap: Tap | None = None) -> Tensor:
        out: Tensor = self.net(x.to(self.dtype), t, cond, tap=tap)
        return out.to(x.dtype)

    def null(self, cond: Cond) -> Cond:
        null: Cond = self.net.null(cond)
        return null


def _walk(net: nn.Module, x: Tensor, labels: list[int], steps: int) -> Tensor:
    """DDIM's leading timesteps, counted from 1 as our table is, and then t = 0."""
    path, solver = DDPM(), Euler()
    every = path.steps // steps
    times = torch.tensor([*range((steps - 1) * every + 1, 0, -every), 0], dtype=torch.float64)
    cond = {"y": torch.tensor(labels, device=x.device)}
    f = precompute_modulations(Denoiser(net, path, Eps()), times, solver, cond, x)
    return integrate(CFG(SCALE, batched=True)(f, times), x, times, solver, cond=cond)


class _Through(nn.Module):
    """Stands in for an autoencoder: the latents are the image."""

    config = SimpleNamespace(scaling_factor=1.0)

    def __init__(self, device: torch.device):
        super().__init__()
        self.device = device

    def decode(self, latents: Tensor) -> Any:
        self.latents = latents
        return SimpleNamespace(sample=latents)


def _pipeline(transformer: Any, context: BenchContext, steps: int) -> Callable[..., Tensor]:
    make = of_diffusers("DDIMScheduler")
    scheduler = make(clip_sample=False, set_alpha_to_one=True, timestep_spacing="leading")
    vae = _Through(context.device)
    pipe = of_diffusers("DiTPipeline")(transformer=transformer, vae=vae, scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)

    def call(seed: int, labels: list[int]) -> Tensor:
        generator = torch.Generator(context.device).manual_seed(seed)
        pipe(labels, SCALE, generator, num_inference_steps=steps, output_type="pt")
        return vae.latents

    return call
