"""ERW: the first blocks learn the encoder's features of clean images before any denoising."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.diffusion.alignment import negative_cosine, tokens_of
from gen.diffusion.denoiser import DenoiserLike
from gen.diffusion.net import unwrap
from gen.diffusion.tap import Compute
from gen.training.objectives import Batch, Roles, Step
from gen.training.objectives.denoise import drop_condition
from gen.training.objectives.repa import REPA, site_shape

__all__ = ["ERW", "StopAfter"]


@dataclass(frozen=True)
class ERW(REPA):
    """Embedded representation warm-up (Liu et al. 2025): REPA in two phases.

    In the first, clean images at t = 0 are aligned at `warm_site`, and the blocks after it do not change. In the
    second, denoising is aligned at `site` with a weight that decays. One head serves both. Optimiser and averages
    continue from phase to phase; the authors' start anew.

    Attributes:
        weight: of the alignment at the start of the second phase; published 6 for XL, 3 for L, 1 for smaller ones.
        warmup: steps of the first phase.
        warm_site: where clean images are aligned; published after the 4th block, with `site` after the 14th.
        warm_weight: of the alignment in the first phase.
        halflife: steps in which the weight of the second phase halves.
    """

    weight: float = 1.0
    warmup: int = 100_000
    warm_site: str = "hidden.3"
    warm_weight: float = 0.5
    halflife: float = 50_000.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, warmup="[0, inf)", warm_weight="[0, inf)", halflife="(0, inf)")

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        self.check_net(net)
        shape, warm_shape = (site_shape(net, site) for site in (self.site, self.warm_site))
        if shape != warm_shape:
            raise UserError(
                f"ERW: tokens x width is {list(shape)} at {self.site} and {list(warm_shape)} at {self.warm_site}, "
                "but one head serves both: choose sites of one shape"
            )
        return super().roles(net, teacher)

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        after = batch.step - self.warmup
        if after < 0:
            yield self.warm_up(roles, batch)
        else:
            weight = self.weight * 2 ** (-after / self.halflife)
            yield from REPA.__call__(replace(self, weight=weight), roles, batch)

    def warm_up(self, roles: Roles, batch: Batch) -> Step:
        """Return the loss of a step of the first phase."""
        f = roles["net"]
        features, batch = self.encode(batch)
        cond, t = drop_condition(f, batch, self.class_dropout), torch.zeros(len(batch.x), dtype=torch.float64)
        if not f.path.t_to_network(t).isfinite().all():
            raise UserError(
                f"ERW warms up at t = 0, for which {type(f.path).__name__} has no finite time value: take flow or vp"
            )
        if unwrap(f.net) is not f.net:
            raise UserError("ERW's warm-up leaves weights without a gradient: it runs in one process, not in several")
        tap = StopAfter(self.warm_site)
        f.output(batch.x, batch.to_device(t), cond, tap=tap)
        assert tap.value is not None
        loss = negative_cosine(roles["head"].net(tokens_of(tap.value)), features.tokens)
        return ("net", "head"), self.warm_weight * loss, {"alignment": loss}


@dataclass
class StopAfter:
    """A tap that stops after a site: it keeps the site's value, and skips all later blocks.

    No loss depends on the layers that are computed all the same, such as the final one.

    Attributes:
        site: the last site to compute.
        value: its value, once it was computed.
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
