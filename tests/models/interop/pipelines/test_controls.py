"""Pictures beside the prompt: ControlNets and IP-adapters give the pipeline's own latents."""

from __future__ import annotations

import copy

import diffusers
import pytest
import torch

import gen
from gen.config.errors import UserError
from gen.diffusion.foreign_schedule import read_schedule
from gen.diffusion.sampling import integrate
from gen.models.interop.pipelines.listening import listen
from gen.models.interop.pipelines.network import denoiser_of
from gen.models.interop.pipelines.schedule import times_of
from gen.samplers.guides.cfg import CFG
from gen.samplers.solvers.ddim import DDIM
from tests.pipelines.tiny import WIDTH, call, prompted, randomise, relative, tiny, with_text_encoder

# of Euler's scheduler in diffusers, by numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

CLASSES = {
    "sd15": diffusers.StableDiffusionControlNetPipeline,
    "sdxl": diffusers.StableDiffusionXLControlNetPipeline,
    "sd3": diffusers.StableDiffusion3ControlNetPipeline,
    "flux": diffusers.FluxControlNetPipeline,
}


def picture(seed=0, rows=2):
    return torch.rand(rows, 3, 16, 8, generator=torch.Generator().manual_seed(seed))


def control_of(name, parts, seed=3):
    with torch.random.fork_rng(devices=[]):
        if name == "sd3":
            how = {"num_layers": 1, "num_extra_conditioning_channels": 0}
            net = diffusers.SD3ControlNetModel.from_transformer(parts["transformer"], **how)
        elif name == "flux":
            how = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2}
            net = diffusers.FluxControlNetModel.from_transformer(parts["transformer"], **how)
        else:
            net = diffusers.ControlNetModel.from_unet(parts["unet"], conditioning_embedding_out_channels=(4, 8))
    return randomise(net, seed)


