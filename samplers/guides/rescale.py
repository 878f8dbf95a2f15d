"""Guidance that keeps the conditional prediction's contrast."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gen.config.fields import check_fields
from gen.config.spec import part
from gen.diffusion.parameterisation import Parameterisation, V
from gen.diffusion.path import NoisePath, Prediction
from gen.samplers.guides.lib.two_predictions import TwoPredictionGuide, dot, extrapolate

__all__ = ["Rescale"]


@dataclass(frozen=True)
class Rescale(TwoPredictionGuide):
    """Classifier-free guidance scaled back to the standard deviation of c (Lin et al. 2024, eqs. 14-16).

    g = u + scale (c - u);  phi g std(c) / std(g) + (1 - phi) g, with each sample's std over all its numbers.

    Attributes:
        phi: in [0, 1]; 0 is plain guidance.
        space: the parameterisation in which this is done, for it is another rule in each; the paper's is its network's
            own, v.
    """

    phi: float = 0.7
    space: Parameterisation = part("diffusion.parameterisation", default=V())

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, phi="[0, 1]")

    def combine(self, path: NoisePath, x: Tensor, t: Tensor, c: Prediction, u: Prediction) -> Prediction:
        g = self.space.target(path, *extrapolate(u, c, self.scale), t)
        ratio = _spread(self.space.target(path, *c, t)) / _spread(g).clamp(min=torch.finfo(x.dtype).tiny)
        return self.space.solve(path, x, (self.phi * ratio + 1 - self.phi).to(g) * g, t)


def _spread(h: Tensor) -> Tensor:
    """Each sample's standard deviation times the root of its size, [B, 1, ...]."""
    centred = h - h.mean(tuple(range(1, h.ndim)), keepdim=True)
    return dot(centred, centred).sqrt()
