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
    """Anything that predicts data and noise at x_t: a trained network, an exact world, another denoiser under a guide.

    Must hold: the prediction for row i depends on row i of the arguments alone, and nothing is remembered between
    calls, but for a guide within its loop; alpha(t) x0 + sigma(t) eps = x unless a guide made the pair (CFG++).
    """

    @property
    def path(self) -> NoisePath:
        """The path that x_t lies on."""
        ...

    def __call__(
        self, x: Tensor, t: Tensor, cond: Cond | None = None, *, s: Tensor | None = None, tap: Tap | None = None
    ) -> Prediction:
        """Predict E[x0 | x_t] and E[eps | x_t].

        Args:
            x: state [B, ...]; any floating dtype.
            t: its time in (0, t1], 0-d float64 on the CPU (sampling) or [B] (training, or a time for each sample).
            cond: tensors [B, ...] on x's device; None or {} for no condition.
            s: the time that a flow map jumps to, as t; x0 and eps are then those of the chord from t to s.
            tap: passed to the network, see gen.diffusion.tap; a denoiser without one ignores it.

        Returns:
            x0 and eps, of x's shape and dtype.
        """
        ...

    def null(self, cond: Cond) -> Cond:
        """Return the condition that stands for "no condition".

        Args:
            cond: tensors [B, ...]; the result has its keys, shapes and devices.
        """
        ...


@dataclass(frozen=True, eq=False)
class Denoiser:
    """A trained network as a denoiser.

    On a path of masks (gen/text/mask_path.py) it only holds net and path, and parameterisation is None.

    Attributes:
        net: a gen.diffusion.net.Net.
        path: that it was trained on.
        parameterisation: what its output means, and how its input is scaled.
    """

    net: nn.Module
    path: NoisePath
    parameterisation: Parameterisation

    def __call__(
        self, x: Tensor, t: Tensor, cond: Cond | None = None, *, s: Tensor | None = None, tap: Tap | None = None
    ) -> Prediction:
        return self.parameterisation.solve(self.path, x, self.output(x, t, cond, s=s, tap=tap), t)

    def output(
        self, x: Tensor, t: Tensor, cond: Cond | None = None, *, s: Tensor | None = None, tap: Tap | None = None
    ) -> Tensor:
        """Return the network's raw output at x_t, shaped as x, which a training loss compares with its target."""
        scaled = expand(self.parameterisation.scale(self.path, t), x) * x
        target = None if s is None else self.t_to_network(s, x)
        return self.net(scaled, self.t_to_network(t, x), cond or {}, s=target, tap=tap)

    def null(self, cond: Cond) -> Cond:
        return unwrap(self.net).null(cond)

    def t_to_network(self, t: Tensor, x: Tensor) -> Tensor:
        """Return the network's time for t, 0-d or [B]: [B], on x's device, float64 if x is and float32 otherwise."""
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        return self.path.t_to_network(t).to(device=x.device, dtype=dtype).expand(len(x))


@dataclass(eq=False)
class CountingDenoiser:
    """A denoiser that counts its calls.

    Attributes:
        inner: the denoiser that is called.
        calls: so far.
        rows: of all batches so far: evaluations of single samples.
    """

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
