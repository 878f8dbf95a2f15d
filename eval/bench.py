"""Benchmarks: one computation done by us and by peers, checked against the exact result, then timed in turns.

A Case is what is computed, a Call one way to compute it, Bench how it is measured. A wrong result is not timed, and a
call that cannot run on this machine is listed with its reason. MachinePeak is the fastest matrix product and the
fastest copy seen in the same run, the two lines of the roofline model (Williams et al. 2009), without which a time says
little.
"""

from __future__ import annotations

import gc
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.machine import compiler_obstacle
from gen.config.spec import Json
from gen.eval.throughput import InterleavedTiming, median_interval, timed
from gen.training.speed import LARGEST, TRIES, MakeProduct, best_seconds, matmul_tflops

__all__ = ["Bench", "BenchContext", "Call", "Case", "MachinePeak", "Unavailable", "measure_peak"]

VENDOR_PEAKS = {"H100": 989e12, "H200": 989e12}  # FLOP/s of dense bfloat16 products, as NVIDIA states them
TOLERANCE_ULPS = 64  # of the dtype, relative to the result: what is further off is wrong, whoever computed it
MIN_SETS, MAX_SETS = 4, 16
FEW_NUMBERS = 64  # the error of fewer is a matter of chance

Inputs = tuple[Any, ...]
Function = Callable[..., Any]


class Unavailable(RuntimeError):
    """A call that cannot run on this machine. `str()` is the reason, in one line."""


@dataclass(frozen=True)
class BenchContext:
    """Device, dtype and size that cases are built for.

    Attributes:
        device: the device they run on.
        dtype: the dtype they are computed in.
        quick: tiny cases that take the same path through the code, with nothing compiled; for tests.
    """

    device: torch.device
    dtype: torch.dtype
    quick: bool = False

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def normal_source(self, seed: int) -> Callable[..., Tensor]:
        """Return normal(*shape): standard normal numbers of one random stream, in the dtype, on the device."""
        generator = torch.Generator(self.device).manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=self.device).to(self.dtype)

        return normal

    def compiled(self, f: Function, **options: Any) -> Function:
        """Return f compiled for static shapes; raises Unavailable where nothing can be compiled."""
        reason = self.compile_obstacle()
        if reason is not None:
            raise Unavailable(reason)
        return torch.compile(f, dynamic=False, **options)

    def compile_obstacle(self) -> str | None:
        """Return the reason why nothing is compiled here, or None."""
        if self.quick:
            return "nothing is compiled for quick cases"
        return None if self.cuda else compiler_obstacle()


def identity(out: Any) -> Any:
    return out


@dataclass(frozen=True, eq=False)
class Call:
    """One way to compute a case.

    Attributes:
        name: what it is and with which settings: "sdpa cuDNN forced".
        make: builds the function that is then called with an input set; raises Unavailable if it cannot be had here.
        ours: whether peers are compared with it.
        adapt: converts an input set to this call's own layout; not timed.
        error_factor: its error may be so many times the baseline's.
        check: builds the function whose result is checked instead: the same code in a precision with one right answer.
    """

    name: str
    make: Callable[[], Function]
    ours: bool = False
    adapt: Callable[..., Inputs] | None = None
    error_factor: float = 2.0
    check: Callable[[], Function] | None = None


@dataclass(frozen=True, eq=False)
class Case:
    """A computation that calls are compared on.

    Attributes:
        name: unique within its part of the benchmark.
        dtype: the dtype it is computed in.
        calls: the ways to compute it, ours first.
        inputs: seed -> the arguments of a call.
        exact: the same arguments -> the right result, in float64.
        view: result of a call -> the part of it that `exact` computes: a tensor, or several in a tuple.
        baseline: name of the call whose error the others' errors are compared with.
        tolerance_ulps: the most that the baseline's own error may be, in units of the dtype's eps.
        flops: operations of the matrix products of one call, at least.
        bytes: bytes that one call has to read and write, at least.
        rates: amounts per call that become rates, {"images/s": 8}.
        steps: steps of a loop in one call, for milliseconds per step; 0 if it is no loop.
        grad: whether gradients are recorded.
        graph: whether the calls of a block may be captured as one CUDA graph, so that kernels are timed and not their
            launch from Python.
        mfu: whether flops are shown as a share of the device's peak.
    """

    name: str
    dtype: torch.dtype
    calls: Sequence[Call]
    inputs: Callable[[int], Inputs]
    exact: Function
    view: Callable[[Any], Any] = identity
    baseline: str = "eager"
    tolerance_ulps: int = TOLERANCE_ULPS
    flops: float = 0.0
    bytes: float = 0.0
    rates: Mapping[str, float] = field(default_factory=dict)
    steps: int = 0
    grad: bool = False
    graph: bool = False
    mfu: bool = False

    def settings(self) -> Json:
        """Return what identifies a measurement of this case, beside the machine and the way of measuring."""
        names = [call.name for call in self.calls]
        return {"case": self.name, "flops": self.flops, "bytes": self.bytes, "calls": names, "rates": dict(self.rates)}


