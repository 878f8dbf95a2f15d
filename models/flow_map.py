"""FlowMap: any denoiser, told as well the time that a jump goes to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.spec import build, part
from gen.diffusion.tap import Chain, Compute, Tap
from gen.models.dit import DiT
from gen.models.layers.embed import TimeEmbedding
from gen.models.layers.wrapper import Wrapper, state_shape

__all__ = ["FlowMap", "FlowMapNet"]


@dataclass(frozen=True)
class FlowMap:
    """A denoiser of two times, t where it is and s where it goes, as flow maps need (CTM, Shortcut, MeanFlow).

    inner: the denoiser of one time. Its embedding of t gets an embedding of s added, made alike but for a last layer
    that begins at zero: a fresh flow map is its inner network to the bit, whatever s is. tell: "target" embeds s,
    "interval" embeds t - s, as MeanFlow does (Geng et al. 2025). lowest: the least that either time counts as there;
    EDM's path tells log sigma / 4, and so -inf for t = 0.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {name: {"inner": DiT.preset(name)} for name in DiT.presets}

    inner: Any = part("models", default=DiT())
    tell: Literal["target", "interval"] = "target"
    lowest: float = -4.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "inner", build("models", self.inner))
        if isinstance(self.inner, FlowMap):
            raise UserError("FlowMap.inner is a FlowMap already; give the denoiser of one time that it has inside")

    @property
    def size(self) -> int:
        return int(self.inner.size)

    @property
    def channels(self) -> int:
        return int(self.inner.channels)

    @property
    def classes(self) -> int:
        return int(self.inner.classes)

    @staticmethod
    def preset(name: str, **changes: Any) -> FlowMap:
        """A flow map of DiT's preset of this name; changes that are no fields of a flow map are the DiT's."""
        own = {f.name: changes.pop(f.name) for f in fields(FlowMap) if f.name in changes}
        return replace(FlowMap(DiT.preset(name, **changes)), **own)

    def build(self) -> FlowMapNet:
        """The network, freshly initialised."""
        return FlowMapNet(self)


class FlowMapNet(Wrapper):
    """net(x [B, ...], t [B], cond, s=[B]) -> like x. Without s it is told s = t: the slope at t of the map's path.

    So solvers that know one time only work as on any denoiser. The sites of a tap are the inner network's; "time" has
    both embeddings. load_state_dict also takes the weights of an inner network alone: they go in, and the embedding of
    s stays as it is.
    """

    def __init__(self, spec: FlowMap):
        super().__init__()
        self.spec = spec
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
        self.register_load_state_dict_pre_hook(_load_inner_only)  # type: ignore[no-untyped-call]

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        cond: Mapping[str, Tensor],
        *,
        s: Tensor | None = None,
        tap: Tap | None = None,
    ) -> Tensor:
        if s is not None and s.shape != t.shape:
            raise UserError(f"s has shape {list(s.shape)}; it must be that of t, {list(t.shape)}")

        def told(site: str, compute: Compute, h: Tensor) -> Tensor:
            return compute(h) + self._target(t, s) if site == "time" else compute(h)

        # The given tap is the outer one: what it sees, or puts in place, at "time" is all that the network is told.
        return self.inner(x, t, cond, tap=told if tap is None else Chain((tap, told)))

    def _target(self, t: Tensor, s: Tensor | None) -> Tensor:
        """The embedding of s, or of t - s: [B, width]."""
        t = t.clamp(min=self.spec.lowest)
        s = t if s is None else s.clamp(min=self.spec.lowest)
        return self.target_embedder(s if self.spec.tell == "target" else t - s)


class _Seen(Exception):
    """Ends a look at a network's embedding of time."""


@torch.no_grad()
def _width(net: Any) -> int:
    """How wide a network's embedding of time is: a call shows it, and goes no further."""

    def look(site: str, compute: Compute, h: Tensor) -> Tensor:
        out = compute(h)
        if site == "time":
            raise _Seen(out.shape[-1])
        return out

    try:
        net(torch.zeros(1, *state_shape(net)), torch.zeros(1), {"y": torch.zeros(1, dtype=torch.int64)}, tap=look)
    except _Seen as seen:
        return int(seen.args[0])
    raise UserError(f"{type(net.spec).__name__} has no site 'time', where a flow map tells its target")


def _load_inner_only(net: FlowMapNet, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Puts the weights of an inner network alone in their place."""
    names = [name for name in state if name.startswith(prefix)]
    if any(name.startswith((f"{prefix}inner.", f"{prefix}target_embedder.")) for name in names):
        return
    for name in names:
        state[f"{prefix}inner.{name.removeprefix(prefix)}"] = state.pop(name)
    for name, weight in net.target_embedder.state_dict().items():
        state[f"{prefix}target_embedder.{name}"] = weight
