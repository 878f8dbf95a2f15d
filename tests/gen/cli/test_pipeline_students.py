"""Verbs that train beside the network of a folder of diffusers' pipeline: from prompts to adapters that it loads."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import gen
from gen.cli import main
from gen.config import checkpoints
from gen.config.errors import UserError
from gen.data.pairs import Pairs
from gen.diffusion.net import empty_network
from gen.models.pipeline import OPEN
from gen.samplers.interop.diffusers_scheduler import as_scheduler
from tests.pipelines.tiny import prompted, relative, with_text_encoder

# of Euler's scheduler in diffusers, by numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

PROMPTS = "a red fox\na blue bird\nthe dog at night\n"
QUICK = ["--steps", 2, "--batch-size", 2, "--optim.lr", 1e-2, "--lora.rank", 2, "--ema", "[]", "--quiet"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of two pipelines, and the pairs of each."""
    where = tmp_path_factory.mktemp("teachers")
    (where / "prompts.txt").write_text(PROMPTS)
    for name in ("sd15", "sd3"):
        with_text_encoder(name).save_pretrained(where / name)
        words = ["pairs", "--teacher", where / name, *options(where, name), "--out", where / f"{name}-pairs"]
        assert run(*words, "-n", 8, "--steps", 2, "--quiet") == 0
    return where


def run(*words):
    return main([str(word) for word in words])


def options(where, name):
    """What a call of the tiny pipeline needs, and prompts."""
    how = {key: value for key, value in prompted(name).items() if key not in ("output_type", "num_inference_steps")}
    return ["--prompts", where / "prompts.txt", "--call", json.dumps({**how, "num_inference_steps": 2})]


def test_pairs_hold_prompts_and_are_of_them(folders):
    pairs = Pairs(str(folders / "sd3-pairs"), holdout=0.0).open("train")
    assert [pairs.caption(i) for i in (0, 1, 5)] == ["a red fox", "a blue bird", "the dog at night"]
    assert pairs[0].keys() == {"x", "origin"} and len(pairs) == 8


METHODS = [
    ("sd3", "reflow", ["--objective.pairs", 4]),
    ("sd3", "dmd2", ["--objective.critic_steps", 1]),
    ("sd15", "ect", ["--objective.stages", 1]),
    ("sd15", "consistency", ["--objective.grid_steps", "[4, 4]"]),
    ("sd3", "scm", []),
    ("sd15", "rectified_diffusion", ["--objective.pairs", 4]),
]


SLOW = [pytest.param(*given, marks=pytest.mark.slow) if i else given for i, given in enumerate(METHODS)]


@pytest.mark.parametrize(("name", "method", "more"), SLOW, ids=[f"{one}-{two}" for one, two, _ in METHODS])
def test_a_student_is_distilled_sampled_and_loaded_by_the_pipeline(name, method, more, folders, tmp_path, capsys):
    out, teacher = tmp_path / "student", folders / name
    data = [] if "pairs" in str(more) else ["--data", "pairs", "--data.path", folders / f"{name}-pairs"]
    words = ["distill", method, "--teacher", teacher, *options(folders, name), *more, *data, *QUICK, "--out", out]
    assert run(*words) == 0
    assert run(*words) == 0  # it is there
    info = checkpoints.read(out / "final")
    for role in {file.removesuffix(".safetensors") for file in info["files"]} - {"weight"}:
        stored = checkpoints.read_tensors(out / "final", f"{role}.safetensors", info)
        assert stored and all(".lora_" in key for key in stored), role
    assert run("sample", out, "--prompt", "a red fox", "--steps", 1, "--quiet", "--out", tmp_path / "fox.png") == 0
    assert run("export", out, "--to", "lora", "--out", tmp_path / "lora") == 0
    assert "load_lora_weights" in capsys.readouterr().out
    student = gen.load(out)
    noise = torch.randn(1, *student.shape, generator=torch.Generator().manual_seed(0))
    ours = student.sample(cond=["a red fox"], steps=2, solver="euler", grid="linear", guide="none", noise=noise)
    pipe = with_text_encoder(name)
    pipe.load_lora_weights(tmp_path / "lora")
    pipe.scheduler = as_scheduler("euler", like=pipe.scheduler, grid="linear")
    given = {**prompted(name), "guidance_scale": 1.0, "num_inference_steps": 2}
    theirs = next(iter(pipe("a red fox", latents=noise, **given).values()))
    assert relative(ours.x, theirs) < 5e-5


