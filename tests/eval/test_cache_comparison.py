"""What a cache saves: exact on a clock that the test holds, on a small network with random weights."""

import base64
import io
import json
import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from gen.config.errors import UserError
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.parameterisation import Velocity
from gen.diffusion.path import Flow
from gen.eval.cache_comparison import CacheComparison, computed_shares, drift, equal_steps, uncached
from gen.eval.evaluate import evaluate
from gen.eval.pictures import INK, PAPER, heatmap
from gen.eval.record import Drift, Interval, Record, from_json, to_json
from gen.eval.reference import Reference
from gen.eval.throughput import InterleavedTiming, median_interval
from gen.models.dit import DiT
from gen.pipeline import Pipeline
from gen.samples import Samples
from gen.training.run import Sampler

SITES = [f"blocks.{i}.{half}.raw" for i in (0, 1) for half in ("attn", "mlp")] + ["final"]


@dataclass
class Clock:
    """Time that passes only when sampling spends it."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True, eq=False)
class Timed(Pipeline):
    """A pipeline that takes a second for a whole evaluation, and `skip` seconds for one that a cache skips."""

    clock: Clock | None = None
    skip: float = 0.25

    def sample(self, *args, **how) -> Samples:
        made = super().sample(*args, **how)
        saved = sum(getattr(r, "evaluations", 0) - getattr(r, "full", 0) for r in made.cache)
        self.clock.now += made.nfe - saved * (1 - self.skip)
        return made


@pytest.fixture(scope="module")
def pipeline() -> Timed:
    torch.manual_seed(0)
    net = DiT(size=8, patch=4, channels=1, classes=10, width=16, depth=2, heads=2).build()
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    f = Denoiser(net.eval().requires_grad_(False), Flow(), Velocity())
    return Timed(f, (1, 8, 8), 10, Sampler("euler", 12), name="tiny", clock=Clock())


def comparison(pipeline: Timed, batch: int = 4) -> CacheComparison:
    return CacheComparison(batch, InterleavedTiming(seconds=1e-9, clock=pipeline.clock))


def pixels(png: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(png)))


def test_cost_of_a_skipped_step_and_speed_up_are_exact(pipeline) -> None:
    found = comparison(pipeline).measure(pipeline, {"cache": {"name": "taylorseer", "interval": 3}})
    full = 5  # of 12: the two of the warm-up, then 4, 7, 10
    assert (found.full, found.evaluations, found.fraction) == (full, 12, full / 12)
    ratio = (full + 7 * 0.25) / 12
    assert vars(found.ratio) == pytest.approx({"value": ratio, "low": ratio, "high": ratio})
    assert found.speedup.value == pytest.approx(1 / ratio) and found.c.value == pytest.approx(0.25)
    assert found.equal_steps == 6 and 6 / 12 <= ratio < 7 / 12  # as many as fit, not the nearest
    assert found.memory_mb > 0


def test_drift_is_from_the_same_noise(pipeline) -> None:
    how = {"cache": "fora", "steps": 6}
    found = comparison(pipeline, 7).measure(pipeline, how, seed=3).drift
    a, b = pipeline.sample(7, seed=3, steps=6).x.double(), pipeline.sample(7, seed=3, **how).x.double()
    assert found.rmse == pytest.approx(float((a - b).square().mean().sqrt())) and found.rmse > 1e-4
    assert found.psnr == pytest.approx(10 * math.log10(4 / found.rmse**2)) and found.n == 7


def test_drift_of_known_samples() -> None:
    x = torch.zeros(50, 1, 2, 2)
    known = {"rmse": pytest.approx(0.2), "se": pytest.approx(0), "psnr": pytest.approx(20), "n": 50}
    assert vars(drift(x + 0.2, x)) == known
    assert drift(x, x) == Drift(0.0, 0.0, None, 50)
    torch.manual_seed(0)
    many = [drift(torch.randn(40, 1, 4, 4), torch.zeros(40, 1, 4, 4)) for _ in range(400)]
    spread = float(torch.tensor([d.rmse for d in many]).std())
    assert sum(d.se for d in many) / len(many) == pytest.approx(spread, rel=0.1)


def test_a_cache_that_is_turned_off_costs_nothing_and_has_no_skipped_step(pipeline) -> None:
    found = comparison(pipeline).measure(pipeline, {"cache": {"name": "taylorseer_lite", "interval": 1}})
    assert found.fraction == 1 and found.c is None and found.equal_steps == 12
    assert found.drift.rmse == 0 and found.drift.psnr is None and found.speedup.value == 1


def test_the_default_cache_of_a_pipeline_can_be_switched_off(pipeline) -> None:
    default = replace(pipeline, sampler=Sampler("euler", 12, cache="fora"))
    plain, rest = uncached(default, {"steps": 6})
    assert rest == {"steps": 6} and plain.sampler.cache is None and default.sampler.cache is not None
    same = comparison(default).measure(default, {})
    assert same.drift == comparison(pipeline).measure(pipeline, {"cache": "fora"}).drift and same.fraction < 1


@pytest.mark.parametrize("cache", ["taylorseer", "taylorseer_lite"])
def test_map_shows_what_was_computed(pipeline, cache) -> None:
    """The same map for both: one skips each module, the other the trunk around them; the last layer always runs."""
    drawn = comparison(pipeline).measure(pipeline, {"cache": {"name": cache, "interval": 3}}).map
    assert list(drawn.sites) == SITES and drawn.steps == 12
    image = pixels(drawn.png)
    assert image.size == (12 * 24 - 2, 5 * 24 - 2)
    cells = [[image.getpixel((24 * step + 9, 24 * row + 9)) for step in range(12)] for row in range(5)]
    expected = [INK if step in (0, 1, 4, 7, 10) else PAPER for step in range(12)]
    assert cells[:4] == [expected] * 4 and cells[4] == [INK] * 12
    assert image.getpixel((23, 0))[3] == 0  # between the cells


def test_map_shows_shares_of_stages_and_branches() -> None:
    contexts = [SimpleNamespace(step=s) for s in (0, 0, 1, 1, 2)]
    computed = [(True, True), (True, True), (True, False), (True, True), (False, True)]
    report = SimpleNamespace(steps=3, contexts=contexts, sites=("a", "b"), computed=computed)
    assert computed_shares(report, ["b", "a"]).tolist() == [[1, 0.5, 1], [1, 1, 0]]
    half = pixels(heatmap(torch.tensor([[0.5]]))).getpixel((0, 0))
    assert half == tuple(round((a + b) / 2) for a, b in zip(INK, PAPER, strict=True))
    assert pixels(heatmap(torch.ones(57, 250))).size == (250 * 4 - 2, 57 * 12 - 2)


def test_interval_holds_the_median_as_often_as_it_says() -> None:
    found = median_interval([5.0, 1.0, 4.0, 2.0, 9.0, 3.0])
    assert (found.value, found.low, found.high) == (3.5, 1.0, 9.0)
    for n in (6, 7, 9, 20, 41):
        width = median_interval([float(i) for i in range(n)])
        rank = int(width.low)
        assert width.high == n - 1 - rank and width.value == (n - 1) / 2
        missed = [2 * sum(math.comb(n, i) for i in range(r + 1)) / 2**n for r in (rank, rank + 1)]
        assert missed[0] <= 0.05 < missed[1]  # the narrowest that still does
    with pytest.raises(UserError, match="5 values: at least 6"):
        median_interval([1.0] * 5)


def test_interval_of_a_falling_function_has_its_ends_in_order() -> None:
    assert median_interval([2.0, 4.0, 5.0, 5.0, 8.0, 10.0]).map(lambda r: 1 / r) == Interval(0.2, 0.1, 0.5)


@pytest.mark.parametrize(("ratio", "steps"), [(0.5, 25), (0.379, 18), (0.38, 19), (0.001, 1), (1.0, 50), (1.05, 52)])
def test_equal_steps(ratio, steps) -> None:
    assert equal_steps(ratio, 50) == steps


def test_rounds_go_there_and_back_and_a_drifting_clock_cancels() -> None:
    clock, order = Clock(), []

    def spend(name: str, seconds: float):
        def call() -> None:
            order.append(name)
            clock.now += seconds * (1 + 0.01 * len(order))  # every call slower than the one before

        return call

    calls = [spend("a", 1.0), spend("b", 0.5), spend("c", 0.25)]
    found = InterleavedTiming(seconds=1e-9, clock=clock).measure(calls)
    assert "".join(order) == "abccba" * 3 and len(found) == 6
    assert found[1][0] == pytest.approx(1.06)  # the sixth call
    ratio = median_interval([c / a for a, _, c in found])
    assert ratio.low < 0.25 < ratio.high and ratio.value == pytest.approx(0.25, rel=2e-3)


def test_rounds_are_bounded() -> None:
    assert len(InterleavedTiming(rounds=10, seconds=1e9).measure([lambda: None])) == 10
    for wrong in ({"rounds": 5}, {"seconds": 0.0}):
        with pytest.raises(UserError, match="at least 6"):
            InterleavedTiming(**wrong)


def test_evaluate_says_what_its_cache_does(pipeline) -> None:
    reference = Reference.open("digits", extractor="pixels")
    how = {"against": reference, "n": 12, "steps": 4, "timed": 3, "seconds": 1e-9}
    record = evaluate(pipeline, cache={"name": "taylorseer_lite", "interval": 2}, **how)
    assert from_json(json.loads(json.dumps(to_json(record))), Record, "it") == record
    assert record.cache.full == 3 and record.cache.batch == record.cache.drift.n == 3
    assert record.nfe == 4 and record.sampler["cache"]["interval"] == 2 and record.speed.batch == 3
    assert evaluate(pipeline, **how).cache is None
