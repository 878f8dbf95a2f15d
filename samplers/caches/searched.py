"""Blocks left out as a search found."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from gen.config.errors import UserError
from gen.diffusion.tap import Chain, Compute, Context, Skip, Tap
from gen.samplers.caches.lib.report import Place, Report

__all__ = ["Searched"]


@dataclass(frozen=True)
class Searched:
    """The mask of a JSON file that a search wrote, {"sites": ["blocks.0", ...], "mask": [[true, ...], ...], ...}.

    mask[step][k] says whether sites[k] is computed at that step (AutoDiffusion, Li et al. 2023). What is left out adds
    nothing to the tokens; nothing is remembered. The mask is for its own number of steps, and for the grid beside it.
    No site may lie within another one. Raises UserError when it turns out that the network lacks one of them.
    """

    file: str

    def start(self, steps: int) -> LayerRun:
        try:
            found = json.loads(Path(self.file).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read a searched mask from {self.file}: {' '.join(str(error).split())}") from error
        mask, sites = (found.get(key) if isinstance(found, dict) else None for key in ("mask", "sites"))
        if not isinstance(mask, list) or not isinstance(sites, list) or not all(isinstance(row, list) for row in mask):
            raise UserError(f"{self.file} holds no searched mask: it needs sites and mask, as gen search --keep writes")
        if len(mask) != steps or any(len(row) != len(sites) for row in mask):
            raise UserError(f"{self.file} has a mask of {len(mask)} steps of {len(sites)} blocks, not of {steps} steps")
        if not all(type(on) is bool for row in mask for on in row) or not all(type(site) is str for site in sites):
            raise UserError(f"{self.file}: a mask is of true and false only, and its sites are names")
        return LayerRun(tuple(map(tuple, mask)), tuple(sites))


@dataclass(frozen=True)
class LayerRun:
    """A contextual tap for one walk: mask[step][k] says whether sites[k] is computed."""

    mask: tuple[tuple[bool, ...], ...]
    sites: tuple[str, ...]
    seen: dict[Context, None] = field(default_factory=dict, compare=False)
    met: dict[str, None] = field(default_factory=dict, compare=False)  # the network's sites

    def bind(self, context: Context) -> Tap:
        if context not in self.seen:
            self._check()
            self.seen[context] = None
        left_out = tuple(site for site, on in zip(self.sites, self.mask[context.step], strict=True) if not on)
        return Chain((Meet(self.met), Skip(left_out)))

    def report(self) -> Report:
        """What was computed so far, at the end of an evaluation."""
        self._check()
        rows = [self.mask[context.step] for context in self.seen]
        return Report(
            steps=len(self.mask),
            places=tuple(Place(c.step, c.stage, c.branch, c.t) for c in self.seen),
            sites=self.sites,
            computed=tuple(rows),
            asked=tuple(float(all(row)) for row in rows),
        )

    def _check(self) -> None:
        missing = [site for site in self.sites if site not in self.met]
        if self.met and missing:
            raise UserError(f"the network has no site {', '.join(missing)}; it has {', '.join(self.met)}")


@dataclass(frozen=True)
class Meet:
    """A tap that notes the name of every site it comes to."""

    met: dict[str, None]

    def __call__(self, site: str, compute: Compute, h: Tensor) -> Tensor:
        self.met[site] = None
        return compute(h)
