"""What a user's own solver, grid, guide, cache and denoiser must have, and that every verb takes them."""

import json

import pytest
import torch

import gen
from gen.cli import main
from gen.config.errors import UserError
from gen.config.spec import build, spec_of
from gen.diffusion.contracts import Cache, Guide, Solver
from gen.diffusion.path import VP
from gen.pipeline import Pipeline
from gen.training.run import Sampler
from tests.contracts.my_denoiser import MyDenoiser
from tests.gen.tiny import tiny

MINE = "tests.contracts."
PARTS = {
    "solver": MINE + "my_solver:MySolver",
    "grid": {"name": MINE + "my_grid:MyGrid", "power": 1.2},
    "guide": {"name": MINE + "my_guide:MyGuide", "scale": 2.0},
    "cache": {"name": "custom", "policy": {"name": MINE + "my_cache_policy:MyCachePolicy"}, "sites": ["trunk"]},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run whose default sampler is all the user's."""
    out = tmp_path_factory.mktemp("samplers") / "run"
    return gen.train(tiny(steps=2, sampler=Sampler(steps=6, **PARTS)), out, quiet=True).folder


def test_a_pipeline_samples_with_them_and_its_run_remembers_them(folder):
    pipeline = gen.load(folder, allow=("tests",))
    samples = pipeline.sample(4, seed=1)
    assert samples.x.isfinite().all()
    assert samples.nfe == 2 * 2 * 6  # two stages, two predictions
    (report,) = samples.cache
    assert report.evaluations == 24 and 0 < report.fraction < 1 and report.hits > 0
    assert torch.equal(gen.load(folder, allow=("tests",)).sample(4, seed=1, steps=6, **PARTS).x, samples.x)
    parts = {name: getattr(pipeline.sampler, name) for name in PARTS}
    for name, part in parts.items():
        assert build(f"samplers.{name}s", json.loads(json.dumps(spec_of(part)))) == part
    assert torch.equal(pipeline.sample(4, seed=1, **parts).x, samples.x)  # objects are specs' equals


def test_they_are_evaluated(folder):
    options = {"n": 20, "batch_size": 20, "seconds": 0.01, "timed": 2, "metrics": ["kid"]}
    record = gen.evaluate(gen.load(folder, allow=("tests",)), **options)
    assert record.metrics and record.nfe == 24
    assert record.sampler["solver"]["name"] == PARTS["solver"] and record.cache.fraction < 1


def test_the_command_line_takes_them(folder, tmp_path, capsys):
    words = [w for name, part in PARTS.items() for w in (f"--{name}", part if name == "solver" else json.dumps(part))]
    assert (
        main(
            [
                "sample",
                str(folder),
                "--allow",
                "tests",
                "-n",
                "2",
                "--steps",
                "6",
                *words,
                "--out",
                str(tmp_path / "a.png"),
            ]
        )
        == 0
    )
    assert "24 evaluations each" in capsys.readouterr().out
    search = ["search", str(folder), "-n", "2", "--steps", "3", "--budget", "5", "--pool", "4", *words[:6]]
    assert main([*search, "--allow", "tests", "--out", str(tmp_path / "grid.json")]) == 0
    assert json.loads((tmp_path / "grid.json").read_text())["solver"]["name"] == PARTS["solver"]
    assert (
        main(
            [
                "sample",
                str(folder),
                "--allow",
                "tests",
                "--solver",
                MINE + "my_solver:Mine",
                "--out",
                str(tmp_path / "b.png"),
            ]
        )
        == 2
    )
    assert "cannot find 'tests.contracts.my_solver:Mine'" in capsys.readouterr().err


def test_a_denoiser_needs_no_network():
    pipeline = Pipeline(MyDenoiser(VP()), (1, 2, 2))
    torch.testing.assert_close(pipeline.sample(3, solver=PARTS["solver"], steps=4).x, torch.full((3, 1, 2, 2), 0.5))
    with pytest.raises(UserError, match="an engine prepares networks"):
        pipeline.prepared()
    with pytest.raises(UserError, match="the network calls no tap"):
        pipeline.sample(1, cache="fora")


class Negated(Guide):
    """A guide that does not combine two predictions."""

    def __call__(self, f, times, *others):
        return f


class Whole(Cache):
    """A cache that is not made of parts, and refuses."""

    def start(self, steps):
        raise UserError(f"{steps} steps")


def test_what_a_contract_does_not_ask_for_has_its_default():
    times = torch.tensor([1.0, 0.0])
    assert Negated().grid(times) is times and Negated().other_denoisers() == () and Negated().loop_options == ()
    whole = Whole()
    assert whole.calibrated(None) is whole
    with pytest.raises(UserError, match="4 steps"):
        Pipeline(MyDenoiser(VP()), (1, 2, 2)).sample(1, guide=Negated(), cache=whole, steps=4)


def test_what_a_contract_asks_for_is_needed():
    with pytest.raises(TypeError, match="abstract method"):
        type("Empty", (Solver,), {})()
    for name, thing in (("solver", MyDenoiser(VP())), ("guide", 3), ("cache", MyDenoiser)):
        with pytest.raises(UserError, match=rf"Sampler\.{name}: got "):
            Sampler(**{name: thing})