@dataclass(frozen=True)
class MachinePeak:
    """The fastest seen on this machine.

    Attributes:
        flops: FLOP/s of a matrix product.
        bytes: bytes/s read and written by a copy.
        what: sizes and number of rounds, in words.
    """

    flops: float
    bytes: float
    what: str

    def seconds(self, case: Case) -> float:
        """Return the roofline bound of a case: the time of its products or of its bytes, whichever is longer."""
        return max(case.flops / self.flops, case.bytes / self.bytes)


def measure_peak(
    context: BenchContext, clock: Callable[[], float] = time.perf_counter, others: Sequence[MakeProduct] = ()
) -> MachinePeak:
    """Measure the fastest of several matrix products and copies of random numbers of the context's dtype.

    Args:
        context: device and dtype; `quick` takes small ones.
        clock: returns seconds; anything monotonic.
        others: ways to multiply, beside PyTorch's.

    Returns:
        The peak of this run.
    """
    numbers = 2**20 if context.quick else 2**29 if context.cuda else 2**26
    flops = 1e12 * matmul_tflops(context.device, context.dtype, others, 128 if context.quick else LARGEST, clock)
    source = context.normal_source(0)(numbers)
    target, size = torch.empty_like(source), source.nbytes
    copied = best_seconds(lambda: target.copy_(source), context.device, clock)
    what = f"matrix products and a copy of {size / 2**20:.0f} MiB, the best of {TRIES}"
    return MachinePeak(flops, 2 * size / copied, what)