def controlled(name, pipe=None, several=False):
    """A pipeline with a ControlNet, or with several."""
    parts = dict((pipe or tiny(name)).components)
    net = control_of(name, parts)
    net = diffusers.MultiControlNetModel([net, control_of(name, parts, 4)]) if several else net
    options = {"requires_safety_checker": False} if name == "sd15" else {}
    pipe = CLASSES[name](**parts, controlnet=net, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def given(name, several=False, **changes):
    image = [picture(), picture(1)] if several else picture()
    scale = [0.7, 0.4] if several else 0.7
    key = "image" if name.startswith("sd1") or name == "sdxl" else "control_image"
    return {**call(name), key: image, "controlnet_conditioning_scale": scale, **changes}


@torch.no_grad()
def both(pipe, arguments):
    """The pipeline's latents, and ours. SD3's encodes its picture by draws that no generator decides."""
    latents = []
    for run in (pipe, lambda **call: listen(pipe, **call)):
        torch.manual_seed(0)
        latents.append(run(**arguments()))
    heard = latents[1]
    f, times = denoiser_of(heard), times_of(heard)
    ours = integrate(CFG(3.0)(f, times), heard.latents, times, DDIM(), cond=heard.cond)
    return next(iter(latents[0].values())), ours, heard


@pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", [*CLASSES, "two"])
def test_a_controlnet_gives_the_pipelines_latents(name):
    """To the end of the loop, or for a part of it."""
    several, name = name == "two", name.replace("two", "sd15")
    pipe = controlled(name, several=several)
    none = {"controlnet_conditioning_scale": [0.0, 0.0] if several else 0.0}
    plain, _, _ = both(pipe, lambda: given(name, several, **none))
    for end in (1.0, 0.5):
        theirs, ours, heard = both(pipe, lambda end=end: given(name, several, control_guidance_end=end))
        assert relative(ours, theirs) < 2e-6 and any(key.startswith("control.") for key in heard.cond)
        assert relative(plain, theirs) > 0.1


def test_in_float64_the_latents_are_the_same():
    pipe = controlled("sd15").to(torch.float64)
    table = read_schedule(pipe.scheduler).path.alpha(torch.arange(1, 1001, dtype=torch.float64)) ** 2
    pipe.scheduler.alphas_cumprod, pipe.scheduler.final_alpha_cumprod = table, torch.tensor(1.0)

    def arguments():
        return {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in given("sd15").items()}

    theirs, ours, _ = both(pipe, arguments)
    assert theirs.dtype == torch.float64 and relative(ours, theirs) < 1e-13


@torch.no_grad()
def test_rows_of_a_batch_and_copies_have_their_own_control():
    pipe = controlled("sd15")
    heard = listen(pipe, **given("sd15", control_guidance_end=0.5))
    f = denoiser_of(heard)
    x, steps = heard.latents, torch.tensor([999.0, 249.0])  # with the ControlNet, and without
    whole = f.net(x, steps, heard.cond)
    for i in range(2):
        row = {key: value[i : i + 1] for key, value in heard.cond.items()}
        assert relative(f.net(x[i : i + 1], steps[i : i + 1], row)[0], whole[i]) < 1e-5
    assert torch.equal(copy.deepcopy(f.net)(x, steps, heard.cond), whole)
    assert {name.partition(".")[0] for name, _ in f.net.named_parameters()} == {"inner"}
    other = {**heard.cond, "control.controlnet_cond": heard.cond["control.controlnet_cond"].flip(0)}
    assert relative(f.net(x, steps, other)[0], whole[0]) > 1e-3 and torch.equal(f.net(x, steps, other)[1], whole[1])


@pytest.mark.parametrize("name", ["sd15", "sd3"])
def test_prompts_with_a_control_picture(name, tmp_path):
    """By a picture, or by its file; the same again, though the pipeline of SD3 draws where it encodes the picture."""
    from PIL import Image

    pipe, key = controlled(name, with_text_encoder(name)), "image" if name == "sd15" else "control_image"
    stripes = (torch.arange(16)[:, None] % 4 * 80).expand(16, 8).byte().numpy()
    image = Image.fromarray(stripes).convert("RGB")
    image.save(tmp_path / "stripes.png")
    how = {k: v for k, v in prompted(name).items() if k not in ("output_type", "height", "width")}
    pictures = (image, tmp_path / "stripes.png", image.rotate(180))
    models = [gen.load_diffusers(pipe, **how, height=16, width=8, **{key: one}) for one in pictures]
    x = [model.sample(["a red fox", "a bird"], steps=2, decode=False).x for model in models]
    assert torch.equal(x[0], x[1]) and relative(x[2], x[0]) > 1e-4
    assert models[0].sample("a fox", steps=2, solver="unipc", cache="fora").x.shape == (1, 3, 16, 8)


def test_stored_conditions_are_those_of_the_pictures_content(tmp_path):
    from PIL import Image

    controlled("sd15", with_text_encoder("sd15")).save_pretrained(tmp_path / "pipe")
    how = {k: v for k, v in prompted("sd15").items() if k not in ("output_type", "height", "width")}
    conds = []
    for grey in (0, 200):
        Image.new("RGB", (8, 16), (grey,) * 3).save(tmp_path / "picture.png")
        size = {"height": 16, "width": 8, "image": str(tmp_path / "picture.png")}
        model = gen.load_diffusers(tmp_path / "pipe", store=tmp_path / "store", **how, **size)
        conds.append(model.encode(["a red fox"])["control.controlnet_cond"])
    assert not torch.equal(*conds) and len(list((tmp_path / "store").glob("*"))) == 2


def test_ip_adapters_are_heard():
    pipe, draw = tiny("sd15"), torch.Generator().manual_seed(5)
    sizes = {"proj.weight": (4 * WIDTH, 6), "proj.bias": (4 * WIDTH,), "norm.weight": (WIDTH,), "norm.bias": (WIDTH,)}
    processors = [name for name in pipe.unet.attn_processors if name.endswith("attn2.processor")]
    inner = [pipe.unet.get_submodule(name.removesuffix(".processor")).inner_dim for name in processors]
    layers = {f"{2 * i + 1}.to_{k}_ip.weight": (width, WIDTH) for i, width in enumerate(inner) for k in "kv"}
    weights = {
        part: {key: torch.randn(size, generator=draw) for key, size in some.items()}
        for part, some in (("image_proj", sizes), ("ip_adapter", layers))
    }
    pipe.unet._load_ip_adapter_weights([weights], low_cpu_mem_usage=False)
    embeds = [torch.randn(2, 1, 6, generator=draw)]  # without a picture, and of one

    def arguments():
        return {**call("sd15"), "ip_adapter_image_embeds": [one.clone() for one in embeds]}

    theirs, ours, heard = both(pipe, arguments)
    assert relative(ours, theirs) < 2e-6 and "added_cond_kwargs.image_embeds.0" in heard.cond
    embeds[0] = embeds[0].flip(1, 2)
    assert relative(both(pipe, arguments)[0], theirs) > 1e-3
    embeds[0] = embeds[0].repeat(2, 1, 1)
    with pytest.raises(UserError, match=r"image_embeds.0 of an IP-adapter has 8 rows for a batch of 4: give pictures"):
        listen(pipe, **arguments())


def test_ip_adapters_of_flux_are_heard():
    """The transformer changes the arguments that it is given: they are new in each evaluation."""
    pipe, draw = tiny("flux"), torch.Generator().manual_seed(5)
    sizes = {"proj.weight": (4 * WIDTH, 6), "proj.bias": (4 * WIDTH,), "norm.weight": (WIDTH,), "norm.bias": (WIDTH,)}
    double, width = range(len(pipe.transformer.transformer_blocks)), pipe.transformer.inner_dim
    layers = {f"{i}.to_{k}_ip.weight": (width, WIDTH) for i in double for k in "kv"}
    layers |= {f"{i}.to_{k}_ip.bias": (width,) for i in double for k in "kv"}
    weights = {
        part: {key: torch.randn(size, generator=draw) for key, size in some.items()}
        for part, some in (("image_proj", sizes), ("ip_adapter", layers))
    }
    pipe.transformer._load_ip_adapter_weights([weights], low_cpu_mem_usage=False)
    embeds = torch.randn(2, 1, 1, 6, generator=draw)

    def arguments():
        image, negative = ([one.clone()] for one in embeds)
        return {**call("flux"), "ip_adapter_image_embeds": image, "negative_ip_adapter_image_embeds": negative}

    theirs, ours, heard = both(pipe, arguments)
    assert relative(ours, theirs) < 2e-6
    assert "null.joint_attention_kwargs.ip_adapter_image_embeds.0" in heard.cond
    embeds = embeds.flip(0)
    assert relative(both(pipe, arguments)[0], theirs) > 1e-3


@pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", CLASSES)
def test_caches_leave_a_controlled_pipeline_as_it_is(name):
    """To the bit at interval 1, in our loop and in the pipeline's; the rest is computed more rarely."""
    pipe, dropped = controlled(name), ("generator", "output_type", "num_inference_steps")
    model = gen.load_diffusers(pipe, **{key: value for key, value in given(name).items() if key not in dropped})
    plain = model.sample(steps=4, decode=False).x
    for interval in (1, 2):
        samples = model.sample(steps=4, decode=False, cache={"name": "taylorseer_lite", "interval": interval})
        assert torch.equal(samples.x, plain) == (interval == 1)
        assert (samples.cache[0].fraction_per_row < 1) == (interval == 2)
    torch.manual_seed(0)
    theirs = next(iter(pipe(**given(name)).values()))
    with gen.accelerate(pipe, "taylorseer_lite", interval=1):
        torch.manual_seed(0)
        assert torch.equal(next(iter(pipe(**given(name)).values())), theirs)


def test_flux_control_is_tokens_beside_the_state():
    parts = tiny("flux").components
    parts = {key: value for key, value in parts.items() if key not in ("image_encoder", "feature_extractor")}
    wide = type(parts["transformer"]).from_config(parts["transformer"].config, in_channels=32, out_channels=16)
    pipe = diffusers.FluxControlPipeline(**{**parts, "transformer": randomise(wide, 2)})
    pipe.set_progress_bar_config(disable=True)

    def arguments():
        dropped = ("true_cfg_scale", "negative_prompt_embeds", "negative_pooled_prompt_embeds")
        return {key: value for key, value in call("flux").items() if key not in dropped} | {"control_image": picture()}

    theirs = pipe(**arguments()).images
    heard = listen(pipe, **arguments())
    f, times = denoiser_of(heard), times_of(heard)
    with torch.no_grad():
        ours = integrate(f, heard.latents, times, DDIM(), cond=heard.cond)
    assert relative(ours, theirs) < 2e-6 and "appended" in heard.cond


def test_what_is_not_followed_is_said_in_one_line():
    pipe = controlled("sd15")
    other = controlled("sd15")
    other.register_modules(controlnet=other.vae)
    cases = [
        (pipe, {"guess_mode": True}, "guess_mode leaves the ControlNet out of the branch"),
        (pipe, {"control_guidance_start": 0.2}, "used from the first step on here"),
        (other, {}, "evaluates a AutoencoderKL as its controlnet, which is not known; known are ControlNetModel"),
    ]
    for one, changes, message in cases:
        with pytest.raises(UserError, match=message) as error:
            listen(one, **given("sd15", **changes))
        assert "\n" not in str(error.value)
