"""gen.load_diffusers: pictures by prompts, as the pipeline itself and under our solvers and guides."""

from __future__ import annotations

import dataclasses
import functools
import math

import pytest
import torch

import gen
from gen.config.errors import UserError
from gen.distillers.ld_pruner import LDPruner, find_operators
from gen.models.interop.pipelines import families
from gen.models.interop.pipelines.conditions import joined
from gen.models.interop.pipelines.own_sampling import solver_of
from gen.models.interop.pipelines.schedule import times_of
from tests.models.interop.pipelines.test_live import attributes
from tests.pipelines.tiny import ENCODERS, FAMILIES, call, prompted, tiny, with_text_encoder

WORDS = ["a red fox", "the blue bird in snow"]
LOOP = ("generator", "output_type")  # arguments that are sample's own

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # of diffusers' schedulers


def relative(a, b):
    return float((a - b).norm() / b.norm())


def prompted_call(name):
    return {key: value for key, value in prompted(name).items() if key not in LOOP}


@functools.cache
def fox(name="sd15", **changes):
    """A tiny pipeline of prompts, shared by tests that leave it as it is."""
    return gen.load_diffusers(with_text_encoder(name), **prompted_call(name) | changes)


@pytest.mark.parametrize("name", FAMILIES)
def test_by_itself_it_samples_as_the_pipeline_does(name):
    """The same noise through the pipeline's own loop, with its grid, its rule and its guidance."""
    pipe = tiny(name)
    given = {key: value for key, value in call(name).items() if key not in LOOP}
    model = gen.load_diffusers(pipe, **given)
    unit = torch.randn(2, *model.pipeline.shape, generator=torch.Generator().manual_seed(1))
    samples = model.sample(noise=unit)
    assert samples.no_pictures == "" and samples.x.isfinite().all()
    assert samples.x.shape[1] == 3 and samples.x.ndim == (5 if "num_frames" in given else 4)
    if name in ("dit", "flux2"):  # one takes no latents, the other packs them itself
        return
    given |= {"generator": None, "latents": unit.clone(), "output_type": "pt", "return_dict": False}
    expected = pipe(**given)[0] * 2 - 1
    expected = expected.transpose(1, 2) if expected.ndim == 5 else expected
    assert relative(samples.x, expected) < 2e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_classes_of_a_user_are_called_as_they_say(name, monkeypatch):
    """A pipeline's subclass under its own name, and a network whose class the table has not."""
    pipe, given = tiny(name), {key: value for key, value in call(name).items() if key not in LOOP}
    known = gen.load_diffusers(pipe, **given)
    kind, family = type(known.pipeline.denoiser.net.inner).__name__, known.heard.family
    assert gen.load_diffusers(pipe, family=kind, **given).family is family
    pipe.__class__ = type("Mine", (type(pipe),), {})
    monkeypatch.setattr(families, "FAMILIES", {})
    with pytest.raises(UserError, match=r"Mine has no network that is known, .*; known are .* give family="):
        gen.load_diffusers(pipe, **given)
    mine = gen.load_diffusers(pipe, family=dataclasses.asdict(family), **given)
    assert mine.own == known.own and mine.heard.cond.keys() == known.heard.cond.keys()
    assert mine.pipeline.shape == known.pipeline.shape and mine.heard.family == family
    assert all(torch.equal(value, known.heard.cond[key]) for key, value in mine.heard.cond.items())


def test_a_sample_depends_on_its_prompt_seed_and_index_alone():
    model = fox()
    whole = model.sample(WORDS, images_per_prompt=2, batch_size=3)
    assert whole.x.shape == (4, 3, 16, 8) and whole.prompts == (WORDS[0], WORDS[0], WORDS[1], WORDS[1])
    assert relative(model.sample(WORDS, images_per_prompt=2, batch_size=1).x, whole.x) < 1e-5
    alone = model.sample(WORDS[1], images_per_prompt=4)
    assert relative(alone.x[2:], whole.x[2:]) < 1e-5
    assert len(whole.images) == 4 and whole.images[0].size == (8, 16)
    latents = model.sample(WORDS, images_per_prompt=2, decode=False)
    assert latents.x.shape == (4, 4, 8, 4) and "no pictures" in latents.no_pictures


