"""The benchmark's harness against a clock that the test holds: exact medians, intervals and peaks, and the gate."""

import itertools
from dataclasses import dataclass, replace
from xml.etree import ElementTree

import pytest
import torch

from gen.config.errors import UserError
from gen.eval.bench import Bench, BenchContext, Call, Case, MachinePeak, Unavailable, measure_peak
from gen.eval.pages.bench import bench_page as page
from gen.eval.pages.bench import bench_table as table

CPU = torch.device("cpu")
TOP = MachinePeak(flops=1e12, bytes=1e10, what="given")


@dataclass
class Clock:
    """Time that passes only when a fake call spends it."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def spends(clock, seconds, error=0.0):
    """Doubles its input, off by a relative error, and takes `seconds`, or the next of several."""
    spent = itertools.cycle(seconds if isinstance(seconds, list) else [seconds])

    def make():
        def call(x):
            clock.now += next(spent)
            return 2 * x * (1 + error)

        return call

    return make


def unavailable():
    raise Unavailable("it is not installed")


def case(clock, *more, ours=0.01, eager=0.02, error=0.0, **changes):
    calls = [
        Call("ours", spends(clock, ours, error), ours=True),
        Call("eager", spends(clock, eager, 1e-7)),
        *more,
    ]
    fields = {"inputs": lambda seed: (torch.full((100,), 1.0 + seed),), "exact": lambda x: 2 * x.double()}
    return Case("doubling", torch.float32, calls, **(fields | changes))


def measure(made, clock, **changes):
    return Bench(CPU, clock=clock, seconds=1e9, rounds=20, **changes).measure(made, TOP)


def call_of(record, name):
    return next(call for call in record["calls"] if call["name"] == name)


def test_times_and_ratios_are_exact():
    clock = Clock()
    record = measure(case(clock, flops=4e9, bytes=2e7, rates={"images/s": 8}, steps=5, mfu=True), clock)
    ours, eager = call_of(record, "ours"), call_of(record, "eager")
    assert record["gate"]["ok"] and record["rounds"] == 20
    assert (ours["ms"], eager["ms"]) == pytest.approx((10, 20))
    (ratio,) = record["ratios"]
    assert (ratio["ours"], ratio["peer"]) == ("ours", "eager")
    assert (ratio["value"], ratio["low"], ratio["high"]) == pytest.approx((2, 2, 2))
    assert record["bound_ms"] == pytest.approx(4)  # the products; the bytes would take 2 ms
    assert (ours["roofline"], eager["roofline"]) == pytest.approx((40, 20))
    rates = {"images/s": 800, "TFLOP/s": 0.4, "GB/s": 2, "ms/step": 2, "% MFU": 40}
    assert ours["rates"] == pytest.approx(rates)


def test_the_interval_is_of_the_ratios_of_the_rounds():
    """Ours takes 10 ms always; the peer 10, 20 ... 200 ms in its 20 rounds, whatever it took to warm up."""
    clock = Clock()
    warm = [0.01] * 4  # the gate's call, and three to warm up
    record = measure(case(clock, eager=[*warm, *(0.01 * k for k in range(1, 21))]), clock)
    (ratio,) = record["ratios"]
    assert ratio["value"] == pytest.approx(10.5)
    assert (ratio["low"], ratio["high"]) == pytest.approx((6, 15))  # the 6th and the 15th of 20


def test_a_short_call_is_repeated_and_its_time_is_that_of_one():
    clock = Clock()
    record = measure(case(clock, ours=0.0005, eager=0.01), clock, block=0.004)
    assert call_of(record, "ours")["repeats"] == 8 and call_of(record, "ours")["ms"] == pytest.approx(0.5)
    assert call_of(record, "eager")["repeats"] == 1 and record["ratios"][0]["value"] == pytest.approx(20)


def test_the_time_of_a_case_is_bounded():
    clock = Clock()
    record = Bench(CPU, clock=clock, seconds=1.0).measure(case(clock, ours=1.0, eager=1.0), TOP)
    assert record["rounds"] == 6 and len(record["ratios"]) == 1


def test_input_sets_take_turns_so_that_no_cache_holds_them():
    clock, seen = Clock(), []

    def make():
        def call(x):
            clock.now += 0.01
            seen.append(float(x[0]))
            return 2 * x

        return call

    record = measure(replace(case(clock), calls=[Call("ours", make, ours=True)]), clock, rotate=400 * 6)
    assert record["sets"] == 6 and set(seen) == {1.0, 2, 3, 4, 5, 6}
    assert all(a != b for a, b in itertools.pairwise(seen[4:]))


@pytest.mark.parametrize("which", ["ours", "peer"])
def test_what_is_wrong_is_not_timed(which):
    clock = Clock()
    wrong = Call("peer", spends(clock, 0.01, 1e-3 if which == "peer" else 0.0))
    record = measure(case(clock, wrong, error=1e-3 if which == "ours" else 0.0), clock)
    assert not record["gate"]["ok"] and record["ratios"] == []
    assert not any("ms" in call for call in record["calls"])
    assert record["gate"]["error"].startswith(f"{which}: its error is 0.001, and at most 2")
    assert record["gate"]["errors"][which]["error"] == pytest.approx(1e-3, rel=1e-3)
    assert f"WRONG, and so not timed: {which}" in table(record) and " ms " not in table(record)


def test_the_bound_is_twice_the_baselines_error_or_what_is_allowed():
    clock = Clock()
    near, far = Call("near", spends(clock, 0.01, 1.8e-6)), Call("far", spends(clock, 0.01, 2.5e-6))
    yard = Call("eager", spends(clock, 0.02, 1e-6))
    ours = Call("ours", spends(clock, 0.01), ours=True)
    record = measure(replace(case(clock), calls=[ours, yard, near]), clock)
    assert record["gate"]["ok"] and record["gate"]["baseline"] == "eager"
    assert record["gate"]["errors"]["near"]["bound"] == pytest.approx(2e-6, rel=0.1)
    assert not measure(replace(case(clock), calls=[ours, yard, far]), clock)["gate"]["ok"]
    assert measure(replace(case(clock), calls=[ours, yard, replace(far, error_factor=3.0)]), clock)["gate"]["ok"]


def test_a_wrong_baseline_excuses_nobody():
    clock = Clock()
    calls = [Call("ours", spends(clock, 0.01), ours=True), Call("eager", spends(clock, 0.1, 0.1))]
    record = measure(replace(case(clock), calls=calls), clock)
    assert not record["gate"]["ok"] and record["gate"]["error"].startswith("eager: its error is 0.1")


def test_without_the_baseline_the_dtypes_ulps_are_the_bound():
    clock = Clock()
    calls = [Call("ours", spends(clock, 0.01, 1e-6), ours=True), Call("eager", unavailable)]
    gate = measure(replace(case(clock), calls=calls), clock)["gate"]
    assert gate["ok"] and gate["baseline"] is None
    assert gate["errors"]["ours"]["bound"] == pytest.approx(64 * torch.finfo(torch.float32).eps)
    assert not measure(replace(case(clock), calls=calls, tolerance_ulps=4), clock)["gate"]["ok"]


@pytest.mark.parametrize(
    ("result", "why"),
    [
        (lambda x: x * float("nan"), "ours: its error is nan"),
        (lambda x: x[:3], r"the result is [3], the exact one [100]"),
        (lambda x: (x, x), "ours: 2 results, and 1 exact ones"),
        (lambda x: 1 / 0, "ours: ZeroDivisionError"),
    ],
)
def test_results_that_are_none_are_wrong_too(result, why):
    clock = Clock()
    record = measure(replace(case(clock), calls=[Call("ours", lambda: result, ours=True)]), clock)
    assert not record["gate"]["ok"] and why in record["gate"]["error"]
    assert not any("ms" in call for call in record["calls"])


def test_integers_are_equal_or_wrong():
    whole = replace(case(Clock()), inputs=lambda seed: (torch.arange(10) + seed,), exact=lambda x: 2 * x)
    for off, ok in ((0, True), (1, False)):
        calls = [Call("ours", lambda k=off: lambda x: 2 * x + k, ours=True)]
        assert Bench(CPU, seconds=1e-3).measure(replace(whole, calls=calls), TOP)["gate"]["ok"] is ok


def test_few_numbers_are_held_to_the_largest_error_of_the_baseline():
    """A loss is one number, and a baseline may hit it by chance."""
    clock = Clock()

    def call(few, many):
        return lambda: lambda x: (2 * x * (1 + many), 2 * x[:1] * (1 + few))

    calls = [Call("ours", call(1e-6, 1e-6), ours=True), Call("eager", call(0.0, 1e-6))]
    made = replace(case(clock), calls=calls, exact=lambda x: (2 * x.double(), 2 * x[:1].double()))
    assert Bench(CPU, seconds=1e-3).measure(made, TOP)["gate"]["ok"]


def test_who_is_unavailable_is_listed_with_the_reason():
    clock = Clock()

    def broken():
        raise RuntimeError("no kernel\n  for this device")

    record = measure(case(clock, Call("gone", unavailable), Call("broken", broken)), clock)
    assert record["gate"]["ok"] and len(record["ratios"]) == 1
    assert call_of(record, "gone") == {"name": "gone", "ours": False, "unavailable": "it is not installed"}
    assert call_of(record, "broken")["unavailable"] == "RuntimeError: no kernel for this device"
    assert "gone" in table(record) and "unavailable: it is not installed" in table(record)


def test_ours_may_be_unavailable_but_not_all_of_ours():
    clock = Clock()

    def refused():
        raise UserError("it needs oneDNN")

    engine = Call("engine", refused, ours=True)
    record = measure(case(clock, engine), clock)
    assert record["gate"]["ok"] and call_of(record, "engine")["unavailable"] == "it needs oneDNN"
    record = measure(replace(case(clock), calls=[engine, case(clock).calls[1]]), clock)
    assert not record["gate"]["ok"] and "none of ours can run here: it needs oneDNN" in record["gate"]["error"]


def test_a_layout_of_ones_own_is_not_timed():
    clock = Clock()
    doubles = spends(clock, 0.03)()

    def flipped(x):
        clock.now += 100
        return (x.flip(0),)

    record = measure(case(clock, Call("flipped", lambda: doubles, adapt=flipped)), clock)
    assert record["gate"]["ok"] and call_of(record, "flipped")["ms"] == pytest.approx(30)


@pytest.mark.gpu
def test_calls_are_launched_as_a_graph_or_all_of_them_from_python():
    context = BenchContext(torch.device("cuda"), torch.float32, quick=True)
    made = replace(case(Clock()), inputs=lambda seed: (context.normal_source(seed)(1000),), graph=True)
    calls = [Call("ours", lambda: lambda x: 2 * x, ours=True), Call("eager", lambda: lambda x: x + x)]
    bench = Bench(context.device, seconds=0.1)
    record = bench.measure(replace(made, calls=calls), measure_peak(context))
    assert record["gate"]["ok"] and record["launch"] == "graph" and record["ratios"][0]["value"] > 0
    waits = Call("waits", lambda: lambda x: 2 * x * float(x[0] * 0 + 1))
    record = bench.measure(replace(made, calls=[*calls, waits]), measure_peak(context))
    assert record["gate"]["ok"] and record["launch"].startswith("python, for there is no graph")


def test_the_peak_is_the_best_of_the_rounds_after_two_to_warm_up():
    clock = Clock()
    times = iter([0.1, 0.1, *[2.0] * 7, 1.0, 3.0, 3.0, 0.1, 0.1, *[0.5] * 8, 0.25, 4.0])
    ticks = itertools.count()

    def ticking():
        if next(ticks) % 2:
            clock.now += next(times)
        return clock.now

    found = measure_peak(BenchContext(CPU, torch.float32, quick=True), ticking)
    assert found.flops == pytest.approx(2 * 16**3) and found.bytes == pytest.approx(2 * 4 * 2**20 / 0.25)


def test_the_page_is_well_formed_and_escapes_what_it_is_told():
    clock = Clock()
    good = measure(replace(case(clock, Call("<gone>", unavailable)), name="a <b> & c"), clock)
    bad = measure(case(clock, error=1.0), clock)
    file = {
        "part": "fused",
        "date": "2026-01-01",
        "command": "gen bench <x>",
        "dtype": "float32",
        "seed": 0,
        "cases": [good, bad],
        "machine": {"name": "a <machine>", "cores": 2, "threads": 1},
        "versions": {"torch": "2", "xformers": None},
        "peak": {"flops": 1e12, "bytes": 1e10},
    }
    made = page([file])
    assert "2 cases, 1 of them wrong" in made and "a &lt;b&gt; &amp; c" in made and "&lt;gone&gt;" in made
    assert "<gone>" not in made and "Wrong, and so not timed" in made and "xformers" not in made
    drawing = ElementTree.fromstring(made[made.index("<svg") : made.index("</svg>") + 6])
    (bar,) = [e for e in drawing.iter() if e.get("class") == "rect s0"]
    (one,) = [e for e in drawing.iter() if e.get("class") == "one"]
    assert float(bar.get("x")) == pytest.approx(float(one.get("x1")), abs=0.1)  # 2 times as fast: right of 1
    assert float(bar.get("width")) > 50
