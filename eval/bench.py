"""Benchmarks: one piece of work done by us and by others, held to the exact answer first, and then timed in turns.

A Case is what is computed, a Call one way to compute it, Bench how it is measured. What is wrong is not timed, and what
cannot run here is listed with its reason. Ceiling is what the machine does of products and of copies in the same run,
without which a time says little.
"""

from __future__ import annotations

import gc
import itertools
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from statistics import median
from typing import Any

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.eval.saving import median_interval
from gen.eval.throughput import Turns, timed

__all__ = ["Absent", "Bench", "Call", "Case", "Ceiling", "Where", "ceiling"]

PEAKS = {"H100": 989e12, "H200": 989e12}  # FLOP/s of dense bfloat16 products, as their maker states them
ROUNDINGS = 64  # of the dtype: further off than that, relative to the result, nothing is called right
LEAST_SETS, MOST_SETS = 4, 16
FEW = 64  # numbers: the error of fewer says little


class Absent(RuntimeError):
    """A call that cannot run here. `str()` is why, in one line."""


@dataclass(frozen=True)
class Where:
    """What cases are made for. quick: tiny ones that take the same way through the code, and nothing is compiled."""

    device: torch.device
    dtype: torch.dtype
    quick: bool = False

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def draws(self, seed: int) -> Callable[..., Tensor]:
        """normal(*shape): normal numbers of one stream, rounded to the dtype, on the device."""
        generator = torch.Generator(self.device).manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=self.device).to(self.dtype)

        return normal

    def compiled(self, f: Any, **how: Any) -> Any:
        """f by torch.compile for the very shapes it is given; Absent where that cannot be."""
        reason = self.uncompilable()
        if reason is not None:
            raise Absent(reason)
        return torch.compile(f, dynamic=False, **how)

    def uncompilable(self) -> str | None:
        """Why nothing is compiled here; None if it can be."""
        if self.quick:
            return "nothing is compiled for quick cases"
        found = self.cuda or any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++")))
        return None if found else "compiling for a CPU needs a C++ compiler, and there is none"


def whole(out: Any) -> Any:
    return out


@dataclass(frozen=True, eq=False)
class Call:
    """One way to compute a case; its name says what and with which settings, "sdpa cuDNN forced".

    make: makes ready what is then called with an input set; Absent if it cannot be had here. ours: whether it is one of
    those that peers are compared with. given: turns an input set into what this call takes, such as another layout, and
    is not timed. allowed: how many times the yardstick's error it may have. check: what the gate calls instead, the
    same code in a precision in which there is one right answer.
    """

    name: str
    make: Callable[[], Callable[..., Any]]
    ours: bool = False
    given: Callable[..., tuple[Any, ...]] | None = None
    allowed: float = 2.0
    check: Callable[[], Callable[..., Any]] | None = None


@dataclass(frozen=True, eq=False)
class Case:
    """What is computed.

    dtype: in which it is computed. inputs: of a seed, the arguments of a call. exact: the same arguments -> the right
    result, in float64. view: of what a call returns, the part that `exact` answers; tensors, or several in a tuple.
    yardstick: the call whose error the others are held to. roundings: how many of the dtype's roundings that error may
    be, at most. flops, bytes: the least that has to be computed by products, and moved, in one call. rates: per call,
    how many of what, {"images/s": 8}. steps: of a loop, for milliseconds a step. grad: whether gradients are recorded.
    graph: whether CUDA may be given many calls as one graph, so that what is timed is the kernels and not their launch
    from Python. mfu: whether flops are to be told as a share of the device's peak.
    """

    name: str
    dtype: torch.dtype
    calls: Sequence[Call]
    inputs: Callable[[int], tuple[Any, ...]]
    exact: Callable[..., Any]
    view: Callable[[Any], Any] = whole
    yardstick: str = "eager"
    roundings: int = ROUNDINGS
    flops: float = 0.0
    bytes: float = 0.0
    rates: Mapping[str, float] = field(default_factory=dict)
    steps: int = 0
    grad: bool = False
    graph: bool = False
    mfu: bool = False

    def settings(self) -> dict[str, Any]:
        """What makes two measurements of a case the same one, beside the machine and how it is measured."""
        names = [call.name for call in self.calls]
        return {"case": self.name, "flops": self.flops, "bytes": self.bytes, "calls": names, "rates": dict(self.rates)}


