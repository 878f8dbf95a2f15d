"""What a pipeline gives its network is heard whole, and nothing stays attached."""

from __future__ import annotations

import importlib
import io
import logging

import diffusers
import pytest
import torch

from gen.config.errors import UserError
from gen.models.interop.pipelines import listening
from gen.models.interop.pipelines.families import FAMILIES as TABLE
from gen.models.interop.pipelines.listening import encode, listen
from gen.models.interop.pipelines.network import denoiser_of
from gen.models.interop.pipelines.schedule import times_of
from tests.pipelines.tiny import call, prompted, relative, tiny, with_text_encoder

# of Euler's scheduler in diffusers, by numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

PROMPTS, NEGATIVE = ["a red fox", "the dog on grass"], ["snow", "blue cat at night"]


def attached(pipe):
    """All attributes of a pipeline, its networks and its scheduler, by identity."""
    owners = {"pipe": pipe, "scheduler": pipe.scheduler, **{k: v for k, v in pipe.components.items() if v is not None}}
    return {
        (name, key): id(value)
        for name, owner in owners.items()
        for key, value in vars(owner).items()
        if not key.startswith(("_guidance", "_num_timesteps", "_interrupt", "_current", "_joint", "_attention"))
    }


@pytest.mark.parametrize("name", ["sd15", "flux", "wan22"])
def test_nothing_stays_attached(name):
    pipe, given = tiny(name), call(name)
    before = attached(pipe)
    listen(pipe, **given)
    new = {key for key, value in attached(pipe).items() if before.get(key) != value}
    assert not {key for key in new if key[1] in ("forward", "step", "scheduler", "encode_prompt", "transformer")}, new
    with pytest.raises(ValueError, match="has to be in"):
        listen(pipe, **{**given, "callback_on_step_end_tensor_inputs": ["nothing"]})
    again = {key for key, value in attached(pipe).items() if before.get(key) != value}
    assert again == new
    assert not any("forward" in vars(module) for _, module in pipe.components.items() if module is not None)


def encoded(pipe, name):
    """The condition by encode_prompt and the names of its arguments."""
    both = {"num_images_per_prompt": 1, "device": torch.device("cpu")}
    length = {key: v for key, v in prompted(name).items() if key == "max_sequence_length"}
    if name == "flux":
        parts = [pipe.encode_prompt(p, p, **both, **length)[:2] for p in (PROMPTS, NEGATIVE)]
        keys = "encoder_hidden_states", "pooled_projections"
        return {
            f"{null}{key}": v
            for null, part in zip(("", "null."), parts, strict=True)
            for key, v in zip(keys, part, strict=True)
        }
    key = "num_videos_per_prompt" if name == "wan" else "num_images_per_prompt"
    both[key] = both.pop("num_images_per_prompt")
    names = {
        "sd15": ["encoder_hidden_states"],
        "wan": ["encoder_hidden_states"],
        "pixart": ["encoder_hidden_states", "encoder_attention_mask"],
        "sdxl": ["encoder_hidden_states", "added_cond_kwargs.text_embeds"],
        "sd3": ["encoder_hidden_states", "pooled_projections"],
    }[name]
    extra = {"prompt_2": None, "prompt_3": None} if name == "sd3" else {}
    out = pipe.encode_prompt(
        prompt=PROMPTS, negative_prompt=NEGATIVE, do_classifier_free_guidance=True, **both, **length, **extra
    )
    if name == "pixart":
        return dict(zip([*names, *(f"null.{n}" for n in names)], out, strict=True))
    return {f"{null}{n}": out[2 * i + j] for i, n in enumerate(names) for j, null in enumerate(("", "null."))}


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd3", "flux", "pixart", "wan"])
def test_it_is_what_encode_prompt_returns(name):
    pipe = with_text_encoder(name)
    heard = encode(pipe, PROMPTS, NEGATIVE, **prompted(name))
    with torch.no_grad():
        expected = encoded(pipe, name)
    assert expected.keys() <= heard.keys()
    assert all(torch.equal(heard[key], value) for key, value in expected.items())