def test_labels_are_those_of_the_call():
    pipe = tiny("dit")
    by_call, model = gen.load_diffusers(pipe, class_labels=[7, 7, 400, 400]), gen.load_diffusers(pipe)
    assert model.pipeline.classes == 1000 and by_call.pipeline.classes == 0
    how = {"steps": 3, "decode": False}
    x = model.sample(labels=[7, 400], images_per_prompt=2, **how).x
    assert torch.equal(x, by_call.sample(**how).x)
    assert torch.equal(x, model.pipeline.sample(4, [7, 7, 400, 400], steps=3).x)
    assert not torch.equal(x, model.pipeline.sample(4, [7, 7, 400, 400], negative=3, steps=3).x)


def test_negatives_are_one_for_all_or_one_for_each():
    model = fox()
    both = model.sample(WORDS, negative=["a dog", "at night"], decode=False).x
    one = model.sample(WORDS, negative="a dog", decode=False).x
    assert torch.equal(both[0], one[0]) and not torch.allclose(both[1], one[1])
    assert not torch.allclose(model.sample(WORDS, decode=False).x, one)
    last = model.sample(["a cat", *WORDS], negative=["a dog", "at night", "a dog"], decode=False, seed=[5, 6, 7]).x
    assert relative(last[2], model.sample(WORDS[1], negative="a dog", decode=False, seed=[7]).x[0]) < 1e-5


@pytest.mark.parametrize("name", ENCODERS)
def test_every_solver_guide_and_size_goes_with_prompts(name):
    model = fox(name)
    how = {"solver": "heun", "steps": 2, "guide": {"name": "apg", "scale": 3.0}, "negative": "a dog"}
    samples = model.sample("a red fox", **how)
    assert samples.nfe == (8 if name == "sd15" else 6)  # Heun's step to clean data is Euler's; two branches
    assert samples.x.isfinite().all()
    sides = {"height": 2 * samples.x.shape[-2]}
    assert model.sample("a red fox", **how, **sides).x.shape[-2] == sides["height"]
    assert type(model.pipe).__name__ in repr(model) and "\n" not in repr(model)


def test_pictures_and_latents_are_edited():
    model = fox()
    samples = model.sample("a red fox")
    again = model.sample("a red fox", image=samples.x, strength=0.5, seed=3)
    assert again.nfe == 4 and relative(again.x, samples.x) < 2
    latents = model.sample("a red fox", decode=False).x
    mask = torch.zeros(1, 8, 4)
    mask[:, :4] = 1
    kept = model.sample("a blue bird", image=latents, mask=mask, decode=False).x
    assert torch.equal(kept[..., 4:, :], latents[..., 4:, :]) and not torch.allclose(kept, latents)
    assert len(model.sample("a red fox", image=samples.images, strength=0.5).x) == 1
    sized = gen.load_diffusers(model.pipe, num_inference_steps=2)
    assert sized.sample("a fox", image=torch.zeros(1, 3, 24, 16), mask=torch.ones(24, 16)).x.shape[-2:] == (24, 16)


@pytest.mark.parametrize("name", ["sd15", "flux", "wan"])
def test_a_mask_of_pixels_is_one_of_latents(name, tmp_path):
    """What is black stays as it is in the latents, packed ones and films too."""
    from PIL import Image

    model = fox(name)
    latents = model.sample("a red fox", decode=False, steps=2).x
    height, width = model._pixels
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, (0, 0, width, height // 2))
    mask.save(tmp_path / "mask.png")
    half = torch.zeros(height, width)
    half[: height // 2] = 1
    how = {"image": latents, "decode": False, "steps": 2, "seed": 3}
    drawn = [model.sample("a blue bird", mask=one, **how).x for one in (mask, tmp_path / "mask.png", half)]
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], drawn[2])
    share = float((drawn[0] == latents).float().mean())
    assert 0.45 <= share <= 0.55