@dataclass(frozen=True)
class Ceiling:
    """The most that was seen: FLOP/s of a product of matrices, and bytes/s read and written by a copy."""

    flops: float
    bytes: float
    what: str

    def seconds(self, case: Case) -> float:
        """The least time a case can take: of its products or of its bytes, whichever is longer."""
        return max(case.flops / self.flops, case.bytes / self.bytes)


Product = Callable[[Tensor, Tensor], Callable[[], Any]]  # two matrices -> a call that multiplies them


def ceiling(
    where: Where, clock: Callable[[], float] = time.perf_counter, rounds: int = 10, others: Sequence[Product] = ()
) -> Ceiling:
    """The best of some rounds, on random numbers of the dtype; others: ways to multiply beside PyTorch's."""
    side = 128 if where.quick else 8192 if where.cuda else 1536
    numbers = 2**20 if where.quick else 2**29 if where.cuda else 2**26
    normal = where.draws(0)
    a, b, source = normal(side, side), normal(side, side), normal(numbers)
    target = torch.empty_like(source)

    def best(call: Callable[[], Any]) -> float:
        return min([timed(call, where.device, clock)[0] for _ in range(rounds + 2)][2:])

    ways = [lambda: a @ b, *(product(a, b) for product in others)]
    flops, size = 2 * side**3 / min(map(best, ways)), source.nbytes
    what = f"a product of {side} x {side} matrices and a copy of {size / 2**20:.0f} MiB, the best of {rounds}"
    return Ceiling(flops, 2 * size / best(lambda: target.copy_(source)), what)


