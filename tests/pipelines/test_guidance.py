"""Guidance of pipelines by their own code: their latents against ours under the guide that is meant to be the same."""

from __future__ import annotations

import pytest
import torch

from gen.diffusion.sampling import integrate
from gen.models.interop.pipelines.listening import listen
from gen.models.interop.pipelines.network import denoiser_of
from gen.models.interop.pipelines.schedule import times_of
from gen.samplers.guides.cfg import CFG
from gen.samplers.guides.dynamic import DynamicCFG
from gen.samplers.guides.renorm import Renorm
from gen.samplers.guides.skip_layers import SkipLayers
from gen.samplers.solvers.ddim import DDIM
from tests.pipelines.tiny import call, relative, tiny

# of Euler's scheduler in diffusers, by numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

RULES = [  # family, arguments of its call, ours
    ("z_image", {"cfg_normalization": 0.9}, Renorm(3.0, over="sample", cap=0.9)),
    (
        "z_image",
        {"cfg_truncation": 0.4},
        CFG(3.0, steps=(0.0, 0.75)),
    ),  # while 1 - sigma <= .4: the first three
    ("lumina2", {"cfg_normalization": False}, CFG(3.0)),
    ("lumina2", {"cfg_trunc_ratio": 0.5}, Renorm(3.0, over="rows", steps=(0.0, 0.5))),
    ("cogvideox", {"use_dynamic_cfg": True}, DynamicCFG(4.0)),
    (
        "sd3",
        {"skip_guidance_layers": [1], "skip_layer_guidance_stop": 0.6},
        SkipLayers(3.0, sites=("blocks.1",), skip_steps=(0.01, 0.6)),
    ),
]


@torch.no_grad()
@pytest.mark.parametrize(("name", "given", "guide"), RULES, ids=[f"{rule[0]}-{next(iter(rule[1]))}" for rule in RULES])
def test_a_guide_is_the_pipelines_own(name, given, guide):
    pipe = tiny(name)
    theirs, plain = (next(iter(pipe(**call(name), **more).values())) for more in (given, {}))
    heard = listen(pipe, **call(name))
    f, times = denoiser_of(heard), times_of(heard)
    ours = integrate(guide(f, times), heard.latents, times, DDIM(), cond=heard.cond)
    assert relative(ours, theirs) <= (5e-5 if name in ("z_image", "sd3") else 2e-5)
    assert relative(plain, theirs) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("name", ["flux", "flux2", "hunyuan_video"])
def test_embedded_guidance_is_a_condition(name):
    """Another guidance_scale is another value of cond["guidance"], and nothing else."""
    pipe, given = tiny(name), {**call(name)}
    theirs = next(iter(pipe(**{**given, **call(name), "guidance_scale": 5.0}).values()))
    heard = listen(pipe, **{**call(name), "guidance_scale": 2.5})
    assert heard.cond["guidance"].shape == (2,)
    cond = {key: 2 * value if key.endswith("guidance") else value for key, value in heard.cond.items()}
    f, times = denoiser_of(heard), times_of(heard)
    scale = given.get("true_cfg_scale", 1.0)
    guided = CFG(scale)(f, times) if scale > 1 else f
    assert relative(integrate(guided, heard.latents, times, DDIM(), cond=cond), theirs) <= 2e-5
    assert relative(integrate(guided, heard.latents, times, DDIM(), cond=heard.cond), theirs) > 1e-3