def test_given_times_decide_the_steps_and_foreign_names_are_answered():
    model = fox()
    assert model.sample("a fox", grid=[1000.0, 600.0, 300.0, 0.0], guide="none").nfe == 3
    answers = {"num_inference_steps": "steps", "generator": "seed", "latents": "noise", "output_type": "decode"}
    answers |= {"callback_on_step_end": "callback", "num_images_per_prompt": "images_per_prompt"}
    for theirs, ours in answers.items():
        with pytest.raises(TypeError, match=f"It is {ours} here"):
            model.sample("a fox", **{theirs: 1})
    with pytest.raises(TypeError, match="It is images_per_condition here"):
        model.pipeline.sample(cond="a fox", num_images_per_prompt=2)


def test_what_does_not_work_is_said_in_one_line():
    model, flux = fox(), fox("flux", true_cfg_scale=1.0)
    x, long = torch.zeros(1, 3, 16, 8), gen.load_diffusers(with_text_encoder("sd15"), height=16, width=8)
    assert long.pipe.scheduler.config.steps_offset == 1
    cases = {
        r"height = 500: \w+ takes multiples of \d+, such as": lambda: fox("flux").sample("a", height=501),
        "pipeline made no negative branch": lambda: flux.sample("a fox", guide="cfg"),
        "has no guidance by itself .true_cfg_scale = 1": lambda: flux.sample("a fox", negative="a dog"),
        "height = 18: .* takes multiples of 8, such as 16 or 24": lambda: model.sample("a fox", height=18),
        "height = -8; it must be a positive whole": lambda: model.sample("a fox", height=-8),
        "samples by prompts: give one": lambda: model.sample(),
        r"DiT.* takes labels, no prompts: sample.labels=": lambda: gen.load_diffusers(tiny("dit")).sample("a fox"),
        "DiT.* samples by labels: give one": lambda: gen.load_diffusers(tiny("dit")).sample(),
        "labels = 3 for Stable.*: it takes none": lambda: model.sample("a fox", labels=3),
        "guidance_scale = nan; it must be finite": lambda: gen.load_diffusers(model.pipe, guidance_scale=math.nan),
        "solver: got .*Scheduler.* name its rule, such as": lambda: model.sample("a fox", solver=model.pipe.scheduler),
        "callback returned 'x'; allowed: None, or a tensor": lambda: model.sample("a fox", callback=lambda *_: "x"),
        "2 seeds for samples 0 to 0: give a number": lambda: model.sample("a fox", seed=[1, 2]),
        "0 seeds for samples 0 to 0": lambda: model.sample("a fox", seed=[]),
        "image is torch.uint8 from 0 to 0; allowed: floats in": lambda: model.sample("a fox", image=x.byte() * 0),
        "image is torch.float32 from 200 to 200": lambda: model.sample("a fox", image=x * 0 + 200),
        "samples have height=16, width=8: give height=8": lambda: model.sample("a fox", image=x.mT),
        "no.png cannot be read": lambda: model.sample("a fox", image="no.png"),
        "got ''; allowed: a folder": lambda: gen.load_diffusers(""),
        "steps = 1000: .* begins above its last time": lambda: long.sample(WORDS[0], steps=1000, solver="ddim"),
        "speca decides inside the trunk of a UNet2DCond": lambda: model.sample("a fox", cache="speca"),
        "prompt = 3; it must be a text": lambda: model.sample(3),
        "negative: 3 for 2 prompts": lambda: model.sample(WORDS, negative=["a", "b", "c"]),
        "has no argument 'heigth'. Did you mean 'height'": lambda: gen.load_diffusers(model.pipe, heigth=8),
        "latents is given to sample, as noise": lambda: gen.load_diffusers(model.pipe, latents=1),
        "has no text encoder: give embeddings": lambda: gen.load_diffusers(tiny("sd15")),
        "allowed: a folder, or a diffusers pipeline": lambda: gen.load_diffusers(torch.nn.Linear(2, 2)),
        "family = 'Flux'; .*Allowed: CogVideoX": lambda: gen.load_diffusers(model.pipe, family="Flux"),
        "family: got 3, expected Family or dict": lambda: gen.load_diffusers(model.pipe, family=3),
        "unknown key 'units' of Family. Did you": lambda: gen.load_diffusers(flux.pipe, family={"units": 1}),
        "Family.unit: got 'ms'": lambda: gen.load_diffusers(model.pipe, family={"unit": "ms"}),
        "is no folder": lambda: gen.load_diffusers("no/such/pipeline"),
        "device is the pipeline's own": lambda: gen.load_diffusers(model.pipe, device="cpu"),
        "store keeps conditions of a pipeline from a folder": lambda: gen.load_diffusers(model.pipe, store="x"),
        "samples by prompts: give --prompt": lambda: model.pipeline.sample(2),
        "give height and width to gen": lambda: model.pipeline.resized(32, 32),
    }
    for message, run in cases.items():
        with pytest.raises(UserError, match=message.replace("500", "501")) as error:
            run()
        assert "\n" not in str(error.value)


