"""Guidance that keeps the conditional prediction's contrast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.spec import build, part
from gen.diffusion.parameterisation import V
from gen.diffusion.path import NoisePath, Prediction
from gen.samplers.guides.lib.two_predictions import Pair, Rule, dot, towards

__all__ = ["Rescale"]


@dataclass(frozen=True)
class Rescale(Pair):
    """Classifier-free guidance scaled back to the standard deviation of c (Lin et al. 2024, eqs. 14-16).

    g = u + scale (c - u);  phi g std(c) / std(g) + (1 - phi) g, with each sample's std over all its numbers. phi = 0 is
    plain guidance. space: the parameterisation in which this is done, for it is another rule in each; the paper's is
    its network's own, v.
    """

    phi: float = 0.7
    space: Any = part("diffusion.parameterisation", default=V())

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "space", build("diffusion.parameterisation", self.space))
        if not 0 <= self.phi <= 1:
            raise UserError(f"Rescale: phi = {self.phi}; it must be in [0, 1]")

    def rule(self, times: Tensor) -> Rule:
        def rule(path: NoisePath, x: Tensor, t: Tensor, c: Prediction, u: Prediction) -> Prediction:
            g = self.space.target(path, *towards(u, c, self.scale), t)
            ratio = spread(self.space.target(path, *c, t)) / spread(g).clamp(min=torch.finfo(x.dtype).tiny)
            return self.space.solve(path, x, (self.phi * ratio + 1 - self.phi).to(g) * g, t)

        return rule


def spread(h: Tensor) -> Tensor:
    """Each sample's standard deviation times the root of its size, [B, 1, ...]."""
    centred = h - h.mean(tuple(range(1, h.ndim)), keepdim=True)
    return dot(centred, centred).sqrt()
