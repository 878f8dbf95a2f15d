"""One session of a cache: the tap that computes, or predicts, and remembers.

A cached site is computed only if the policy says so; otherwise the predictor answers from what the same branch and
stage computed at earlier steps. A policy with a probe decides inside the network: until then all is computed, and if it
decides to skip inside a cached site, the rest of that site's computation is passed through and its result replaced.
Rows decide for themselves. Where the network can be called for some rows (gen.diffusion.tap.evaluate_network), those
that need it are computed as a smaller batch; elsewhere all are computed, and the others keep their prediction.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.diffusion.cache_report import CacheReport
from gen.diffusion.contracts import Cache
from gen.diffusion.tap import Compute, Context, PartialNetwork, SiteCall, Tap, run_site_call
from gen.samplers.caches.coordinates.step import Step
from gen.samplers.caches.lib.memory import Memory, select
from gen.samplers.caches.lib.parts import CachePolicy, Calibrator, Coordinate, FeaturePredictor, Rows
from gen.samplers.caches.lib.row_parts import RowsForward, indices, joined

__all__ = ["CachePreset", "SiteCacheSession"]

Mode = Literal["outside", "inside", "passing"]


class CachePreset(Cache):
    """A cache made of parts; parts that do not fit each other are refused when it is built."""

    def __post_init__(self) -> None:
        check_fields(self)
        self.start(1)


@dataclass(eq=False)
class SiteCacheSession:
    """A contextual tap for one batch's loop, at any sites.

    Raises UserError when it turns out that the network has no such sites.

    Attributes:
        steps: of the loop.
        policy, predictor, coordinate: see gen.samplers.caches.lib.parts.
        sites: patterns of the sites to cache ("blocks.*.attn"); inside a cached site nothing else is cached.
        branches: the branches to cache, () for all.
        subtract: from a site's output before it is remembered: nothing, the site's input, or the probe's output.
        calibrator: observes every feature that is computed; None for no measurement.
        forwards: the evaluations so far, by step, stage and branch.
        states: the policy's, by branch and stage.
        memories: by branch, stage and site.
        met: every site met so far, in order, and whether it is cached.
        last_site: the site that checks a draft.
        skip_share: sites that a skipped evaluation computes, out of all.
    """

    steps: int
    policy: CachePolicy
    predictor: FeaturePredictor
    sites: Sequence[str]
    _: KW_ONLY
    coordinate: Coordinate = Step()  # noqa: RUF009 - frozen
    branches: Sequence[str] = ()
    subtract: Literal["none", "input", "probe"] = "none"
    calibrator: Calibrator | None = None
    forwards: dict[tuple[int, int, str], CachedForward] = field(default_factory=dict, init=False)
    states: dict[tuple[str, int], Any] = field(default_factory=dict, init=False)
    memories: dict[tuple[str, int, str], Memory] = field(default_factory=dict, init=False)
    met: dict[str, bool] = field(default_factory=dict, init=False)
    last_site: str = field(default="", init=False)
    skip_share: float = field(default=1.0, init=False)

    def __post_init__(self) -> None:
        if not self.sites:
            raise UserError("a cache needs at least one pattern of sites, such as 'blocks.*.attn'")
        if self.subtract == "probe" and not self.policy.probe:
            raise UserError(f"subtract = 'probe' needs a policy with a probe; {type(self.policy).__name__} has none")

    @property
    def decides_by_features(self) -> bool:
        """Return whether features are probed, checked or measured."""
        return bool(self.policy.probe or self.policy.check or self.calibrator is not None)

    def bind(self, context: Context) -> Tap:
        """Return the tap of one evaluation; always the same one for the same context."""
        key = (context.step, context.stage, context.branch)
        if key not in self.forwards:
            if context.steps != self.steps:
                raise UserError(f"a cache was started for {self.steps} steps, but the loop has {context.steps}")
            if len(self.forwards) == 1:
                self._check_sites()
            self.forwards[key] = CachedForward(self, context)
        return self.forwards[key]

    def evaluate(self, context: Context, network: PartialNetwork, whole: Tap) -> Tensor:
        """Return an evaluation's output, rows computed apart where it pays; see gen.diffusion.tap.evaluate_network."""
        self.bind(context)
        return self.forwards[context.step, context.stage, context.branch].evaluate(network, whole)

    def caches(self, site: str) -> bool:
        """Return whether a site is one to cache."""
        if site not in self.met:
            self.met[site] = any(fnmatchcase(site, pattern) for pattern in self.sites)
        return self.met[site]

    def report(self) -> CacheReport:
        """Return what was computed so far, at the end of an evaluation."""
        self._check_sites()
        done = [forward for forward in self.forwards.values() if forward.met]
        return CacheReport(
            steps=self.steps,
            contexts=tuple(forward.context for forward in done),
            sites=tuple(self.met),
            computed=tuple(tuple(site in forward.computed for site in self.met) for forward in done),
            share_needed=tuple(sum(f.rows) / len(f.rows) if f.rows is not None else 1.0 for f in done),
            memory=sum(memory.bytes for memory in self.memories.values()),
            calibration={} if self.calibrator is None else self.calibrator.result(),
        )

    def _check_sites(self) -> None:
        wanted = [pattern for pattern in (self.policy.probe, *self.sites) if pattern]
        missing = [pattern for pattern in wanted if not any(fnmatchcase(site, pattern) for site in self.met)]
        if missing:
            there = ", ".join(dict.fromkeys(re.sub(r"\b\d+\b", "*", site) for site in self.met))  # depth aside
            raise UserError(f"no site of this network matches {missing[0]!r}; it has {there or 'none'}")