def test_a_loop_that_ends_for_a_refiner_ends_where_the_pipelines_does():
    """denoising_end, under the pipeline's own scheduler and under one of ours whose steps have several evaluations."""
    pipe, given = tiny("sdxl"), {key: value for key, value in call("sdxl").items() if key not in LOOP}
    own, noise = pipe.scheduler, torch.randn(2, 4, 8, 4, generator=torch.Generator().manual_seed(1))
    for scheduler in (own, gen.as_scheduler("heun", like=own), gen.as_scheduler("exp_ab", like=own)):
        pipe.scheduler = scheduler
        model = gen.load_diffusers(pipe, **given, denoising_end=0.6)
        theirs = pipe(**given, denoising_end=0.6, latents=noise.clone(), output_type="latent").images
        if scheduler is own:  # of Euler's scheduler, which holds x / alpha
            theirs = theirs * model.pipeline.denoiser.path.alpha(times_of(model.heard)[-1]).float()
        ours = model.sample(noise=noise, decode=False).x
        assert relative(ours, theirs) < 2e-5
        assert relative(gen.load_diffusers(pipe, **given).sample(noise=noise, decode=False).x, theirs) > 0.01


def test_a_loop_that_begins_with_an_image_is_the_other_pipelines():
    import diffusers

    parts, image = tiny("sdxl").components, torch.rand(2, 4, 8, 4)
    pipe = diffusers.StableDiffusionXLImg2ImgPipeline(**parts, add_watermarker=False)
    given = {key: value for key, value in call("sdxl").items() if key not in (*LOOP, "height", "width")}
    for how in ({"strength": 0.5}, {"denoising_start": 0.6}, {"strength": 1.0}):
        with pytest.raises(UserError, match=r"begins with an image, not with noise: load .* give image and strength"):
            repr(gen.load_diffusers(pipe, image=image, **how, **given))


def test_two_caches_are_refused():
    from diffusers import FirstBlockCacheConfig

    pipe = with_text_encoder("flux")
    model = gen.load_diffusers(pipe, **{k: v for k, v in prompted("flux").items() if k not in LOOP})
    pipe.transformer.enable_cache(FirstBlockCacheConfig())
    with pytest.raises(UserError, match=r"two caches.*transformer\.disable_cache"):
        model.sample("a fox", cache="fora")


RULES = {  # of schedulers, on a family: the pipeline's latents under them are ours under the solver
    "DDIMScheduler": "sd15",
    "EulerDiscreteScheduler": "sd15",
    "DPMSolverMultistepScheduler": "sd15",
    "UniPCMultistepScheduler": "sd15",
    "PNDMScheduler": "sd15",
    "FlowMatchHeunDiscreteScheduler": "sana",
}


@pytest.mark.parametrize("kind", RULES)
def test_a_scheduler_whose_rule_is_a_solvers_gives_its_latents(kind):
    import diffusers

    pipe = tiny(RULES[kind])
    config = {key: value for key, value in pipe.scheduler.config.items() if key != "set_alpha_to_one"}
    pipe.scheduler = getattr(diffusers, kind).from_config(config, skip_prk_steps=True)
    given = {key: value for key, value in call(RULES[kind]).items() if key not in LOOP} | {"num_inference_steps": 6}
    model = gen.load_diffusers(pipe, **given)
    assert not model.own.differs
    unit = torch.randn(2, *model.pipeline.shape, generator=torch.Generator().manual_seed(1))
    theirs = pipe(**{**given, "latents": unit.clone(), "output_type": "latent", "return_dict": False})[0]
    assert relative(model.sample(noise=unit, decode=False).x, theirs) < 1e-5


