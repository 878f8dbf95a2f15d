"""Blocks left out by a searched mask."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.formats import NEWEST, check_format
from gen.config.reading import read_json
from gen.diffusion.cache_report import CacheReport
from gen.diffusion.contracts import Cache
from gen.diffusion.tap import Chain, Compute, Context, SiteCall, Skip, Tap, run_site_call

__all__ = ["SearchedMask", "SkipSession"]


@dataclass(frozen=True)
class SearchedMask(Cache):
    """The mask of a JSON file that a search wrote, {"sites": ["blocks.0", ...], "mask": [[true, ...], ...], ...}.

    mask[step][k] says whether sites[k] is computed at that step (AutoDiffusion, Li et al. 2023). What is left out adds
    nothing to the tokens; nothing is remembered. The mask is for its own number of steps, and for the grid beside it.
    No site may lie within another one. Raises UserError when it turns out that the network lacks one of them.

    Attributes:
        file: what `gen search --keep --out` wrote.
    """

    file: str

    def __post_init__(self) -> None:
        check_fields(self)

    def start(self, steps: int) -> SkipSession:
        content = read_json(Path(self.file))
        if isinstance(content, dict) and "format" in content:  # it has none if it was written by hand
            check_format(content, NEWEST["search"], self.file)
        mask, sites = (content.get(key) if isinstance(content, dict) else None for key in ("mask", "sites"))
        if not isinstance(mask, list) or not isinstance(sites, list) or not all(isinstance(row, list) for row in mask):
            raise UserError(f"{self.file} holds no searched mask: it needs sites and mask, as gen search --keep writes")
        if len(mask) != steps or any(len(row) != len(sites) for row in mask):
            raise UserError(f"{self.file} has a mask of {len(mask)} steps of {len(sites)} blocks, not of {steps} steps")
        if not all(type(on) is bool for row in mask for on in row) or not all(type(site) is str for site in sites):
            raise UserError(f"{self.file}: a mask is of true and false only, and its sites are names")
        return SkipSession(tuple(map(tuple, mask)), tuple(sites))


@dataclass(frozen=True)
class SkipSession:
    """A contextual tap for one loop, which leaves out sites.

    Attributes:
        mask: mask[step][k] says whether sites[k] is computed.
        sites: names of sites, whose output is added to their input.
        contexts: of the evaluations so far.
        met: the network's sites.
    """

    mask: tuple[tuple[bool, ...], ...]
    sites: tuple[str, ...]
    contexts: dict[Context, None] = field(default_factory=dict, compare=False)
    met: dict[str, None] = field(default_factory=dict, compare=False)
    decides_by_features: ClassVar[bool] = False

    def bind(self, context: Context) -> Tap:
        if context not in self.contexts:
            if self.contexts:
                self._check_sites()
            self.contexts[context] = None
        left_out = tuple(site for site, on in zip(self.sites, self.mask[context.step], strict=True) if not on)
        return Chain((SiteRecorder(self.met), Skip(left_out)))

    def report(self) -> CacheReport:
        """Return what was computed so far, at the end of an evaluation."""
        self._check_sites()
        computed = tuple(self.mask[context.step] for context in self.contexts)
        share_needed = tuple(float(all(row)) for row in computed)
        return CacheReport(len(self.mask), tuple(self.contexts), self.sites, computed, share_needed)

    def _check_sites(self) -> None:
        missing = [site for site in self.sites if site not in self.met]
        if missing:
            there = ", ".join(self.met) or "none"
            raise UserError(f"the network has no site {', '.join(missing)}; it has {there}")


@dataclass(frozen=True)
class SiteRecorder:
    """A tap that records the name of every site."""

    met: dict[str, None]

    def __call__(self, site: str, compute: Compute, h: Tensor) -> Tensor:
        return run_site_call(self.stepwise(site, h), compute)

    def stepwise(self, site: str, h: Tensor) -> SiteCall:
        self.met[site] = None
        return (yield h)
