"""ERW: the first blocks learn the encoder's view of clean images, before any noise is seen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.diffusion.alignment import negative_cosine, tokens_of
from gen.diffusion.denoiser import DenoiserLike
from gen.diffusion.net import unwrap
from gen.diffusion.tap import Compute
from gen.training.objectives import Batch, Roles, Step
from gen.training.objectives.denoise import drop_condition
from gen.training.objectives.repa import REPA, site_shape

__all__ = ["ERW", "Until"]


@dataclass(frozen=True)
class ERW(REPA):
    """Embedded representation warm-up (Liu et al. 2025): REPA in two phases, told apart by the step.

    For `warmup` steps clean images at t = 0 go as far as `warm_site` and nothing is trained but the alignment there,
    warm_weight strong: what comes after that site does not change. Then denoising, with alignment at `site` whose
    weight halves every `halflife` steps. Published: warm_site after the 4th block, site after the 14th, weight 6 for
    XL, 3 for L and 1 for smaller ones, one head for both. Optimiser and averages go on from phase to phase; the
    authors' start anew.
    """

    weight: float = 1.0
    warmup: int = 100_000
    warm_site: str = "hidden.3"
    warm_weight: float = 0.5
    halflife: float = 50_000.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup < 0 or self.warm_weight < 0 or not self.halflife > 0:
            raise UserError(
                f"ERW: warmup = {self.warmup}, warm_weight = {self.warm_weight}, halflife = {self.halflife}; it must "
                "be warmup >= 0, warm_weight >= 0, halflife > 0"
            )

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        self.check_net(net)
        here, there = (site_shape(net, site) for site in (self.site, self.warm_site))
        if here != there:
            raise UserError(
                f"ERW: tokens x width is {list(here)} at {self.site} and {list(there)} at {self.warm_site}, "
                "but one head serves both: choose sites of one shape"
            )
        return super().roles(net, teacher)

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        after = batch.step - self.warmup
        if after < 0:
            yield self.warm(roles, batch)
        else:
            weight = self.weight * 2 ** (-after / self.halflife)
            yield from REPA.__call__(replace(self, weight=weight), roles, batch)

    def warm(self, roles: Roles, batch: Batch) -> Step:
        """A step of the first phase."""
        f = roles["net"]
        features, batch = self.look(batch)
        cond, t = drop_condition(f, batch, self.class_dropout), torch.zeros(len(batch.x), dtype=torch.float64)
        if not f.path.t_to_network(t).isfinite().all():
            raise UserError(
                f"ERW warms up at t = 0, which {type(f.path).__name__} cannot tell a network: take flow or vp"
            )
        if unwrap(f.net) is not f.net:
            raise UserError("ERW's warm-up leaves weights without a gradient: it runs in one process, not in several")
        tap = Until(self.warm_site)
        f.output(batch.x, t.to(batch.x.device), cond, tap=tap)
        assert tap.value is not None
        loss = negative_cosine(roles["head"].net(tokens_of(tap.value)), features.tokens)
        return ("net", "head"), self.warm_weight * loss, {"alignment": loss}


@dataclass
class Until:
    """Computes as far as a site, and keeps its value; tokens then pass the other blocks unchanged and uncomputed.

    What comes after all the same, such as the final layer, no loss depends on.
    """

    site: str
    value: Tensor | None = None

    def __call__(self, site: str, compute: Compute, h: Tensor) -> Tensor:
        if self.value is not None and site.startswith("hidden."):
            return h
        out = compute(h)
        if site == self.site:
            self.value = out
        return out
