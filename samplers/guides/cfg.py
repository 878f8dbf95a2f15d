"""Classifier-free guidance."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gen.denoise import Cond, Denoise
from gen.errors import UserError
from gen.path import Path, Prediction
from gen.tap import Tap, branch

__all__ = ["CFG"]


@dataclass(frozen=True)
class CFG:
    """u + scale (c - u) for the conditional prediction c and the unconditional u (Ho & Salimans 2022, eq. 6).

    scale: 1 is the conditional model, 0 the unconditional one; each then costs one evaluation instead of two.
    interval: the noise levels sigma / alpha, low < level <= high, at which to guide (Kynkaanniemi et al. 2024); outside
    it only the conditional network runs.
    """

    scale: float = 1.5
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.interval is not None and not 0 <= self.interval[0] < self.interval[1]:
            raise UserError(f"CFG: interval = {self.interval}; it must be 0 <= low < high, as sigma / alpha")

    def __call__(self, f: Denoise, times: Tensor) -> Denoise:
        return Guided(f, self)


@dataclass(frozen=True, eq=False)
class Guided:
    """A denoiser under classifier-free guidance."""

    inner: Denoise
    guide: CFG

    @property
    def path(self) -> Path:
        return self.inner.path

    def __call__(
        self, x: Tensor, t: Tensor, cond: Cond | None = None, *, s: Tensor | None = None, tap: Tap | None = None
    ) -> Prediction:
        if not cond:
            raise UserError("CFG needs a condition, such as labels: none is given")
        scale = self.guide.scale
        if scale == 1 or not self._active(t):
            return self.inner(x, t, cond, s=s, tap=tap)
        uncond = self.inner(x, t, self.null(cond), s=s, tap=branch(tap, "uncond"))
        if scale == 0:
            return uncond
        c = self.inner(x, t, cond, s=s, tap=tap)
        return Prediction(uncond.x0 + scale * (c.x0 - uncond.x0), uncond.eps + scale * (c.eps - uncond.eps))

    def null(self, cond: Cond) -> Cond:
        return self.inner.null(cond)

    def _active(self, t: Tensor) -> bool:
        if self.guide.interval is None:
            return True
        low, high = self.guide.interval
        return low < float(self.path.sigma(t) / self.path.alpha(t)) <= high