@pytest.mark.slow
def test_a_pipeline_is_tuned_on_captioned_pictures(folders, tmp_path, capsys):
    rows = ["file,caption"]
    for i, caption in enumerate(PROMPTS.splitlines()):
        Image.fromarray(np.full((20, 20, 3), 80 * i, np.uint8)).save(tmp_path / f"{i}.png")
        rows.append(f"{i}.png,{caption}")
    (tmp_path / "photos.csv").write_text("\n".join(rows) + "\n")
    out, table = tmp_path / "tuned", {"name": "table", "path": str(tmp_path / "photos.csv"), "size": 16, "holdout": 0}
    words = ["train", folders / "sd15", "--call.height", 16, "--call.width", 16, "--data", tmp_path / "photos.csv"]
    assert run(*words, "--size", 16, "--data.holdout", 0, *QUICK, "--out", out) == 0
    assert run("sample", out, "--prompt", "a red fox", "--steps", 1, "--quiet", "--out", tmp_path / "fox.png") == 0
    assert run("train", out / "run.json", "--out", out, "--steps", 3, "--quiet") == 0
    assert checkpoints.manifest_of(out)["step"] == 3
    subject = ["--data", "subject", "--data.data", json.dumps(table), "--data.prior", json.dumps(table)]
    alone = ["train", folders / "sd15", *words[2:6], *subject, "--data.caption", "a sks fox", *QUICK]
    assert run(*alone, "--out", tmp_path / "subject") == 0
    capsys.readouterr()
    assert run(*words, "--size", 32, "--data.holdout", 0, *QUICK, "--out", tmp_path / "other") == 2
    assert "in its size" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["distill", "ect", "--teacher", "sd3"], "learns by prompts: give --prompts FILE"),
        (["distill", "reflow", "--teacher", "sd15", "--prompts", "prompts.txt"], "take rectified_diffusion"),
        (["distill", "meanflow", "--teacher", "sd3", "--prompts", "prompts.txt"], "the time to jump to"),
        (["distill", "dparallel", "--teacher", "sd3", "--prompts", "prompts.txt"], "distils text models"),
        (["distill", "ect", "--teacher", "sd3", "--prompts", "prompts.txt", "--dry-run"], "--dry-run counts"),
        (["pairs", "--teacher", "sd3", "--out", "none"], "samples by captions: give prompts"),
        (["pairs", "--teacher", "sd3", "--prompts", "prompts.txt", "--real", "--out", "none"], "has none"),
        (["train", "sd3", "--data", "digits"], "has no captions"),
        (["train", "sd3"], "the run has no data"),
    ],
    ids=lambda given: "-".join(given[:4]) if isinstance(given, list) else None,
)
def test_what_does_not_go_together_is_refused_in_one_line(words, said, folders, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(folders)
    out = [] if "--out" in words else ["--out", tmp_path / "no"]
    assert run(*words, *out, "--call.height", 16, "--call.width", 16) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_pipeline_that_moves_is_heard_anew_by_all_that_share_it(folders, monkeypatch):
    spec = {"name": "pipeline", "path": str(folders / "sd3"), "call": {"height": 16, "width": 16}}
    ours, theirs = gen.build("models", spec), gen.build("models", spec)
    before = ours.module
    assert theirs.module is before
    ours.to("cpu")  # where it is
    assert theirs.module is before
    with monkeypatch.context() as patch:
        patch.setattr(type(ours.prompted.pipe), "device", "meta")
        ours.to("cpu")
    assert ours.module is not before and theirs.module is ours.module and ours.module.inner is before.inner


def test_a_teacher_keeps_its_prompts_beside_another_of_its_folder(folders):
    call = {"height": 16, "width": 16}
    other = gen.build("models", {"name": "pipeline", "path": str(folders / "sd3"), "call": call})
    teacher = gen.load_diffusers(folders / "sd3", prompts=["a fox"], **call)
    assert other.prompted is not teacher and teacher.training_run().model.prompted is teacher
    assert teacher.training_run().model.prompted.prompts == ("a fox",) != other.prompted.prompts


def test_a_network_that_no_one_opened_before_is_built_where_there_are_no_numbers(folders):
    """As gen.load does for a run that trained it whole: what it computes is heard before, on the CPU."""
    OPEN.clear()
    model = gen.build("models", {"name": "pipeline", "path": str(folders / "sd3"), "call": {"height": 16, "width": 16}})
    net = empty_network(model.found(None, "a run"), 10**9)
    own = gen.load_diffusers(folders / "sd3", height=16, width=16).pipe.transformer
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in own.parameters())


def test_a_teacher_in_python_says_what_it_lacks(folders, tmp_path):
    pipe = with_text_encoder("sd3")
    with pytest.raises(UserError, match="was given as an object, and what is trained is found again by its folder"):
        gen.distill("ect", gen.load_diffusers(pipe, prompts=["a fox"], height=16, width=16), tmp_path / "no")
    with pytest.raises(UserError, match=r"its students learn by prompts, gen distill METHOD --teacher"):
        gen.distill("ect", folders / "sd3", tmp_path / "no")
    with pytest.raises(UserError, match=r"allowed: a folder, or what gen\.load_diffusers returns"):
        gen.distill("ect", pipe, tmp_path / "no")
