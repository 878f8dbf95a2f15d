"""Every public function, called with values of wrong types: one line, or it works; never an error of the inside."""

import inspect

import pytest
import torch

import gen
from gen.config.errors import UserError
from gen.data.digits import Digits
from gen.diffusion.path import Flow
from gen.diffusion.worlds import Gaussian
from gen.pipeline import Pipeline
from gen.text.pipeline import TextPipeline
from gen.training.run import Run
from tests.gen.tiny import tiny
from tests.pipelines.tiny import tiny as tiny_pipeline

VALUES = [5, -1.5, None, "x", "", b"x", [], [None], {1: 2}, {"a": 1}, object(), True, torch.ones(2), print, int, "\0"]
TEXT = {"name": "text", "vocab_size": 8, "mask_token_id": 7, "eos_token_ids": [6], "length": 16, "width": 16}


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    """By public name: the function, and arguments with which it ends before any long work, made anew by a call."""
    folder = tmp_path_factory.mktemp("api")
    run = tiny(steps=1, validate_every=0)
    gen.train(run, folder / "run", quiet=True)
    pipeline = gen.load(folder / "run")
    net = gen.build("models", {**TEXT, "depth": 1, "heads": 2}).build()
    world = Gaussian(Flow(), torch.zeros(1, 8, 8), torch.ones(1, 8, 8))
    out = (folder / f"out-{i}" for i in range(10_000))
    measured = {"n": 10, "metrics": ["fid"], "extractor": "pixels", "seconds": 0.01, "timed": 1, "steps": 1}
    record, foreign = gen.evaluate(pipeline, **measured), tiny_pipeline("pixart")
    return {
        "build": (gen.build, lambda: {"folder": "samplers.solvers", "spec": "euler"}),
        "names": (lambda folder: gen.names(folder), lambda: {"folder": "models"}),
        "decode": (gen.decode, lambda: {"predictor": net, "prompts": [[1, 2]], "length": 4}),
        "Gap": (gen.Gap, lambda: {"length": 3}),
        "load": (gen.load, lambda: {"folder": folder / "run"}),
        "leaderboard": (gen.leaderboard, lambda: {"sources": [record], "out": next(out)}),
        "evaluate": (gen.evaluate, lambda: {"samples": pipeline, **measured}),
        "train": (gen.train, lambda: {"run": run, "out": next(out), "quiet": True}),
        "distill": (
            gen.distill,
            lambda: {"method": "shortcut", "teacher": folder / "run", "out": next(out), "quiet": True},
        ),
        "Run": (Run, lambda: {"model": run.model, "data": Digits(), "objective": run.objective}),
        "Pipeline": (Pipeline, lambda: {"denoiser": world, "shape": (1, 8, 8)}),
        "sample": (pipeline.sample, lambda: {"steps": 1}),
        "generate": (TextPipeline(net, None).generate, lambda: {"prompts": [[1]], "length": 4}),
        "load_diffusers": (gen.load_diffusers, lambda: {"folder_or_pipe": foreign}),
        "PromptPipeline": (gen.PromptPipeline, lambda: {"pipe": foreign}),
        "as_scheduler": (gen.as_scheduler, lambda: {"solver": "euler", "like": tiny_pipeline("sd3").scheduler}),
        "accelerate": (gen.accelerate, lambda: {"pipe": tiny_pipeline("pixart")}),
        "edit": (TextPipeline(net, None).edit, lambda: {"text": "1 2 3", "spans": "2"}),
    }


NAMES = [
    pytest.param(name, marks=pytest.mark.slow if name == "evaluate" else ())
    for name in (*gen.__all__, "sample", "generate", "edit")
    if name[0] != "_"
]


@pytest.mark.filterwarnings("ignore")  # what a wrong value that is allowed deserves
@pytest.mark.parametrize("name", NAMES)
def test_wrong_types_are_one_line(calls, name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # a path of a wrong name is a path
    function, arguments = calls[name]
    with pytest.raises((TypeError, UserError), match="no_such_argument"):
        function(no_such_argument=1, **arguments())
    for parameter in inspect.signature(function).parameters:
        for value in VALUES:
            try:
                function(**{**arguments(), parameter: value})
            except UserError as error:
                assert "\n" not in str(error), (parameter, value)
            except Exception as error:
                raise AssertionError(f"{name}: {parameter} = {value!r} ends in {error!r}") from error
