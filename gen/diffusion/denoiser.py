"""The denoiser: a network, the path it was trained on, and what its output means.

Solvers, guides, caches and distillers know only the call `f(x, t, cond, s=, tap=) -> Prediction`; the exact worlds of
gen/diffusion/worlds.py answer the same call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from gen.diffusion.net import unwrap
from gen.diffusion.parameterisation import Parameterisation
from gen.diffusion.path import NoisePath, Prediction, expand
from gen.diffusion.tap import Tap

__all__ = ["Cond", "CountingDenoiser", "Denoiser", "DenoiserLike"]

Cond = Mapping[str, Tensor]


class DenoiserLike(Protocol):
    """What solvers call: x [B, ...], t 0-d or [B], cond a mapping of tensors [B, ...], s a flow map's target time."""

    @property
    def path(self) -> NoisePath: ...

    def __call__(
        self, x: Tensor, t: Tensor, cond: Cond | None = None, *, s: Tensor | None = None, tap: Tap | None = None
    ) -> Prediction: ...

    def null(self, cond: Cond) -> Cond:
        """The condition that stands for "no condition"."""
        ...


@dataclass(frozen=True, eq=False)
class Denoiser:
    """A trained network as a denoiser. On a path of masks (gen/text/mask_path.py) it only holds the two, and
    parameterisation is None.
    """

    net: nn.Module  # one that keeps gen.diffusion.net.Net
    path: NoisePath
    parameterisation: Parameterisation

    def __call__(
        self, x: Tensor, t: Tensor, cond: Cond | None = None, *, s: Tensor | None = None, tap: Tap | None = None
    ) -> Prediction:
        return self.parameterisation.solve(self.path, x, self.output(x, t, cond, s=s, tap=tap), t)

    def output(
        self, x: Tensor, t: Tensor, cond: Cond | None = None, *, s: Tensor | None = None, tap: Tap | None = None
    ) -> Tensor:
        """The network's raw output at x_t, shaped as x: what a training loss compares with `param.target`."""
        scaled = expand(self.parameterisation.scale(self.path, t), x) * x
        target = None if s is None else self.t_to_network(s, x)
        return self.net(scaled, self.t_to_network(t, x), cond or {}, s=target, tap=tap)

    def null(self, cond: Cond) -> Cond:
        return unwrap(self.net).null(cond)

    def t_to_network(self, t: Tensor, x: Tensor) -> Tensor:
        """t, 0-d or [B], as the network is told it: [B], on x's device, float64 if x is and float32 otherwise."""
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        return self.path.t_to_network(t).to(device=x.device, dtype=dtype).expand(len(x))


@dataclass(eq=False)
class CountingDenoiser:
    """A denoiser that counts how often it is called, and how many rows it was asked for."""

    inner: DenoiserLike
    calls: int = 0
    rows: int = 0

    @property
    def path(self) -> NoisePath:
        return self.inner.path

    def __call__(
        self, x: Tensor, t: Tensor, cond: Cond | None = None, *, s: Tensor | None = None, tap: Tap | None = None
    ) -> Prediction:
        self.calls += 1
        self.rows += len(x)
        return self.inner(x, t, cond, s=s, tap=tap)

    def null(self, cond: Cond) -> Cond:
        return self.inner.null(cond)