def test_the_solver_is_the_schedulers():
    import diffusers

    known = {
        "DDIMScheduler": {"name": "ddim", "clip": True},
        "DPMSolverMultistepScheduler": {"name": "dpmpp", "solver_order": 2, "kind": "midpoint"},
        "UniPCMultistepScheduler": {"name": "unipc", "solver_order": 2, "kind": "bh2"},
        "FlowMatchEulerDiscreteScheduler": {"name": "euler"},
    }
    for kind, spec in known.items():
        found, differs = solver_of(getattr(diffusers, kind)())
        assert found == spec and differs == (("clip_sample",) if "clip" in spec else ())
        assert gen.build("samplers.solvers", spec)
    assert solver_of(diffusers.PNDMScheduler())[1]
    sde = diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", solver_order=3)
    assert solver_of(sde)[0]["name"] == "dpmpp_sde"
    for kind in ("PNDMScheduler", "LMSDiscreteScheduler", "KDPM2DiscreteScheduler", "DEISMultistepScheduler"):
        assert gen.build("samplers.solvers", solver_of(getattr(diffusers, kind)())[0])


@torch.no_grad()
def test_texts_of_unlike_lengths_are_one_batch():
    """Each answers as it does alone."""
    given = {key: value for key, value in call("qwen_image").items() if key not in LOOP}
    plain = {key: value for key, value in given.items() if "mask" not in key}
    short = {key: value[:, :3] if key.endswith("embeds") else value for key, value in plain.items()}
    long, short = (gen.load_diffusers(tiny("qwen_image"), **one) for one in (plain, short))
    f, parts = long.pipeline.denoiser, (long.heard.cond, short.heard.cond)
    x, t = torch.randn(4, *long.pipeline.shape, generator=torch.Generator().manual_seed(0)), torch.tensor(0.5).double()
    both = f(x, t, joined(parts)).x0
    for rows, part in zip((slice(2), slice(2, 4)), parts, strict=True):
        assert relative(f(x[rows], t, part).x0, both[rows]) < 1e-4
    whole = {**joined(parts), "encoder_hidden_states_mask": torch.ones(4, 5, dtype=torch.bool)}
    assert relative(f(x, t, whole).x0[3], both[3]) > 1e-3


def test_prompts_as_data_are_those_of_samples_without():
    model = gen.load_diffusers(with_text_encoder("pixart"), prompts=WORDS, **prompted_call("pixart"))
    samples = model.pipeline.sample(3, steps=2)
    assert samples.x.shape[0] == 3
    cond = model.pipeline.condition(2, start=1)
    assert torch.equal(
        cond["encoder_hidden_states"], model.pipeline.encode_prompts(WORDS[::-1])["encoder_hidden_states"]
    )
    operators, _ = find_operators(model.pipeline, ("blocks.*",))
    pruner = LDPruner(samples=2, sampler={"steps": 2, "solver": "euler"})
    assert operators and all(score > 0 for score in pruner.scores(model.pipeline, operators[:1]).values())
    with pytest.raises(UserError, match=r"prepares a copy"):
        model.pipeline.prepared("auto")


@pytest.mark.parametrize("name", ["pixart", "flux", "wan"])
def test_caches_go_with_prompts(name):
    model = fox(name)
    how = {"steps": 6, "solver": "euler", "decode": False}
    plain = model.sample(WORDS, **how)
    before = attributes(model.pipe)
    assert torch.equal(
        model.sample(WORDS, cache={"name": "fora", "interval": 1, "sites": ["blocks.*"]}, **how).x, plain.x
    )
    cached = model.sample(WORDS, cache={"name": "taylorseer_lite", "interval": 3}, **how)
    assert cached.cache[0].fraction_per_row < 1 and 0 < relative(cached.x, plain.x) < 2

    def fail(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.sample(WORDS, cache="fora", callback=fail, **how)
    assert attributes(model.pipe) == before
