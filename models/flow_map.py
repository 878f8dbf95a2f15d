"""FlowMap: any denoiser with a second time, the one that a jump goes to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.diffusion.denoiser import Cond
from gen.diffusion.net import members
from gen.diffusion.tap import Chain, Compute, Tap
from gen.models.layers.embed import TimeEmbedding
from gen.models.layers.wrapper import Wrapper, WrapperSpec

__all__ = ["FlowMap", "FlowMapNet"]


@dataclass(frozen=True)
class FlowMap(WrapperSpec):
    """A denoiser of two times, t where it is and s where it goes, as flow maps need (CTM, Shortcut, MeanFlow).

    The inner network's embedding of t gets an embedding of s added, alike but for a last layer that starts at zero: a
    fresh flow map is its inner network to the bit, whatever s is. Presets: DiT's.

    Attributes:
        tell: "target" embeds s, "interval" embeds t - s, as MeanFlow does (Geng et al. 2025).
        lowest: both times are clamped to it before they are embedded; EDM's path passes log sigma / 4, and so -inf for
            t = 0.
    """

    tell: Literal["target", "interval"] = "target"
    lowest: float = -4.0

    def build(self) -> FlowMapNet:
        """Return a fresh network."""
        return FlowMapNet(self)


class FlowMapNet(Wrapper):
    """net(x [B, ...], t [B], cond, s=[B]) -> like x. Without s it takes s = t: the slope at t of the map's path.

    So solvers that know one time only work as on any denoiser. At the site "time" taps see the sum of both embeddings.
    """

    def __init__(self, spec: FlowMap):
        super().__init__(spec)
        self.inner = spec.inner.build()
        self.target_embedder = TimeEmbedding(
            _width(self.inner),
            freq_shift=getattr(spec.inner, "freq_shift", 0),
            max_period=getattr(spec.inner, "max_period", 10_000.0),
            scale=getattr(spec.inner, "time_scale", 1.0),
            convention=getattr(spec.inner, "time_convention", "noise") if spec.tell == "target" else "noise",
        )
        for weight in self.target_embedder.mlp[2].parameters():
            nn.init.zeros_(weight)

    def forward(self, x: Tensor, t: Tensor, cond: Cond, *, s: Tensor | None = None, tap: Tap | None = None) -> Tensor:
        if s is not None and s.shape != t.shape:
            raise UserError(f"s has shape {list(s.shape)}; it must be that of t, {list(t.shape)}")

        def add_target(site: str, compute: Compute, h: Tensor) -> Tensor:
            return compute(h) + self._embed_target(t, s) if site == "time" else compute(h)

        # The given tap is the outer one: what it sees or replaces at "time" is the sum of both embeddings.
        return self.inner(x, t, cond, tap=add_target if tap is None else Chain((tap, add_target)))

    def _embed_target(self, t: Tensor, s: Tensor | None) -> Tensor:
        """Return the embedding of s, or of t - s: [B, width]."""
        t = t.clamp(min=self.spec.lowest)
        s = t if s is None else s.clamp(min=self.spec.lowest)
        return self.target_embedder(s if self.spec.tell == "target" else t - s)


class _TimeSite(Exception):
    """Ends a call of a network at its site "time"."""


@torch.no_grad()
def _width(net: Any) -> int:
    """Return the width of a network's embedding of time, by a call that ends there."""

    def stop_at_time(site: str, compute: Compute, h: Tensor) -> Tensor:
        out = compute(h)
        if site == "time":
            raise _TimeSite(out.shape[-1])
        return out

    x, y = torch.zeros(1, *(members(net).state_shape or ())), torch.zeros(1, dtype=torch.int64)
    try:
        net(x, torch.zeros(1), {"y": y}, tap=stop_at_time)
    except _TimeSite as reached:
        return int(reached.args[0])
    raise UserError(f"{type(net.spec).__name__} has no site 'time', where a flow map adds its target's embedding")
