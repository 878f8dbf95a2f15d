"""Some rows of a batch under a cache, computed or skipped as a smaller batch of their own."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gen.diffusion.tap import Compute, SiteCall, run_site_call
from gen.samplers.caches.lib.memory import Memory
from gen.samplers.caches.lib.parts import Rows

if TYPE_CHECKING:
    from gen.samplers.caches.lib.session import CachedForward

__all__ = ["RowsForward", "indices", "joined"]


def indices(rows: Rows, which: bool) -> Tensor:
    """Return the indices of the rows that are, or are not, to be computed, int64.

    Args:
        rows: decisions.
        which: which of both.
    """
    return torch.tensor([i for i, row in enumerate(rows) if row == which], dtype=torch.int64)


def joined(parts: Sequence[tuple[Tensor, Tensor]], n: int) -> Tensor:
    """Return one tensor of n rows from parts of them.

    Args:
        parts: indices and values [rows, ...] of each.
        n: rows of all.
    """
    whole = parts[0][1].new_zeros(n, *parts[0][1].shape[1:])
    for index, values in parts:
        whole.index_copy_(0, index.to(whole.device), values)
    return whole


class RowsForward:
    """The tap of one evaluation for rows that are all computed, or all predicted.

    Args:
        whole: the evaluation that they are part of.
        index: their indices in the batch.
        computes: whether they are computed.
    """

    def __init__(self, whole: CachedForward, index: Tensor, computes: bool):
        self.whole, self.index, self.computes = whole, index, computes
        self.inside = self.passing = False  # of a cached site; of one that is skipped
        self.probed: Tensor | None = None
        self.last_check: tuple[str, Tensor] | None = None

    def __call__(self, site: str, compute: Compute, h: Tensor) -> Tensor:
        return run_site_call(self.stepwise(site, h), compute)

    def stepwise(self, site: str, h: Tensor) -> SiteCall:
        """Return the call of a site in two halves, see gen.diffusion.tap.SiteCall."""
        self.whole.met = True
        whole, session = self.whole, self.whole.session
        if not self.inside and session.caches(site):
            return (yield from self._cached(site, h))
        passing = self.passing
        if passing and not (session.policy.check and site == session.last_site):
            return h
        if passing:  # the site that checks the draft runs on its predicted input
            h = self._remembered(f"into {site}")
        elif self.inside and session.policy.check and fnmatchcase(site, session.policy.check):
            self.last_check = (site, h)
        whole.computed.add(site)
        self.passing = False
        out = yield h
        self.passing = passing
        if site == session.policy.probe:
            self.probed = out
        return out

    def _remembered(self, site: str) -> Tensor:
        """Return what is predicted of a site for these rows."""
        session = self.whole.session
        memory = session.memories[*self.whole.key, site].take(self.index)
        return memory.predict(self.whole.x, session.predictor)

    def _cached(self, site: str, h: Tensor) -> SiteCall:
        session, whole = self.whole.session, self.whole
        if not self.computes and not session.policy.check:
            return self._based(self._remembered(site), h)
        self.inside, self.passing = True, not self.computes
        out = yield h
        self.inside = self.passing = False
        if self.computes:
            whole.computed.add(site)
            self._remember(site, out if (base := self._base(h)) is None else out - base)
            if self.last_check is not None:
                session.last_site = self.last_check[0]
                self._remember(f"into {session.last_site}", self.last_check[1])
        else:
            draft = self._based(self._remembered(site), h)
            n = len(whole.rows or ())
            draft, real = (joined([(self.index, value)], n) for value in (draft, out))  # no difference in other rows
            session.states[whole.key] = session.policy.verify(whole.context, session.states[whole.key], draft, real)
        return out

    def _remember(self, site: str, feature: Tensor) -> None:
        """Add a feature of these rows to the memory of a site."""
        session, key = self.whole.session, (*self.whole.key, site)
        memory, rows = session.memories.get(key, Memory()), self.whole.rows or ()
        whole = joined([(self.index, feature)], len(rows))
        session.memories[key] = memory.update(self.whole.x, whole, rows, session.predictor.size)

    def _base(self, h: Tensor) -> Tensor | None:
        return {"none": None, "input": h, "probe": self.probed}[self.whole.session.subtract]

    def _based(self, feature: Tensor, h: Tensor) -> Tensor:
        base = self._base(h)
        return feature if base is None else base + feature
