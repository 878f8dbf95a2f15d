"""The names that docs/coming-from.md compares: ours are built, those of diffusers are looked up and compared."""

import ast
import inspect
import re
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers.training_utils import EMAModel

import gen
from gen.config.errors import UserError
from gen.config.sources import other_names
from gen.config.spec import build, names
from gen.diffusion.path import DDPM, Flow
from gen.training.run import Run, Sampler

PAGE = (Path(__file__).resolve().parents[2] / "docs/coming-from.md").read_text(encoding="utf-8")
FOLDERS = {
    "solver": "samplers.solvers",
    "grid": "samplers.grids",
    "guide": "samplers.guides",
    "path": "diffusion.path",
    "parameterisation": "diffusion.parameterisation",
    "times": "diffusion.times",
    "weighting": "diffusion.weighting",
    "schedule": "training.schedules",
    "optim": "training.optim",
    "model": "models",
    "data": "data",
    "method": "distillers",
}


def rows(title, page=PAGE):
    """Return the cells of a section's table."""
    section = re.search(rf"^## {title}.*?(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")][1:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def spans(cell):
    return re.findall(r"`([^`]+)`", cell)


@pytest.mark.parametrize("title", ["diffusers", "k-diffusion", "LightningDiT", "FastGen"])
def test_our_names_are_built(title):
    checked = 0
    for _, ours, *_ in rows(title):
        for span in spans(ours):
            key, _, value = span.partition("=")
            if key == "ema":
                assert [build("training.ema", spec) for spec in ast.literal_eval(value)]
            elif key in FOLDERS and value:
                assert build(FOLDERS[key], ast.literal_eval(value))
            elif re.fullmatch(r"[a-z_]+", span) and span not in ("callback", "sample"):
                assert span in Run.__dataclass_fields__ or span in Sampler.__dataclass_fields__, span
            checked += 1
    assert checked >= 10


def test_the_names_of_the_page_on_pipelines_are_there():
    """What is given to `sample` is built, and its other words are arguments of the two calls."""
    page = (Path(__file__).resolve().parents[2] / "docs/coming-from-diffusers.md").read_text(encoding="utf-8")
    known = {*inspect.signature(gen.PromptPipeline.sample).parameters, "engine", *names("models.engines")}
    checked = 0
    for theirs, ours, _ in rows("Their options", page):
        for span in spans(ours):
            key, _, value = span.partition("=")
            folder = {"cache": "samplers.caches"}.get(key, FOLDERS.get(key))
            if folder and value and value[0] in '"{':
                checked += build(folder, ast.literal_eval(value)) is not None
            elif re.fullmatch(r"[a-z_]+", key):
                assert key in known or hasattr(gen.Pipeline, key) or key == "samples", span
        for kind in re.findall(r"\b([A-Z]\w+(?:Scheduler|Config|Pipeline))\b", theirs):
            assert hasattr(diffusers, kind) or kind == "TaylorSeerCalibratorConfig", kind
    assert checked >= 8


def test_the_names_of_diffusers_are_there():
    settings = {"num_inference_steps", "guidance_scale", "guidance_rescale", "timesteps", "sigmas"}  # of calls
    for pipeline in ("CogVideoX", "Lumina2", "QwenImage", "StableDiffusion3", "ZImage"):
        settings |= set(inspect.signature(getattr(diffusers, f"{pipeline}Pipeline").__call__).parameters)
    kinds = [name for theirs, *_ in rows("diffusers") for name in spans(theirs) if name.endswith("Scheduler")]
    assert len(kinds) >= 10
    for kind in kinds:
        settings |= set(inspect.signature(getattr(diffusers, kind).__init__).parameters)
    for theirs, _, note in rows("diffusers"):
        for span in spans(theirs):
            key = span.partition("=")[0]
            assert key in settings or hasattr(diffusers, key.split(".")[0]) or key == EMAModel.__name__, span
        for key in re.findall(r"`([a-z_]+)(?:=[^`]*)?` (?:is|are) ", note):
            assert key in settings | {"eta"}, note
    from diffusers import guiders

    assert guiders.AdaptiveProjectedGuidance and guiders.ClassifierFreeZeroStarGuidance


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_timesteps_are_theirs(spacing):
    path, theirs = DDPM(), diffusers.DDIMScheduler(timestep_spacing=spacing)
    theirs.set_timesteps(10)
    times = build("samplers.grids", {"name": "timesteps", "spacing": spacing}).times(path, 10)
    assert path.t_to_network(times[:-1]).tolist() == pytest.approx(theirs.timesteps.tolist())
    table = theirs.alphas_cumprod[theirs.timesteps].double().sqrt()
    torch.testing.assert_close(path.alpha(times[:-1]), table, rtol=1e-5, atol=1e-6)


def test_the_shift_of_flow_models_is_theirs():
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs.set_timesteps(sigmas=np.linspace(1, 1 / 10, 10).tolist())
    ours = build("samplers.grids", {"name": "shift", "shift": 3.0}).times(Flow(), 10)
    torch.testing.assert_close(ours, theirs.sigmas.double(), rtol=1e-6, atol=1e-7)


def test_a_plain_loss_of_f_is_edm_s_weighting():
    path, t = build("diffusion.path", "edm"), torch.tensor([0.1, 1.0, 20.0], dtype=torch.float64)
    f = build("diffusion.parameterisation", "edm_precond")
    weight = build("diffusion.weighting", "edm").weight(path, f, t)
    torch.testing.assert_close(weight, torch.ones_like(t))


@pytest.mark.parametrize(
    "folder", ["samplers.solvers", "samplers.guides", "samplers.grids", "diffusion.parameterisation"]
)
def test_a_mistyped_name_of_theirs_names_ours_as_the_page_does(folder):
    page = {}
    for title in ("diffusers", "k-diffusion"):
        for theirs, ours, _ in rows(title):
            keys = [key for key, value in FOLDERS.items() if value == folder and f"`{key}=" in ours]
            found = [match[1] for key in keys if (match := re.search(rf'`{key}=(?:{{"name": )?"(\w+)"', ours))]
            words = [re.sub(r"\(.*|\w+=", "", span).strip('"') for span in spans(theirs)]
            page |= {word: name for word in words for name in found}
    for theirs, ours in other_names(folder).items():
        assert ours in names(folder) and page.get(theirs, ours) == ours
        with pytest.raises(UserError, match=f"unknown name '{theirs}' in {folder}. It is '{ours}' here"):
            build(folder, theirs)
    schedulers = {word for word in page if word.endswith("Scheduler")}
    assert folder != "samplers.solvers" or schedulers <= other_names(folder).keys()


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of diffusers beside NumPy 2
def test_their_default_spacings_are_as_the_page_says():
    said = {}
    for theirs, ours, _ in rows("diffusers"):
        if "default" in theirs:
            kinds = [span for span in spans(theirs) if span.endswith("Scheduler")]
            said |= dict.fromkeys(kinds, "leading" if "leading" in ours else "linspace")
    assert len(said) == 8
    for kind, spacing in said.items():
        signature = inspect.signature(getattr(diffusers, kind).__init__)
        assert signature.parameters["timestep_spacing"].default == spacing
    for kind in ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"):
        theirs = getattr(diffusers, kind)()
        theirs.set_timesteps(10)  # linspace of one step more, without the last
        assert theirs.timesteps.tolist() == [round(999 * (10 - i) / 10) for i in range(10)]
        trailing = getattr(diffusers, kind)(timestep_spacing="trailing")
        trailing.set_timesteps(10)
        times = build("samplers.grids", {"name": "timesteps", "spacing": "trailing"}).times(DDPM(), 10)
        assert DDPM().t_to_network(times[:-1]).tolist() == trailing.timesteps.tolist()