class CachedForward:
    """The tap of one evaluation: computes a site, predicts it, or passes its input through."""

    def __init__(self, session: SiteCacheSession, context: Context):
        self.session, self.context = session, context
        self.key = (context.branch, context.stage)
        self.x = session.coordinate.value(context)
        self.computed: set[str] = set()
        self.met = False  # whether the network came to a site
        self.rows: Rows | None = None  # the ones to compute; None until it is decided
        self.mode: Mode = "outside"  # of a cached site; or of one that is skipped
        self.probed: Tensor | None = None  # the probe's output
        self.last_check: tuple[str, Tensor] | None = None  # the last site that could check a draft, and its input
        self.divisible = False  # whether rows may be computed apart
        self.split = False  # whether they are, after a pass in which all are skipped
        self.always = 0  # sites that a skipped evaluation computes
        if session.branches and context.branch not in session.branches:
            self.rows, self.mode = [True], "inside"
        elif not session.policy.probe:
            self._decide(None, None)

    def evaluate(self, network: PartialNetwork, whole: Tap) -> Tensor:
        """Return the network's output, the rows that need it computed apart if they are few enough."""
        session, self.divisible = self.session, True
        rows = self.rows or ()
        if any(rows) and not all(rows):  # known before the network runs
            parts = [
                (indices(rows, asking), RowsForward(self, indices(rows, asking), asking)) for asking in (True, False)
            ]
            return joined([(index, network(tap, index)) for index, tap in parts], len(rows))
        out = network(whole, None)
        if not self.split:
            if session.met and self.rows is not None and all(self.rows):
                session.skip_share = self.always / len(session.met)
            return out
        index = indices(self.rows or (), True)
        return out.index_copy(0, index.to(out.device), network(RowsForward(self, index, True), index))

    @property
    def now(self) -> Rows | None:
        """The rows to compute in this pass; None until it is decided."""
        return (False,) if self.split else self.rows

    def __call__(self, site: str, compute: Compute, h: Tensor) -> Tensor:
        return run_site_call(self.stepwise(site, h), compute)

    def stepwise(self, site: str, h: Tensor) -> SiteCall:
        """Return the call of a site in two halves, see gen.diffusion.tap.SiteCall."""
        self.met = True
        policy, cached = self.session.policy, self.session.caches(site)
        if site == policy.probe and self.rows is None:
            return (yield from self._probe(site, h))
        if policy.check and self.mode != "outside" and fnmatchcase(site, policy.check):
            return (yield from self._check_draft(site, h))
        if self.mode == "passing":
            return h
        if cached and self.mode == "outside":
            return (yield from self._cached(site, h))
        return (yield from self._plain(site, h))

    def _plain(self, site: str, h: Tensor) -> SiteCall:
        self.always += self.mode == "outside"
        out = yield h
        if self.mode != "passing":  # nothing inside it decided to skip the rest
            self.computed.add(site)
        return out

    def _decide(self, h: Tensor | None, out: Tensor | None) -> None:
        policy, states = self.session.policy, self.session.states
        state = states[self.key] if self.key in states else policy.init()
        self.rows, states[self.key] = policy.decide(self.context, state, h, out)
        asking = sum(self.rows) / len(self.rows)
        self.always = len(self.computed) if self.mode == "inside" else self.always + 1
        # A network whose rows are all needed by and by is cheaper in one pass.
        if self.divisible and not policy.check and 0 < asking < 1 - self.session.skip_share:
            self.split = True

    def _probe(self, site: str, h: Tensor) -> SiteCall:
        """The policy's probe. Inside a cached site that need not be computed all that follows is passed through."""
        if not self.session.policy.early:
            self.computed.add(site)
            self.probed = out = yield h
            self._decide(h, out)
        else:
            self._decide(h, None)
            out = h
        if self.mode == "inside" and not any(self.now or ()):
            self.mode = "passing"
        elif self.session.policy.early:
            return (yield from self.stepwise(site, h))
        return out

    def _cached(self, site: str, h: Tensor) -> SiteCall:
        session, key = self.session, (*self.key, site)
        memory = session.memories.get(key, Memory())
        if self.now is not None and not any(self.now) and not session.policy.check:
            return self._predict(memory, h)
        self.mode = "inside" if self.now is None or any(self.now) else "passing"
        out = yield h
        self.mode = "outside"
        rows = self.now
        if rows is None:  # the probe is still to come
            self.computed.add(site)
            return out
        draft = out if all(rows) else self._predict(memory, h)
        if any(rows):
            self.computed.add(site)
            base = self._base(h)
            if base is not None and base.shape != out.shape:
                raise UserError(
                    f"the cache compares {site!r}, {list(out.shape)}, with {session.policy.probe or 'its input'!r}, "
                    f"{list(base.shape)}: choose sites of one shape"
                )
            feature = out if base is None else out - base
            session.memories[key] = memory.update(self.x, feature, rows, session.predictor.size)
            if session.calibrator is not None:
                session.calibrator.observe(self.context, site, feature)
        if session.policy.check:
            return self._verified(rows, draft, out)
        self.probed = None
        return select(rows, out, draft)

    def _predict(self, memory: Memory, h: Tensor) -> Tensor:
        base, feature = self._base(h), memory.predict(self.x, self.session.predictor)
        return feature if base is None else base + feature

    def _base(self, h: Tensor) -> Tensor | None:
        """What is subtracted from a site's output, of its input h."""
        return {"none": None, "input": h, "probe": self.probed}[self.session.subtract]

    def _check_draft(self, site: str, h: Tensor) -> SiteCall:
        """A site that may be the last one. The last one runs even in a skipped row, there on its predicted input."""
        session, rows, mode = self.session, self.rows or (), self.mode
        if any(rows):
            self.last_check = (site, h)
        if all(rows) or (mode == "inside" and site != session.last_site):
            self.computed.add(site)
            return (yield h)
        if site != session.last_site:
            return h
        self.mode = "inside"
        self.computed.add(site)
        predicted = session.memories[*self.key, f"into {site}"].predict(self.x, session.predictor)
        out = yield select(rows, h, predicted)
        self.mode = mode
        return out

    def _verified(self, rows: Rows, draft: Tensor, out: Tensor) -> Tensor:
        """The output of a cached site whose end was checked: the last site's real output, in every row."""
        session = self.session
        if self.last_check is not None:
            session.last_site, h = self.last_check
            key = (*self.key, f"into {session.last_site}")
            memory = session.memories.get(key, Memory())
            session.memories[key] = memory.update(self.x, h, rows, session.predictor.size)
            self.last_check = None
        if not all(rows):
            session.states[self.key] = session.policy.verify(self.context, session.states[self.key], draft, out)
        return out