@dataclass(frozen=True)
class Bench:
    """How cases are measured: every call is made in turns with the others, at least six of them (see Turns).

    turns, seconds: of one case, at most, after warming up. block: seconds; a shorter call is repeated to last so long.
    rotate: bytes; so many input sets take turns that together they have as many, and no cache holds them all.
    """

    device: torch.device
    turns: int = 40
    seconds: float = 4.0
    block: float = 0.004
    rotate: int = 128_000_000
    seed: int = 0
    clock: Callable[[], float] = time.perf_counter

    def measure(self, case: Case, top: Ceiling) -> dict[str, Any]:
        """The record of a case. Nothing is raised: what fails is a gate that is not ok, and has no times."""
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()  # else the next shape is compiled for any shape
        record: dict[str, Any] = {
            "case": case.name,
            "dtype": str(case.dtype).removeprefix("torch."),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "flops": case.flops,
            "bytes": case.bytes,
            "bound_ms": 1000 * top.seconds(case),
            "ceiling": asdict(top),
            "calls": [{"name": call.name, "ours": call.ours} for call in case.calls],
            "ratios": [],
        }
        try:
            with torch.set_grad_enabled(case.grad):
                record |= self._measured(case, top)
        except Exception as error:
            record["gate"] = {"ok": False, "error": line(error)}
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return record

    def _measured(self, case: Case, top: Ceiling) -> dict[str, Any]:
        ring = self._ring(case)
        ready, absent = first_calls(case, ring[0])
        exact = [v.detach() for v in tensors(case.exact(*ring[0]))]
        gate = judge(case, {call.name: outs for call, _, outs in ready}, exact)
        calls = [
            {"name": c.name, "ours": c.ours} | ({"absent": absent[c.name]} if c.name in absent else {})
            for c in case.calls
        ]
        if not gate["ok"]:
            return {"gate": gate, "calls": calls}
        del exact
        seconds, repeats, launch = self._timed(case, [(call, f) for call, f, _ in ready], ring)
        times = {call.name: [turn[i] for turn in seconds] for i, (call, _, _) in enumerate(ready)}
        for call in calls:
            if call["name"] in times:
                took = median(times[call["name"]])
                call |= {"ms": 1000 * took, "repeats": repeats[call["name"]], **self._speeds(case, took, top)}
        ours, peers = ([c.name for c, _, _ in ready if c.ours == yes] for yes in (True, False))
        ratios = [
            {"ours": a, "peer": b} | median_interval([y / x for x, y in zip(times[a], times[b], strict=True)]).json()
            for a, b in itertools.product(ours, peers)
        ]
        about = {"turns": len(seconds), "sets": len(ring), "launch": launch}
        return {"gate": gate, "calls": calls, "ratios": ratios, **about}

    def _ring(self, case: Case) -> list[tuple[Any, ...]]:
        first = case.inputs(self.seed)
        size = sum(v.nbytes for v in first if isinstance(v, Tensor))
        sets = min(MOST_SETS, max(LEAST_SETS, math.ceil(self.rotate / size) if size else 0))
        return [first, *(case.inputs(self.seed + i) for i in range(1, sets))]

    def _timed(
        self, case: Case, ready: Sequence[tuple[Call, Callable[..., Any]]], ring: Sequence[tuple[Any, ...]]
    ) -> tuple[list[list[float]], dict[str, int], str]:
        """Seconds of one call, [turn][call]; how often each was repeated; and how they were launched."""
        place, blocks, repeats = itertools.count(), [], dict[str, int]()
        for call, f in ready:
            sets = ring if call.given is None else [call.given(*inputs) for inputs in ring]
            repeats[call.name] = self._repeats(f, sets)
            blocks.append(repeated(f, sets, repeats[call.name], place))
        launch = "python"
        if case.graph and self.device.type == "cuda":
            try:
                blocks, launch = [captured(block, self.device) for block in blocks], "graph"
            except RuntimeError as error:  # then all of them as they are: times of two kinds cannot be compared
                launch = f"python, for there is no graph: {line(error)}"
        found = Turns(self.turns, self.seconds, self.clock).measure(blocks, self.device)
        counts = list(repeats.values())
        return [[took / n for took, n in zip(turn, counts, strict=True)] for turn in found], repeats, launch

    def _repeats(self, f: Callable[..., Any], sets: Sequence[tuple[Any, ...]]) -> int:
        """How many calls fill a block, after some calls to warm up."""
        began, best = self.clock(), math.inf
        for inputs in itertools.islice(itertools.cycle(sets), 1, 4):
            best = min(best, timed(lambda inputs=inputs: f(*inputs), self.device, self.clock)[0])  # type: ignore[misc]
            if self.clock() - began > self.seconds / 4:
                break
        return max(1, min(1000, math.ceil(self.block / max(best, 1e-9) - 1e-6)))

    def _speeds(self, case: Case, took: float, top: Ceiling) -> dict[str, Any]:
        """What follows from the seconds of a call."""
        rates = {name: amount / took for name, amount in case.rates.items()}
        rates |= {"TFLOP/s": case.flops / took / 1e12} if case.flops else {}
        rates |= {"GB/s": case.bytes / took / 1e9} if case.bytes else {}
        rates |= {"ms/step": 1000 * took / case.steps} if case.steps else {}
        rates |= {"% MFU": 100 * case.flops / took / self._peak(top)} if case.mfu else {}
        least = top.seconds(case)
        return {"roofline": 100 * least / took if least else None, "rates": rates}

    def _peak(self, top: Ceiling) -> float:
        """FLOP/s as the maker states them for bfloat16, or as measured where nobody does."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else ""
        return next((peak for part, peak in PEAKS.items() if part in name), top.flops)


def first_calls(
    case: Case, inputs: tuple[Any, ...]
) -> tuple[list[tuple[Call, Callable[..., Any], list[Tensor]]], dict[str, str]]:
    """The calls that can run, each with what it returned for these inputs; and why the others cannot.

    A peer may fail as it likes; one of ours only by Absent or UserError. Raises UserError if none of ours is left.
    """
    ready, absent = [], dict[str, str]()
    for call in case.calls:
        try:
            f = call.make()
            judged = f if call.check is None else call.check()
            out = case.view(judged(*(inputs if call.given is None else call.given(*inputs))))
            ready.append((call, f, [v.detach().clone() for v in tensors(out)]))
        except Exception as error:
            if call.ours and not isinstance(error, Absent | UserError):
                raise RuntimeError(f"{call.name}: {line(error)}") from error
            absent[call.name] = str(error) if isinstance(error, Absent | UserError) else line(error)
    if not any(call.ours for call, _, _ in ready):
        raise UserError(f"none of ours can run here: {'; '.join(absent.values())}")
    return ready, absent


def judge(case: Case, outs: Mapping[str, Sequence[Tensor]], exact: Sequence[Tensor]) -> dict[str, Any]:
    """Whether all are right: {"ok", "yardstick", "errors": {call: {"error", "bound"}}, "error": what is wrong}.

    An error is the root mean square difference relative to the exact result's. Its bound is that of the yardstick times
    what the call is allowed, but no less than a quarter of the dtype's rounding is allowed; and the yardstick's own is
    `roundings` of them, or a half where the dtype is coarse, as is everyone's if it is not here. Integers are equal or
    not. Fewer than 64 numbers are held to the largest of the yardstick's errors: their own may be small by chance. Of
    several results the one that comes nearest to its bound, or is furthest beyond it, is told.
    """
    allowed, wrong = {call.name: call.allowed for call in case.calls}, list[str]()
    found, own = dict[str, dict[str, float | None]](), outs.get(case.yardstick)
    apart = {name: distances(values, exact, name) for name, values in outs.items()}
    for name, values in outs.items():
        pairs = []
        for i, value in enumerate(values):
            eps = torch.finfo(case.dtype).eps if value.is_floating_point() else 0.0
            bound = min(case.roundings * eps, 0.5)
            if own is not None and name != case.yardstick:
                yard = max(apart[case.yardstick]) if value.numel() < FEW else apart[case.yardstick][i]
                bound = allowed[name] * max(yard, eps / 4)
            pairs.append((apart[name][i], bound))
        error, bound = max(pairs, key=lambda pair: over(*pair))
        found[name] = {"error": error if math.isfinite(error) else None, "bound": bound}
        if not error <= bound:
            wrong.append(f"{name}: its error is {error:.2g}, and at most {bound:.2g} is allowed")
    gate: dict[str, Any] = {"ok": not wrong, "yardstick": case.yardstick if own is not None else None, "errors": found}
    return gate | ({"error": "; ".join(wrong)} if wrong else {})


def over(error: float, bound: float) -> float:
    """How far an error has come towards its bound, 1 there; numbers that are none are beyond all."""
    if not math.isfinite(error):
        return math.inf
    return error / bound if bound else (math.inf if error else 0.0)


def distances(values: Sequence[Tensor], exact: Sequence[Tensor], name: str) -> list[float]:
    """Of each result; RuntimeError if they are not as many."""
    if len(values) != len(exact):
        raise RuntimeError(f"{name}: {len(values)} results, and {len(exact)} exact ones")
    return [distance(value, true) for value, true in zip(values, exact, strict=True)]


def distance(value: Tensor, exact: Tensor) -> float:
    """The root mean square difference, relative to the exact value; of integers the share that differs."""
    if value.shape != exact.shape:
        raise RuntimeError(f"the result is {list(value.shape)}, the exact one {list(exact.shape)}")
    if not value.is_floating_point():
        return float((value != exact).double().mean())
    wide = exact.double()
    return float((value.double() - wide).square().mean().sqrt() / wide.square().mean().sqrt().clamp(min=1e-300))


def tensors(out: Any) -> list[Tensor]:
    """The tensors of a result; complex ones as pairs of real ones."""
    several = [out] if isinstance(out, Tensor) else list(out)
    return [torch.view_as_real(v) if v.is_complex() else v for v in several]


def repeated(
    f: Callable[..., Any], sets: Sequence[tuple[Any, ...]], repeats: int, place: Iterator[int]
) -> Callable[[], None]:
    """A block of calls, each with the next set of the ring, whoever used the one before."""

    def block() -> None:
        for _ in range(repeats):
            f(*sets[next(place) % len(sets)])

    return block


def captured(block: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """The kernels of a block as one CUDA graph, which is launched at once."""
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        block()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        block()
    return graph.replay


def line(error: BaseException) -> str:
    """An error's type and the start of its text."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}{'…' if len(text) > 200 else ''}"
