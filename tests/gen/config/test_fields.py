"""The law of settings: whatever a field is given, it is refused in one line that names it, or what is built works.

Every field of every plug-in in every folder, and of Run, Sampler and Decoding: from Python, from JSON, as text. Those
that hold an object, which no spec builds, have tests of their own (tests/gen/training/test_given.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import warnings

import pytest
import torch
from torch import nn

import gen
from gen.cli.list import FOLDERS
from gen.config.errors import UserError
from gen.config.spec import build, convert, find, names, override, spec_of
from gen.config.values import hints_of
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.noise import Noise
from gen.diffusion.parameterisation import Velocity
from gen.diffusion.path import Flow
from gen.diffusion.sampling import integrate
from gen.diffusion.worlds import Gaussian
from gen.pipeline import Pipeline
from gen.text.decoding import Decoding
from gen.training.averages import Averages
from gen.training.run import Sampler
from tests.gen.tiny import tiny
from tests.over import naming

WRONG = [None, True, "x", -1, 0, math.nan, math.inf, 10**39, 10**5000, [], {}, [None], [2, 3], object(), int, b"x"]

# What has no default, for plug-ins that cannot be built without.
NEEDED = {
    "path": "nowhere", "size": 8, "folder": "nowhere", "file": "nowhere", "of": "digits", "words": ["a", "b"],
    "mask_token": "<mask>", "values": [1.0, 0.5, 0.0], "sites": ["trunk"], "weak": "nowhere",
    "alphas_cumprod": [0.9, 0.5, 0.0], "thresholds": [],
    "data": {"name": "captioned_digits"}, "text": "bytes", "model": {"name": "pipeline", "path": "nowhere"},
    "caption": "a sks dog", "rows": [[1.0, 0.5]],
    "metric": "torchmetrics.image.PeakSignalNoiseRatio",
}  # fmt: skip


def given(owner):
    """Values for the fields without defaults."""
    missing = dataclasses.MISSING
    fields = [f for f in dataclasses.fields(owner) if f.init and f.default is missing and f.default_factory is missing]
    return {f.name: NEEDED[f.name] for f in fields}


def plugins(folder):
    """Its plug-ins, each with the names of its fields."""
    for name in names(folder):
        owner = find(name, folder)
        if dataclasses.is_dataclass(owner) and all(f.metadata.get("saved", True) for f in dataclasses.fields(owner)):
            thing = build(folder, {"name": name, **given(owner)})
            yield from ((thing, f.name) for f in fields_of(thing))


def fields_of(thing):
    return [field for field in dataclasses.fields(thing) if field.init]


OWN = [(thing, field.name) for thing in (tiny(), Sampler(), Decoding()) for field in fields_of(thing)]
FIELDS = {folder: list(plugins(folder)) for folder in FOLDERS} | {"run": OWN}


def outcome(call):
    """What was built, as its spec, or the line that refuses it; any other error is a fault, and so is NaN in a spec."""
    try:
        thing = call()
    except UserError as error:
        assert len(str(error).splitlines()) == 1
        return str(error)
    return json.loads(json.dumps(spec_of(thing, named=False), allow_nan=False))


@pytest.mark.parametrize("folder", FIELDS)
def test_a_wrong_value_is_refused_in_one_line_that_names_its_field_or_works(folder):
    for thing, field in FIELDS[folder]:
        with naming(f"{type(thing).__name__}.{field}"):
            check_values(thing, field)


def check_values(thing, field):
    owner, spec = type(thing), spec_of(thing, named=False)
    takes_text = "str" in str(hints_of(owner)[field]) or field == "weak"
    for value in WRONG:
        python = outcome(lambda value=value: dataclasses.replace(thing, **{field: value}))
        if isinstance(python, str):
            assert field in python or "name" in python or field == "grid", python
        else:  # then it can be saved, and loaded again
            assert outcome(lambda saved=python: convert(saved, owner, "it")) == python
        try:
            text = json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):  # no JSON
            continue
        assert outcome(lambda text=text: convert({**spec, field: json.loads(text)}, owner, "it")) == python
        if not takes_text:
            assert outcome(lambda text=text: override(thing, {field: text})) == python


# What is built works


def use(folder, thing):
    """Use a plug-in for the least that it is for."""
    path, grid = Flow(), torch.tensor([1.0, 0.6, 0.3, 0.0], dtype=torch.float64)
    t, x = grid[1:3], torch.zeros(2, 2, dtype=torch.float64)
    world = Gaussian(path, x[0], x[0] + 1)
    uses = {
        "samplers.solvers": lambda: integrate(world, x, grid, thing, noise=Noise((1, 2))),
        "samplers.grids": lambda: thing.times(path, 3),
        "samplers.guides": lambda: thing(world, grid),
        "samplers.caches": lambda: thing.start(3),
        "samplers.decoding_policies": lambda: thing.init(2, 8),
        "diffusion.path": lambda: thing.mix(x, x, t) + thing.lam(t)[:, None],
        "diffusion.parameterisation": lambda: thing.solve(path, x, x, t),
        "diffusion.times": lambda: thing.at(torch.rand(4), path),
        "diffusion.weighting": lambda: thing.weight(path, Velocity(), t),
        "text.mask_path": lambda: thing.weight(t),
        "training.schedules": lambda: [thing.factor(i, 10) for i in range(10)],
        "training.ema": lambda: average(thing),
        "training.optim": lambda: step(thing),
        "training.outer": lambda: thing.update(x, x, x, lambda mean: mean),
        "models": lambda: meta(thing),
    }
    uses.get(folder, lambda: None)()


def step(optim):
    weight = nn.Parameter(torch.ones(2))
    built = optim.build([{"params": [weight], "scale": 1.0}])
    weight.sum().backward()
    built.step()


def average(profile):
    nets = {"net": nn.Linear(2, 2)}
    averages = Averages([profile], nets)
    averages.follow(nets)
    averages.update(3)


def meta(spec):
    with torch.device("meta"):
        spec.build()


@pytest.mark.parametrize("folder", [pytest.param(f, marks=pytest.mark.slow) if f == "models" else f for f in FOLDERS])
def test_what_is_not_refused_works(folder):
    for thing, field in FIELDS[folder]:
        for value in WRONG:
            with contextlib.suppress(UserError):
                use(folder, dataclasses.replace(thing, **{field: value}))


# The arguments of public functions


@pytest.fixture(scope="module")
def pipeline():
    with torch.random.fork_rng():
        net = tiny().model.build()
    return Pipeline(Denoiser(net, Flow(), Velocity()), (1, 8, 8), 10)


CALLS = {
    "train run": lambda p, v: gen.train(v, "nowhere"),
    "train out": lambda p, v: gen.train(tiny(), v) if not isinstance(v, str) or not v else refuse(),
    "train resume": lambda p, v: gen.train(tiny(data=None), "nowhere", resume=v),
    "train quiet": lambda p, v: gen.train(tiny(data=None), "nowhere", quiet=v),
    "load folder": lambda p, v: gen.load(v),
    "load weights": lambda p, v: gen.load("nowhere", v),
    "load allow": lambda p, v: gen.load("nowhere", allow=v),
    "train allow": lambda p, v: gen.train(tiny(data=None), "nowhere", allow=v),
    "plan": lambda p, v: p.plan(stepz=v),
    "load device": lambda p, v: gen.load("nowhere", device=v),
    "distill method": lambda p, v: gen.distill(v, "nowhere", "out"),
    "distill teacher": lambda p, v: gen.distill("reflow", v, "out"),
    "distill out": lambda p, v: gen.distill("reflow", "nowhere", v),
    "distill changes": lambda p, v: gen.distill("reflow", "nowhere", "out", changes=v),
    "evaluate pipeline": lambda p, v: gen.evaluate(v),
    "evaluate n": lambda p, v: gen.evaluate("nowhere", n=v),
    "evaluate split": lambda p, v: gen.evaluate("nowhere", split=v),
    "evaluate data": lambda p, v: gen.evaluate(p, v, n=10) if v else refuse(),
    "evaluate extractor": lambda p, v: gen.evaluate(p, against="digits", extractor=v, n=10),
    "evaluate seed": lambda p, v: gen.evaluate("nowhere", seed=v),
    "evaluate metrics": lambda p, v: gen.evaluate("nowhere", metrics=v),
    "leaderboard sources": lambda p, v: gen.leaderboard(v),
    "leaderboard out": lambda p, v: gen.leaderboard("nowhere", out=v),
    "leaderboard rank_by": lambda p, v: gen.leaderboard("nowhere", rank_by=v),
    "build folder": lambda p, v: gen.build(v, "heun"),
    "build spec": lambda p, v: gen.build("samplers.solvers", v),
    "names folder": lambda p, v: gen.names(v),
    "sample n": lambda p, v: p.sample(v, steps=1, solver="euler"),
    "sample cond": lambda p, v: p.sample(1, v, steps=1, solver="euler"),
    "sample solver": lambda p, v: p.sample(solver=v, steps=1),
    "sample steps": lambda p, v: p.sample(steps=v, solver="euler"),
    "sample grid": lambda p, v: p.sample(grid=v, steps=1),
    "sample guide": lambda p, v: p.sample(guide=v, steps=1),
    "sample cache": lambda p, v: p.sample(cache=v, steps=1),
    "sample seed": lambda p, v: p.sample(seed=v, steps=1),
    "sample batch_size": lambda p, v: p.sample(batch_size=v, steps=1),
    "sample start": lambda p, v: p.sample(start=v, steps=1),
    "prepared engine": lambda p, v: p.prepared(v),
}


def refuse():
    raise UserError("not tried: it would train")


@pytest.mark.parametrize("call", CALLS)
def test_a_wrong_argument_is_refused_in_one_line_or_works(pipeline, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for value in [*WRONG, "", "a\0b", 1.5, 10**12, object, {"name": 3}, {1: 2}, [[]]]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a leaderboard passes over what is no record
            try:
                CALLS[call](pipeline, value)
            except UserError as error:
                assert len(str(error).splitlines()) == 1
    assert not list(tmp_path.iterdir())
