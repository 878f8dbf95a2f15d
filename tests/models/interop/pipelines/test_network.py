"""Every family's network under our loop gives its pipeline's own latents, and a wrong table row does not."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace

import pytest
import torch

from gen.config.errors import UserError
from gen.diffusion.net import members
from gen.diffusion.parameterisation import Eps, V
from gen.diffusion.sampling import integrate
from gen.models.interop.pipelines.families import FAMILIES as TABLE
from gen.models.interop.pipelines.listening import listen
from gen.models.interop.pipelines.network import denoiser_of
from gen.models.interop.pipelines.schedule import times_of
from gen.samplers.guides.cfg import CFG
from gen.samplers.guides.renorm import Renorm
from gen.samplers.solvers.ddim import DDIM
from tests.pipelines.tiny import FAMILIES, call, relative, tiny

# of Euler's scheduler in diffusers, by numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

GUIDES = {
    "flux2": None,
    "z_image": CFG(3.0),  # theirs is c + w (c - u), with w = 2
    "qwen_image": Renorm(3.0),
    "lumina2": Renorm(3.0, over="rows"),
}
LOOSE = {"sd3": 5e-5, "z_image": 5e-5}


def arguments(name):
    given = call(name)
    given.pop("guidance_scale_2", None)  # one scale for both stages
    return given


@functools.cache
def theirs(name):
    """A pipeline and its own latents."""
    pipe = tiny(name)
    if name != "dit":
        return pipe, next(iter(pipe(**arguments(name)).values()))
    seen, decode = [], pipe.vae.decode
    pipe.vae.decode = lambda z: (seen.append(z), decode(z))[1]
    pipe(**arguments(name))
    del pipe.vae.decode
    return pipe, seen[0] * pipe.vae.config.scaling_factor


@functools.cache
def heard_of(name):
    pipe, _ = theirs(name)
    return pipe, listen(pipe, **arguments(name))


@torch.no_grad()
def ours(name, heard, **options):
    f, times = denoiser_of(heard, **options), times_of(heard)
    guide = GUIDES.get(name, CFG(3.0))
    return integrate(f if guide is None else guide(f, times), heard.latents, times, DDIM(), cond=heard.cond)


@pytest.mark.parametrize("name", FAMILIES)
def test_our_loop_gives_the_pipelines_latents(name):
    assert relative(ours(name, heard_of(name)[1]), theirs(name)[1]) <= LOOSE.get(name, 2e-5)


MISTAKES = [
    ("sd15", {"branches": "positive_first"}),
    ("sdxl", {"branches": "positive_first"}),
    ("sd3", {"unit": "sigma"}),
    ("flux", {"unit": "step"}),
    ("flux2", {"sign": -1}),
    ("pixart", {"branches": "positive_first"}),
    ("sana", {"unit": "clean"}),
    ("lumina2", {"sign": 1}),
    ("lumina2", {"unit": "sigma"}),
    ("qwen_image", {"unit": "clean"}),
    ("z_image", {"sign": 1}),
    ("z_image", {"unit": "sigma"}),
    ("z_image", {"branches": "negative_first"}),
    ("wan", {"unit": "sigma"}),
    ("hunyuan_video", {"unit": "sigma"}),
    ("ltx", {"branches": "positive_first"}),
    ("dit", {"branches": "negative_first"}),
]


@pytest.mark.parametrize(("name", "wrong"), MISTAKES, ids=[f"{name}-{next(iter(w))}" for name, w in MISTAKES])
def test_a_wrong_row_of_the_table_is_seen(name, wrong):
    pipe, expected = theirs(name)
    family = replace(heard_of(name)[1].family, **wrong)
    assert relative(ours(name, listen(pipe, family=family, **arguments(name))), expected) > 0.1


@pytest.mark.parametrize(("name", "parameterisation"), [("sd15", V()), ("sd21_v", Eps())])
def test_a_wrong_parameterisation_is_seen(name, parameterisation):
    assert relative(ours(name, heard_of(name)[1], parameterisation=parameterisation), theirs(name)[1]) > 0.1


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_it_keeps_the_contract_of_networks(name):
    _, heard = heard_of(name)
    f = denoiser_of(heard)
    net, x, cond = f.net, heard.latents, dict(heard.cond)
    t = f.t_to_network(times_of(heard)[:2].flip(0), x)  # a time for each row
    before = {key: value.clone() for key, value in cond.items()}
    out = net(x, t, cond)
    assert out.shape == x.shape and out.dtype == x.dtype and members(net).state_shape == x.shape[1:]
    for i in range(2):
        alone = net(x[i : i + 1], t[i : i + 1], {key: value[i : i + 1] for key, value in cond.items()})
        assert relative(alone, out[i : i + 1]) < 1e-5
    assert all(torch.equal(cond[key], value) for key, value in before.items())
    assert {key.split(".", 1)[0] for key in net.state_dict()} <= {"inner", "low"}
    assert torch.equal(copy.deepcopy(net)(x, t, cond), out)
    if name == "flux2":
        with pytest.raises(UserError, match="no negative branch"):
            net.null(cond)
    else:
        null = net.null(cond)
        assert null.keys() == cond.keys()
        assert relative(net(x, t, null), out) > 1e-4
        assert torch.equal(net(x, t, net.null(null)), net(x, t, null))
    with pytest.raises(UserError, match="needs cond"):
        net(x, t, {})
    with pytest.raises(UserError, match="has shape"):
        net(x[..., :1], t, cond)


@torch.no_grad()
def test_rows_of_both_stages_share_a_batch():
    _, heard = heard_of("wan22")
    f = denoiser_of(heard)
    high, low = (torch.tensor([t, t]) for t in (0.95, 0.5))
    assert relative(f.net(heard.latents, high, heard.cond), f.net(heard.latents, low, heard.cond)) > 0.1
    both = f.net(heard.latents, torch.tensor([0.95, 0.5]), heard.cond)
    for i, t in enumerate((high, low)):
        assert relative(both[i], f.net(heard.latents, t, heard.cond)[i]) < 1e-6


@pytest.mark.parametrize("name", ["sd15", "pixart", "dit"])
def test_in_float64_only_the_rounding_of_tables_is_left(name):
    pipe = copy.deepcopy(theirs(name)[0]).to(torch.float64)
    given = arguments(name)
    given |= {key: v.double() for key, v in given.items() if isinstance(v, torch.Tensor) and v.is_floating_point()}
    heard = listen(pipe, **given)
    assert heard.latents.dtype == torch.float64
    assert TABLE[type(denoiser_of(heard).net.inner).__name__] == heard.family
