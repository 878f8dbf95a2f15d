"""Guidance that keeps the norm of the conditional prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gen.config.fields import check_fields
from gen.config.spec import part
from gen.diffusion.parameterisation import Parameterisation, Velocity
from gen.diffusion.path import NoisePath, Prediction
from gen.samplers.guides.lib.two_predictions import TwoPredictionGuide, extrapolate

__all__ = ["Renorm"]


@dataclass(frozen=True)
class Renorm(TwoPredictionGuide):
    """Classifier-free guidance scaled back to the norm of c: g |c| / |g| with g = u + scale (c - u).

    As pipelines of diffusers do it: Qwen-Image over tokens, Lumina2 over rows (`cfg_normalization`), Z-Image over the
    sample with a cap (its `cfg_normalization`).

    Attributes:
        over: the numbers that share a norm: "tokens", those of one position, which are the last dimension of packed
            latents [B, N, D] and the channels of [B, C, ...]; "rows", the last dimension, along which lie the rows of
            an image; "sample", all.
        cap: only norms above cap |c| are scaled, down to it; None scales all of them to |c|.
        space: the parameterisation in which this is done; the pipelines' is their networks' own, the velocity.
    """

    over: Literal["tokens", "rows", "sample"] = "tokens"
    cap: float | None = None
    space: Parameterisation = part("diffusion.parameterisation", default=Velocity())

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, cap="(0, inf)")

    def combine(self, path: NoisePath, x: Tensor, t: Tensor, c: Prediction, u: Prediction) -> Prediction:
        g = self.space.target(path, *extrapolate(u, c, self.scale), t)
        most = self.norm(self.space.target(path, *c, t)) * (1.0 if self.cap is None else self.cap)
        ratio = most / self.norm(g).clamp(min=torch.finfo(torch.float32).tiny)
        if self.cap is not None:
            ratio = ratio.clamp(max=1)
        return self.space.solve(path, x, ratio.to(g) * g, t)

    def norm(self, h: Tensor) -> Tensor:
        """Return the norms of h [B, ...] with the dimensions they were taken over as 1, in float32 at least."""
        dims = {"tokens": (-1 if h.ndim == 3 else 1,), "rows": (-1,), "sample": tuple(range(1, h.ndim))}[self.over]
        wide = torch.promote_types(h.dtype, torch.float32)
        norm: Tensor = torch.linalg.vector_norm(h.to(wide), dim=dims, keepdim=True)
        return norm
