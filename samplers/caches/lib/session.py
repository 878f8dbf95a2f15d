"""One run of a cache: the tap that computes, or does not, and remembers.

At the sites that are cached the network is asked only if the policy says so; otherwise the predictor answers from what
the same branch and stage computed at earlier steps. A policy with a probe decides inside the network: until then all is
computed, and if it decides to skip inside a cached site, the rest of that site's computation is passed through and its
result replaced. Rows decide for themselves: if any needs computing all are computed, and the others keep what they
would have had alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal, Protocol

from torch import Tensor

from gen.config.errors import UserError
from gen.diffusion.tap import Compute, Context, Tap
from gen.samplers.caches.coordinates.step import Step
from gen.samplers.caches.lib.memory import Memory, Predictor, select
from gen.samplers.caches.lib.report import Place, Report
from gen.samplers.caches.policies.lib.policy import Policy

__all__ = ["Along", "Run", "Study"]

Base = Literal["", "input", "probe"]
Mode = Literal["outside", "inside", "passing"]


class Along(Protocol):
    """The coordinate in which a predictor works."""

    def place(self, context: Context) -> float: ...


class Study(Protocol):
    """A calibration: sees every feature that is computed, and says what it found."""

    def see(self, context: Context, site: str, feature: Tensor) -> None: ...

    def result(self) -> Mapping[str, Any]: ...


class Run:
    """A contextual tap for one batch's walk of `steps` steps.

    sites: patterns of the sites to cache ("blocks.*.attn"); inside a cached site nothing else is cached. branches:
    the branches to cache, () for all. base: what is subtracted from a site's output before it is remembered: nothing,
    the site's input, or the probe's output.
    Raises UserError when it turns out that the network has no such sites.
    """

    def __init__(
        self,
        steps: int,
        policy: Policy,
        predictor: Predictor,
        sites: Sequence[str],
        *,
        coordinate: Along = Step(),  # noqa: B008 - frozen
        branches: Sequence[str] = (),
        base: Base = "",
        study: Study | None = None,
    ):
        if not sites:
            raise UserError("a cache needs at least one pattern of sites, such as 'blocks.*.attn'")
        if base == "probe" and not policy.probe:
            raise UserError(f"base = 'probe' needs a policy with a probe; {type(policy).__name__} has none")
        self.steps, self.policy, self.predictor, self.coordinate = steps, policy, predictor, coordinate
        self.sites, self.branches, self.base, self.study = tuple(sites), tuple(branches), base, study
        self.evaluations: dict[tuple[int, int, str], Evaluation] = {}
        self.states: dict[tuple[str, int], Any] = {}
        self.memories: dict[tuple[str, int, str], Memory] = {}
        self.seen: dict[str, bool] = {}  # every site met so far, in order: is it cached?
        self.last = ""  # the site that checks a draft

    def bind(self, context: Context) -> Tap:
        """The tap of one evaluation; always the same one for the same context."""
        key = (context.step, context.stage, context.branch)
        found = self.evaluations.get(key)
        if found is None:
            self._ready(context)
            found = self.evaluations[key] = Evaluation(self, context)
        return found

    def cached(self, site: str) -> bool:
        known = self.seen.get(site)
        if known is None:
            known = self.seen[site] = any(fnmatchcase(site, pattern) for pattern in self.sites)
        return known

    def report(self) -> Report:
        """What was computed so far, at the end of an evaluation."""
        self._check()
        done = self.evaluations.values()
        places = [Place(e.context.step, e.context.stage, e.context.branch, e.context.t) for e in done]
        return Report(
            steps=self.steps,
            places=tuple(places),
            sites=tuple(self.seen),
            computed=tuple(tuple(site in e.computed for site in self.seen) for e in done),
            asked=tuple(sum(e.rows) / len(e.rows) if e.rows is not None else 1.0 for e in done),
            memory=sum(memory.bytes for memory in self.memories.values()),
            measured={} if self.study is None else self.study.result(),
        )

    def _ready(self, context: Context) -> None:
        if context.steps != self.steps:
            raise UserError(f"a cache was started for {self.steps} steps, but the loop has {context.steps}")
        if len(self.evaluations) == 1:
            self._check()

    def _check(self) -> None:
        missing = [p for p in (self.policy.probe, *self.sites) if p and not any(fnmatchcase(s, p) for s in self.seen)]
        if missing and self.seen:
            there = ", ".join(dict.fromkeys(re.sub(r"\b\d+\b", "*", site) for site in self.seen))  # depth aside
            raise UserError(f"no site of this network matches {missing[0]!r}; it has {there}")


class Evaluation:
    """The tap of one evaluation."""

    def __init__(self, run: Run, context: Context):
        self.run, self.context = run, context
        self.key = (context.branch, context.stage)
        self.x = run.coordinate.place(context)
        self.computed: set[str] = set()
        self.rows: Sequence[bool] | None = None  # which are to be computed; None until it is decided
        self.mode: Mode = "outside"  # of a cached site; or of one that is skipped
        self.base: Tensor | None = None  # the probe's output
        self.entry: tuple[str, Tensor] | None = None  # the last site that could check a draft, and its input
        if run.branches and context.branch not in run.branches:
            self.rows, self.mode = [True], "inside"
        elif not run.policy.probe:
            self._decide(None, None)

    def __call__(self, site: str, compute: Compute, h: Tensor) -> Tensor:
        run, cached = self.run, self.run.cached(site)
        if site == run.policy.probe and self.rows is None:
            return self._probe(site, compute, h, cached)
        if run.policy.check and self.mode != "outside" and fnmatchcase(site, run.policy.check):
            return self._check(site, compute, h)
        if self.mode == "passing":
            return h
        if cached and self.mode == "outside":
            return self._cached(site, compute, h)
        return self._plain(site, compute, h)

    def _plain(self, site: str, compute: Compute, h: Tensor) -> Tensor:
        out = compute(h)
        if self.mode != "passing":  # nothing inside it decided to skip the rest
            self.computed.add(site)
        return out

    def _decide(self, h: Tensor | None, out: Tensor | None) -> None:
        policy, states = self.run.policy, self.run.states
        state = states[self.key] if self.key in states else policy.init()
        self.rows, states[self.key] = policy.decide(self.context, state, h, out)

    def _probe(self, site: str, compute: Compute, h: Tensor, cached: bool) -> Tensor:
        """Where the policy looks. Inside a cached site that need not be computed all else is passed through."""
        if not self.run.policy.early:
            self.computed.add(site)
            self.base = out = compute(h)
            self._decide(h, out)
        else:
            self._decide(h, None)
            out = h
        if self.mode == "inside" and not any(self.rows or ()):
            self.mode = "passing"
        elif self.run.policy.early:
            return self(site, compute, h)
        return out

    def _cached(self, site: str, compute: Compute, h: Tensor) -> Tensor:
        run, key = self.run, (*self.key, site)
        memory = run.memories.get(key, Memory())
        if self.rows is not None and not any(self.rows) and not run.policy.check:
            return self._predicted(memory, h)
        self.mode = "inside" if self.rows is None or any(self.rows) else "passing"
        out = compute(h)
        self.mode = "outside"
        rows = self.rows
        if rows is None:  # the probe is still to come
            self.computed.add(site)
            return out
        drafted = out if all(rows) else self._predicted(memory, h)
        if any(rows):
            self.computed.add(site)
            base = self._base(h)
            if base is not None and base.shape != out.shape:
                raise UserError(
                    f"the cache compares {site!r}, {list(out.shape)}, with {run.policy.probe or 'its input'!r}, "
                    f"{list(base.shape)}: choose sites of one shape"
                )
            feature = out if base is None else out - base
            run.memories[key] = memory.update(self.x, feature, rows, run.predictor.size)
            if run.study is not None:
                run.study.see(self.context, site, feature)
        if run.policy.check:
            return self._verified(rows, drafted, out)
        self.base = None
        return select(rows, out, drafted)

    def _predicted(self, memory: Memory, h: Tensor) -> Tensor:
        base = self._base(h)
        feature = memory.predict(self.x, self.run.predictor)
        return feature if base is None else base + feature

    def _base(self, h: Tensor) -> Tensor | None:
        return {"": None, "input": h, "probe": self.base}[self.run.base]

    def _check(self, site: str, compute: Compute, h: Tensor) -> Tensor:
        """A site that may be the last one. The last one runs even in a skipped row, there on its predicted input."""
        run, rows, mode = self.run, self.rows or (), self.mode
        if any(rows):
            self.entry = (site, h)
        if all(rows) or (mode == "inside" and site != run.last):
            self.computed.add(site)
            return compute(h)
        if site != run.last:
            return h
        self.mode = "inside"
        self.computed.add(site)
        out = compute(select(rows, h, run.memories[*self.key, f"into {site}"].predict(self.x, run.predictor)))
        self.mode = mode
        return out

    def _verified(self, rows: Sequence[bool], drafted: Tensor, out: Tensor) -> Tensor:
        """After a cached site whose end was checked: out is the last site's real output in every row."""
        run = self.run
        if self.entry is not None:
            run.last, h = self.entry
            key = (*self.key, f"into {run.last}")
            run.memories[key] = run.memories.get(key, Memory()).update(self.x, h, rows, run.predictor.size)
            self.entry = None
        if not all(rows):
            run.states[self.key] = run.policy.verify(self.context, run.states[self.key], drafted, out)
        return out