@pytest.mark.parametrize(
    ("name", "scheduler", "dtype"),
    [
        ("flux", None, torch.bfloat16),
        ("qwen_image", None, torch.bfloat16),
        ("sd3", None, torch.bfloat16),
        ("hunyuan_video", None, torch.bfloat16),
        ("wan", "UniPCMultistepScheduler", torch.float32),
        ("sana", "DPMSolverMultistepScheduler", torch.float32),
        ("lumina2", None, torch.float32),
    ],
)
def test_times_are_rounded_as_theirs(name, scheduler, dtype):
    """The network gets the very times that the pipeline gives it."""
    pipe = tiny(name).to(dtype)
    if scheduler:
        flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
        pipe.scheduler = getattr(diffusers, scheduler)(**flow)
    given = {k: v.to(dtype) if isinstance(v, torch.Tensor) and v.is_floating_point() else v
             for k, v in call(name).items()}  # fmt: skip
    seen = []
    with torch.no_grad():
        handle = pipe.transformer.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["timestep"]), with_kwargs=True
        )
        pipe(**given)
        theirs, seen = [t.double()[:1] for t in seen], []
        heard = listen(pipe, **given)
        f = denoiser_of(heard)
        for t in times_of(heard)[:-1]:
            f(heard.latents, t, heard.cond)
        handle.remove()
    theirs = theirs[:: len(theirs) // len(heard.timesteps)]
    assert torch.allclose(torch.cat([t.double()[:1] for t in seen]), torch.cat(theirs), rtol=1e-6, atol=1e-7)
    exact = denoiser_of(heard, time="exact").net
    assert torch.allclose(exact.timestep(torch.tensor([0.123456])), torch.tensor([123.456]))


def test_an_unknown_network_is_one_line():
    class Mine(diffusers.UNet2DConditionModel):
        """A network of one's own is of its base's family."""

    class Other(torch.nn.Module):
        """A network of no family that is called as a UNet."""

        forward = diffusers.UNet2DConditionModel.forward

    pipe, given = tiny("sd15"), call("sd15")
    pipe.unet.__class__ = Mine
    heard = listen(pipe, **given)
    assert set(heard.cond) == {"encoder_hidden_states", "null.encoder_hidden_states"}
    unet = pipe.unet
    pipe.unet = Other()
    pipe.unet.config, pipe.unet.dtype, pipe.unet.device = unet.config, unet.dtype, unet.device
    with pytest.raises(UserError, match=r"unet Other.*; known are UNet2DConditionModel, .*family=Family"):
        listen(pipe, **given)
    again = listen(pipe, family=TABLE["UNet2DConditionModel"], **given)
    assert all(torch.equal(again.cond[key], value) for key, value in heard.cond.items())
    with pytest.raises(UserError, match="is no pipeline"):
        listen(pipe.unet)
    with pytest.raises(UserError, match="time = 'other'"):
        denoiser_of(heard, time="other")


def test_texts_of_unequal_length_are_padded_where_there_is_a_mask():
    pipe, given = tiny("qwen_image"), call("qwen_image")
    short = given["negative_prompt_embeds"][:, :3]
    del given["prompt_embeds_mask"], given["negative_prompt_embeds_mask"]
    heard = listen(pipe, **{**given, "negative_prompt_embeds": short})
    assert heard.cond["null.encoder_hidden_states"].shape == heard.cond["encoder_hidden_states"].shape
    assert heard.cond["null.encoder_hidden_states_mask"].sum(1).tolist() == [3, 3]
    f = denoiser_of(heard)
    with torch.no_grad():
        t = times_of(heard)[0]
        padded = f(heard.latents, t, f.null(heard.cond)).eps
        alone = listen(pipe, **{**given, "prompt_embeds": short, "negative_prompt_embeds": short})
        assert alone.cond.keys() == heard.cond.keys()
        assert relative(padded, f(heard.latents, t, alone.cond).eps) < 1e-5
    pipe, given = tiny("wan"), call("wan")
    with pytest.raises(UserError, match="5 and 3 tokens"):
        listen(pipe, **{**given, "negative_prompt_embeds": given["negative_prompt_embeds"][:, :3]})


@torch.no_grad()
def test_each_row_of_sdxl_has_its_own_sizes():
    """In the pipeline's batch they alternate, negative and positive, beside embeddings in blocks."""
    pipe, given = tiny("sdxl"), call("sdxl")
    given |= {
        "negative_original_size": (4, 4),
        "negative_target_size": (16, 8),
        "negative_crops_coords_top_left": (1, 2),
    }
    heard = listen(pipe, **given)
    f, t = denoiser_of(heard), times_of(heard)[0]
    sizes = "added_cond_kwargs.time_ids"
    assert heard.cond[sizes].tolist() == [[16, 8, 0, 0, 16, 8]] * 2
    assert heard.cond[f"null.{sizes}"].tolist() == [[4, 4, 1, 2, 16, 8]] * 2
    first = {key: v[:1] if isinstance(v, torch.Tensor) else v for key, v in given.items()}
    first["generator"] = call("sdxl")["generator"][:1]
    alone = listen(pipe, **first)
    assert all(torch.equal(value, heard.cond[key][:1]) for key, value in alone.cond.items())
    null = f.null(heard.cond)
    assert relative(f(heard.latents, t, null).eps[:1], f(alone.latents, t, f.null(alone.cond)).eps) < 1e-5


def test_what_two_branches_do_not_describe_is_one_line():
    parts = {**tiny("sd15").components, "image_encoder": None}
    given = {key: value for key, value in call("sd15").items() if key not in ("height", "width")}
    image = torch.rand(2, 3, 16, 8)
    unet = diffusers.UNet2DConditionModel.from_config(parts["unet"].config, in_channels=8, out_channels=4)
    pipe = diffusers.StableDiffusionInstructPix2PixPipeline(**{**parts, "unet": unet}, requires_safety_checker=False)
    with pytest.raises(UserError, match="6 rows for 2 samples; known are one or two branches"):
        listen(pipe, image=image, **given)


def test_a_message_of_a_pipeline_is_said_once(monkeypatch):
    """PixArt says for every prompt that it would clean captions if it had ftfy."""
    module = importlib.import_module("diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha")
    monkeypatch.setattr(module, "is_ftfy_available", lambda: False)
    monkeypatch.setattr(module, "is_bs4_available", lambda: True)
    monkeypatch.setattr(listening, "WARNED", set())
    said, logger = io.StringIO(), logging.getLogger("diffusers")
    handler = logging.StreamHandler(said)
    logger.addHandler(handler)
    try:
        pipe, given = with_text_encoder("pixart"), {**prompted("pixart"), "clean_caption": True}
        for prompt in ("a red fox", "a bird", "a dog"):
            encode(pipe, prompt, "at night", **given)
        assert said.getvalue().count("requires the ftfy library") == 1 and not handler.filters
        pipe(prompt="a red fox", **given)  # by itself it says so as ever
        assert said.getvalue().count("requires the ftfy library") > 1
    finally:
        logger.removeHandler(handler)
