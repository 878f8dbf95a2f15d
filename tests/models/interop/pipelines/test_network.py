"""Every family's network under our loop gives its pipeline's own latents, and a wrong table row does not."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace

import diffusers
import pytest
import torch
from diffusers.hooks import apply_group_offloading
from peft import LoraConfig, get_peft_model

from gen.config.errors import UserError
from gen.diffusion.foreign_schedule import read_schedule
from gen.diffusion.net import members
from gen.diffusion.parameterisation import Eps, V
from gen.diffusion.sampling import integrate
from gen.models.given import GivenNet
from gen.models.interop.pipelines.listening import listen
from gen.models.interop.pipelines.network import denoiser_of
from gen.models.interop.pipelines.schedule import times_of
from gen.samplers.guides.cfg import CFG
from gen.samplers.guides.renorm import Renorm
from gen.samplers.guides.staged import StagedCFG
from gen.samplers.solvers.ddim import DDIM
from tests.pipelines.tiny import FAMILIES, call, randomise, relative, tiny

# of Euler's scheduler in diffusers, by numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

GUIDES = {
    "flux2": None,
    "lumina2": Renorm(3.0, over="rows"),
    "qwen_image": Renorm(3.0),
    "wan22": StagedCFG(3.0, low_scale=2.0, boundary=0.9),
    "z_image": CFG(3.0),  # theirs is c + w (c - u), with w = 2
}
LOOSE = {"sd3": 5e-5, "z_image": 5e-5}


@functools.cache
def theirs(name):
    """A pipeline and its own latents."""
    pipe = tiny(name)
    if name != "dit":
        return pipe, next(iter(pipe(**call(name)).values()))
    seen, decode = [], pipe.vae.decode
    pipe.vae.decode = lambda z: (seen.append(z), decode(z))[1]
    pipe(**call(name))
    del pipe.vae.decode
    return pipe, seen[0] * pipe.vae.config.scaling_factor


@functools.cache
def heard_of(name):
    pipe, _ = theirs(name)
    return pipe, listen(pipe, **call(name))


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
    ("cogvideox", {"sign": -1}),
    ("dit", {"branches": "negative_first"}),
]


@pytest.mark.parametrize(("name", "wrong"), MISTAKES, ids=[f"{name}-{next(iter(w))}" for name, w in MISTAKES])
def test_a_wrong_row_of_the_table_is_seen(name, wrong):
    pipe, expected = theirs(name)
    family = replace(heard_of(name)[1].family, **wrong)
    assert relative(ours(name, listen(pipe, family=family, **call(name))), expected) > 0.1


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


def double(given):
    floats = {key: v.double() for key, v in given.items() if isinstance(v, torch.Tensor) and v.is_floating_point()}
    return given | floats


@pytest.mark.parametrize("name", ["sd15", "sd21_v", "pixart"])
def test_in_float64_the_latents_are_the_same(name):
    """But for the tables of diffusers, which are float32."""
    pipe = copy.deepcopy(theirs(name)[0]).to(torch.float64)
    table = read_schedule(pipe.scheduler).path.alpha(torch.arange(1, 1001, dtype=torch.float64)) ** 2
    last = torch.tensor(1.0) if pipe.scheduler.config.set_alpha_to_one else table[0]
    pipe.scheduler.alphas_cumprod, pipe.scheduler.final_alpha_cumprod = table, last
    expected = pipe(**double(call(name))).images
    assert expected.dtype == torch.float64
    assert relative(ours(name, listen(pipe, **double(call(name)))), expected) < 1e-13


def with_channels(network, inputs, outputs):
    return randomise(type(network).from_config(network.config, in_channels=inputs, out_channels=outputs), 2)


def edited(name):
    """A pipeline of the parts of a tiny one that begins with an image, and its call."""
    parts = tiny(name.split("-")[0]).components
    image = {"image": torch.rand(2, 3, 16, 8, generator=torch.Generator().manual_seed(0))}
    mask = torch.zeros(2, 1, 16, 8)
    mask[:, :, 4:9] = 1
    if name.startswith("flux"):
        given = {key: value for key, value in call("flux").items() if "negative" not in key and key != "true_cfg_scale"}
        if name == "flux-image":
            return diffusers.FluxImg2ImgPipeline(**parts), given | image | {"strength": 0.6}
        del parts["image_encoder"], parts["feature_extractor"]
        parts["transformer"] = with_channels(parts["transformer"], 48, 16)
        return diffusers.FluxFillPipeline(**parts), given | image | {"mask_image": mask}
    if name == "cogvideox-image":
        parts["transformer"] = with_channels(parts["transformer"], 8, 4)
        video = {"image": torch.rand(2, 3, 16, 32, generator=torch.Generator().manual_seed(0))}
        return diffusers.CogVideoXImageToVideoPipeline(**parts), call("cogvideox") | video
    options = {"requires_safety_checker": False}
    if name == "sd15-image":
        given = {key: value for key, value in call("sd15").items() if key not in ("height", "width")}
        return diffusers.StableDiffusionImg2ImgPipeline(**parts, **options), given | image | {"strength": 0.5}
    parts["unet"] = with_channels(parts["unet"], 9, 4) if name == "sd15-inpainting" else parts["unet"]
    return diffusers.StableDiffusionInpaintPipeline(**parts, **options), call("sd15") | image | {"mask_image": mask}


@pytest.mark.parametrize("name", ["flux-image", "flux-fill", "sd15-image", "sd15-inpainting", "cogvideox-image"])
def test_pipelines_that_edit_an_image(name):
    """They begin midway, or give the network the image beside the state."""
    pipe, given = edited(name)
    pipe.set_progress_bar_config(disable=True)
    expected = next(iter(pipe(**given).values()))
    heard = listen(pipe, **edited(name)[1])
    assert ("appended" in heard.cond) == (name not in ("flux-image", "sd15-image"))
    assert len(heard.timesteps) == {"flux-image": 3, "sd15-image": 2}.get(name, 4)
    assert relative(ours("flux2" if name.startswith("flux") else name, heard), expected) < 2e-5


@pytest.mark.parametrize("kind", ["EDMEulerScheduler", "EulerDiscreteScheduler"])
def test_other_schedulers_of_first_order(kind):
    """Exploding noise with EDM's preconditioning, or at Karras' levels."""
    pipe = tiny("sd15")
    table = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "use_karras_sigmas": True}
    pipe.scheduler = getattr(diffusers, kind)(**({} if kind == "EDMEulerScheduler" else table))
    expected = pipe(**call("sd15")).images
    assert relative(ours("sd15", listen(pipe, **call("sd15"))), expected) < 2e-5


def test_states_that_a_pipeline_changes_by_itself_are_refused():
    pipe, given = edited("sd15-blending")
    with pytest.raises(UserError, match="blends the image into the state after each step"):
        listen(pipe, **given)
    image = torch.rand(2, 3, 32, 64)
    with pytest.raises(UserError, match=r"state is \[2, 64, 8\] and the scheduler's \[2, 8, 1, 4, 8\]"):
        listen(diffusers.LTXImageToVideoPipeline(**tiny("ltx").components), image=image, **call("ltx"))


def test_wrappers_of_a_network_change_nothing():
    """peft and group offloading; times of tokens."""
    pipe = tiny("sd3")
    apply_group_offloading(pipe.transformer, onload_device=torch.device("cpu"), offload_type="leaf_level")
    pipe.transformer = get_peft_model(pipe.transformer, LoraConfig(r=2, target_modules=["to_q"])).eval()
    heard = listen(pipe, **call("sd3"))
    assert denoiser_of(heard).net.spec.kind == "SD3Transformer2DModel"
    assert relative(ours("sd3", heard), theirs("sd3")[1]) < 5e-5
    pipe = diffusers.WanPipeline(**tiny("wan").components, expand_timesteps=True)
    heard = listen(pipe, **call("wan"))
    assert heard.token_times.shape == (16,) and relative(ours("wan", heard), theirs("wan")[1]) < 2e-5


def test_adapters_of_the_network_are_trained():
    pipe = tiny("sd15")
    pipe.unet.requires_grad_(False).add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    heard = listen(pipe, **call("sd15"))
    f = denoiser_of(heard)
    student = GivenNet(f.net).build()  # a copy
    replace(f, net=student)(heard.latents, times_of(heard)[0], heard.cond).eps.square().mean().backward()
    trained = [name for name, weight in student.named_parameters() if weight.grad is not None]
    assert trained and all("lora" in name for name in trained)
    assert all(weight.grad is None for weight in pipe.unet.parameters())