@dataclass(frozen=True)
class Bench:
    """Measures cases: the calls of a case are timed in interleaved rounds (see InterleavedTiming).

    Attributes:
        device: the device that calls run on.
        rounds: of one case, at most; at least six.
        seconds: of one case, at most, after warming up.
        block: seconds; a shorter call is repeated until a block of calls lasts so long.
        rotate: bytes; so many input sets take turns that together they are as large, and no cache holds them all.
        seed: of the first input set.
        clock: returns seconds; anything monotonic.
    """

    device: torch.device
    rounds: int = 40
    seconds: float = 4.0
    block: float = 0.004
    rotate: int = 128_000_000
    seed: int = 0
    clock: Callable[[], float] = time.perf_counter

    def measure(self, case: Case, peak: MachinePeak) -> Json:
        """Return the record of a case, JSON values only; a failure becomes a gate that is not ok, without times."""
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()  # else the next shape is compiled for any shape
        record: Json = {
            "case": case.name,
            "dtype": str(case.dtype).removeprefix("torch."),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "flops": case.flops,
            "bytes": case.bytes,
            "bound_ms": 1000 * peak.seconds(case),
            "peak": asdict(peak),
            "calls": [{"name": call.name, "ours": call.ours} for call in case.calls],
            "ratios": [],
        }
        try:
            with torch.set_grad_enabled(case.grad):
                record |= self._measured(case, peak)
        except Exception as error:
            record["gate"] = {"ok": False, "error": line(error)}
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return record

    def _measured(self, case: Case, peak: MachinePeak) -> Json:
        ring = self._ring(case)
        ready, unavailable = run_once(case, ring[0])
        exact = [v.detach() for v in tensors(case.exact(*ring[0]))]
        gate = check_errors(case, {call.name: outs for call, _, outs in ready}, exact)
        calls = [
            {"name": c.name, "ours": c.ours} | ({"unavailable": unavailable[c.name]} if c.name in unavailable else {})
            for c in case.calls
        ]
        if not gate["ok"]:
            return {"gate": gate, "calls": calls}
        del exact
        seconds, repeats, launch = self._timed(case, [(call, f) for call, f, _ in ready], ring)
        times = {call.name: [row[i] for row in seconds] for i, (call, _, _) in enumerate(ready)}
        for call in calls:
            if call["name"] in times:
                took = median(times[call["name"]])
                call |= {"ms": 1000 * took, "repeats": repeats[call["name"]], **self._speeds(case, took, peak)}
        ours, peers = ([c.name for c, _, _ in ready if c.ours == yes] for yes in (True, False))
        ratios = [
            {"ours": a, "peer": b} | asdict(median_interval([y / x for x, y in zip(times[a], times[b], strict=True)]))
            for a, b in itertools.product(ours, peers)
        ]
        about = {"rounds": len(seconds), "sets": len(ring), "launch": launch}
        return {"gate": gate, "calls": calls, "ratios": ratios, **about}

    def _ring(self, case: Case) -> list[Inputs]:
        """Return the input sets that take turns."""
        first = case.inputs(self.seed)
        size = sum(v.nbytes for v in first if isinstance(v, Tensor))
        sets = min(MAX_SETS, max(MIN_SETS, math.ceil(self.rotate / size) if size else 0))
        return [first, *(case.inputs(self.seed + i) for i in range(1, sets))]

    def _timed(
        self, case: Case, ready: Sequence[tuple[Call, Function]], ring: Sequence[Inputs]
    ) -> tuple[list[list[float]], dict[str, int], str]:
        """Return seconds of one call, [round][call]; how often each was repeated; and how they were launched."""
        position, blocks, repeats = itertools.count(), [], dict[str, int]()
        for call, f in ready:
            sets = ring if call.adapt is None else [call.adapt(*inputs) for inputs in ring]
            repeats[call.name] = self._repeats(f, sets)
            blocks.append(repeated(f, sets, repeats[call.name], position))
        launch = "python"
        if case.graph and self.device.type == "cuda":
            try:
                blocks, launch = [captured(block, self.device) for block in blocks], "graph"
            except RuntimeError as error:  # then none of them: times of two kinds cannot be compared
                launch = f"python, for there is no graph: {line(error)}"
        seconds = InterleavedTiming(self.rounds, self.seconds, self.clock).measure(blocks, self.device)
        counts = list(repeats.values())
        return [[took / n for took, n in zip(row, counts, strict=True)] for row in seconds], repeats, launch

    def _repeats(self, f: Function, sets: Sequence[Inputs]) -> int:
        """Return how many calls fill a block, after some calls to warm up."""
        began, best = self.clock(), math.inf
        for inputs in itertools.islice(itertools.cycle(sets), 1, 4):
            best = min(best, timed(partial(f, *inputs), self.device, self.clock)[0])
            if self.clock() - began > self.seconds / 4:
                break
        return max(1, min(1000, math.ceil(self.block / max(best, 1e-9) - 1e-6)))

    def _speeds(self, case: Case, took: float, peak: MachinePeak) -> Json:
        """Return the rates of a call that took so many seconds."""
        rates = {name: amount / took for name, amount in case.rates.items()}
        rates |= {"TFLOP/s": case.flops / took / 1e12} if case.flops else {}
        rates |= {"GB/s": case.bytes / took / 1e9} if case.bytes else {}
        rates |= {"ms/step": 1000 * took / case.steps} if case.steps else {}
        rates |= {"% MFU": 100 * case.flops / took / self._vendor_peak(peak)} if case.mfu else {}
        least = peak.seconds(case)
        return {"roofline": 100 * least / took if least else None, "rates": rates}

    def _vendor_peak(self, peak: MachinePeak) -> float:
        """Return the FLOP/s that the vendor states for bfloat16, or the measured ones of an unknown device."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else ""
        return next((flops for part, flops in VENDOR_PEAKS.items() if part in name), peak.flops)


def run_once(case: Case, inputs: Inputs) -> tuple[list[tuple[Call, Function, list[Tensor]]], dict[str, str]]:
    """Return the calls that can run, each with its result for these inputs, and the reasons of the others.

    A peer may fail as it likes; one of ours only by Unavailable or UserError. Raises UserError if none of ours is left.
    """
    ready, unavailable = [], dict[str, str]()
    for call in case.calls:
        try:
            f = call.make()
            checked = f if call.check is None else call.check()
            out = case.view(checked(*(inputs if call.adapt is None else call.adapt(*inputs))))
            ready.append((call, f, [v.detach().clone() for v in tensors(out)]))
        except Exception as error:
            expected = isinstance(error, Unavailable | UserError)
            if call.ours and not expected:
                raise RuntimeError(f"{call.name}: {line(error)}") from error
            unavailable[call.name] = str(error) if expected else line(error)
    if not any(call.ours for call, _, _ in ready):
        raise UserError(f"none of ours can run here: {'; '.join(unavailable.values())}")
    return ready, unavailable


def check_errors(case: Case, outs: Mapping[str, Sequence[Tensor]], exact: Sequence[Tensor]) -> Json:
    """Compare results with the exact ones: {"ok", "baseline", "errors": {call: {"error", "bound"}}, "error": in words}.

    An error is the root mean square difference relative to the exact result's. Its bound is error_factor times the
    baseline's error, which counts as a quarter of the dtype's eps at least; the baseline's own bound is tolerance_ulps
    eps, or a half where the dtype is coarse, and so is everyone's if the baseline cannot run here. Integers are equal
    or not. Fewer than 64 numbers are held to the largest of the baseline's errors: their own may be small by chance. Of
    several results the one nearest to its bound, or furthest beyond it, is reported.
    """
    factor, wrong = {call.name: call.error_factor for call in case.calls}, list[str]()
    errors, own = dict[str, dict[str, float | None]](), outs.get(case.baseline)
    apart = {name: distances(values, exact, name) for name, values in outs.items()}
    for name, values in outs.items():
        pairs = []
        for i, value in enumerate(values):
            eps = torch.finfo(case.dtype).eps if value.is_floating_point() else 0.0
            bound = min(case.tolerance_ulps * eps, 0.5)
            if own is not None and name != case.baseline:
                base = max(apart[case.baseline]) if value.numel() < FEW_NUMBERS else apart[case.baseline][i]
                bound = factor[name] * max(base, eps / 4)
            pairs.append((apart[name][i], bound))
        error, bound = max(pairs, key=lambda pair: share_of_bound(*pair))
        errors[name] = {"error": error if math.isfinite(error) else None, "bound": bound}
        if not error <= bound:
            wrong.append(f"{name}: its error is {error:.2g}, and at most {bound:.2g} is allowed")
    gate: Json = {"ok": not wrong, "baseline": case.baseline if own is not None else None, "errors": errors}
    return gate | ({"error": "; ".join(wrong)} if wrong else {})


def share_of_bound(error: float, bound: float) -> float:
    """Return error / bound; infinite if the error is no number, or if nothing is allowed and there is some."""
    if not math.isfinite(error):
        return math.inf
    return error / bound if bound else (math.inf if error else 0.0)


def distances(values: Sequence[Tensor], exact: Sequence[Tensor], name: str) -> list[float]:
    """Return the distance of each result; raises RuntimeError if there are not as many as exact ones."""
    if len(values) != len(exact):
        raise RuntimeError(f"{name}: {len(values)} results, and {len(exact)} exact ones")
    return [distance(value, true) for value, true in zip(values, exact, strict=True)]


def distance(value: Tensor, exact: Tensor) -> float:
    """Return the root mean square difference relative to the exact value; of integers, the share that differs."""
    if value.shape != exact.shape:
        raise RuntimeError(f"the result is {list(value.shape)}, the exact one {list(exact.shape)}")
    if not value.is_floating_point():
        return float((value != exact).double().mean())
    wide = exact.double()
    return float((value.double() - wide).square().mean().sqrt() / wide.square().mean().sqrt().clamp(min=1e-300))


def tensors(out: Any) -> list[Tensor]:
    """Return the tensors of a result; complex ones as pairs of real ones."""
    several = [out] if isinstance(out, Tensor) else list(out)
    return [torch.view_as_real(v) if v.is_complex() else v for v in several]


def repeated(f: Function, sets: Sequence[Inputs], repeats: int, position: Iterator[int]) -> Callable[[], None]:
    """Return a block of calls, each with the next input set of the ring, whoever used the one before."""

    def block() -> None:
        for _ in range(repeats):
            f(*sets[next(position) % len(sets)])

    return block


def captured(block: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Return a call that launches the kernels of a block as one CUDA graph."""
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        block()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        block()
    return graph.replay


def line(error: BaseException) -> str:
    """Return an error's type and the start of its text, in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}{'…' if len(text) > 200 else ''}"
