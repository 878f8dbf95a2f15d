"""What each process of tests/models/test_branch_parallel.py computes."""

import pytest
import torch

from gen.config.errors import UserError
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.parameterisation import Velocity
from gen.diffusion.path import Flow
from gen.diffusion.sampling import integrate
from gen.models.engines.branches import Branches
from gen.models.interop.pipelines.listening import listen
from gen.models.interop.pipelines.network import denoiser_of
from gen.models.interop.pipelines.prompted import load_diffusers
from gen.pipeline import Pipeline
from gen.samplers.guides.cfg import CFG
from gen.samplers.solvers.euler import Euler
from gen.training.run import Sampler
from tests.models.test_families import digits, random_net
from tests.pipelines.tiny import call, tiny, with_text_encoder

STEPS, N = 4, 3
CASES = {  # settings of a loop, and how many of its evaluations (two a step of Heun, but in the last) have two branches
    "cfg": ({"guide": {"name": "cfg", "scale": 3.0}}, 7),
    "interval": ({"guide": {"name": "cfg", "scale": 3.0, "steps": [0.25, 0.75]}}, 4),
    "scale 1": ({"guide": {"name": "cfg", "scale": 1.0}}, 0),
    "none": ({"guide": "none"}, 0),
    "apg": ({"guide": {"name": "apg", "scale": 3.0}}, 7),
    "rescale": ({"guide": {"name": "rescale", "scale": 3.0}}, 7),
    "renorm": ({"guide": {"name": "renorm", "scale": 3.0}}, 7),
    "cfg_zero": ({"guide": {"name": "cfg_zero", "scale": 3.0, "zero_steps": 0}}, 7),
    "skip_layers": ({"guide": {"name": "skip_layers", "sites": ["blocks.1"], "skip_steps": [0.0, 1.0]}}, 7),
    "reuse": ({"guide": {"name": "cfg", "scale": 3.0}, "cache": {"name": "fora", "interval": 2}}, 7),
    "probe": ({"guide": {"name": "cfg", "scale": 3.0}, "cache": {"name": "fbcache", "threshold": 0.3}}, 7),
}


def pipeline_of(name):
    net = random_net(digits(name), dtype=torch.float32)
    return Pipeline(Denoiser(net, Flow(), Velocity()), (1, 8, 8), 10, Sampler("heun", steps=STEPS))


def compare(plain, shared, settings, name):
    net = shared.denoiser.net
    sent = net.traffic.sent
    samples = shared.sample(N, **settings)
    return {
        f"{name} samples": samples.x,
        f"{name} alone": plain.sample(N, **settings).x,
        f"{name} sent": torch.tensor(net.traffic.sent - sent),
    }


@torch.no_grad()
def pipelines(name):
    """A pipeline's own network, which is not copied."""
    heard = listen(tiny(name), **call(name))
    f = denoiser_of(heard)
    shared = Denoiser(Branches().prepare(f.net), f.path, f.parameterisation)
    assert shared.net.inner is f.net
    grid = [f.path.t1 * part for part in (1.0, 0.6, 0.3, 0.1)]
    ours, alone = (
        integrate(CFG(3.0)(g, torch.tensor(grid)), heard.latents, grid, Euler(), cond=heard.cond) for g in (shared, f)
    )
    return {f"{name} samples": ours, f"{name} alone": alone, f"{name} sent": torch.tensor(shared.net.traffic.sent)}


def loaded():
    """A pipeline as its users load it."""
    plain = load_diffusers(with_text_encoder("sd15")).pipeline
    settings = {"cond": plain.encode_prompts(["a red fox"] * N), "steps": STEPS, "guide": {"name": "cfg", "scale": 3.0}}
    return compare(plain, plain.prepared("branches"), settings, "loaded")


def refusals(shared):
    net = shared.denoiser.net
    x, t, cond = torch.zeros(1, 1, 8, 8), torch.zeros(1), {"y": torch.zeros(1, dtype=torch.long)}
    with pytest.raises(UserError, match="passes no gradients on"):
        net.run_branches(lambda: net(x, t, cond), lambda: net(x, t, cond))
    with torch.no_grad(), pytest.raises(UserError, match="evaluates its network more than once"):
        net.run_branches(*(2 * [lambda: net(x, t, cond) + net(x, t, cond)]))
    assert net.mode == "plain"


def everything():
    plain = pipeline_of("dit")
    shared = plain.prepared("branches")
    found = {}
    for name, (settings, _) in CASES.items():
        found |= compare(plain, shared, settings, name)
    unet = pipeline_of("unet")
    found |= compare(unet, unet.prepared("branches"), CASES["cfg"][0], "unet")
    found |= pipelines("sd15") | pipelines("pixart") | loaded()
    refusals(shared)
    return found


def halves():
    """Patches and stages within two halves, beside those of one half in one process."""
    found, plain = {}, pipeline_of("dit")
    with pytest.raises(UserError, match="has 2 branches, not 4: start 2 processes, or give within"):
        plain.prepared("branches")
    loops = ("cfg", "interval", "none")
    for kind, within, cases in (
        ("stale", {"name": "patches", "warmup": 1}, (*loops, "skip_layers", "reuse")),
        ("portion", {"name": "patches", "warmup": 0, "portion": 0.3}, (*loops, "skip_layers", "reuse")),
        ("stages", {"name": "pipefusion", "warmup": 1}, loops),
    ):
        shared = plain.prepared({"name": "branches", "within": within})
        alone = plain.prepared({**within, "parts": 2})
        for name in cases:
            found |= compare(alone, shared, CASES[name][0], f"{kind} {name}")
    return found
