"""Martinser/REG: last.pt, and what its train.py saves (Wu et al. 2025). A SiT with a class token in its state."""

from __future__ import annotations

from dataclasses import dataclass

from gen.diffusion.parameterisation import Velocity
from gen.diffusion.path import Flow
from gen.models.interop.lib.dit_layout import read_dit_layout
from gen.models.interop.lib.inferred import SD_VAE, SDE, Conversion, Reader, cfg_spec
from gen.models.interop.public.repa import without_projectors
from gen.models.interop.weights import Weights
from gen.models.reg import REG
from gen.training.run import Run, Sampler

__all__ = ["REGWeights"]


@dataclass(frozen=True)
class REGWeights:
    """The velocity towards noise of image and class token; t = 1 is the noise. Projectors are left out.

    Sampled by 249 Euler-Maruyama steps to t = 0.04 and one to data, image and token guided by 2.3 for t <= 0.85, as the
    repository says to.

    Attributes:
        heads: of attention; None for those of the published sizes.
    """

    heads: int | None = None

    def claims(self, weights: Weights) -> bool:
        return "cls_projectors2.weight" in weights.tensors

    def read(self, weights: Weights, preset: str | None) -> Conversion:
        tensors, dropped = without_projectors(weights.tensors)
        cls_dim = Reader(tensors, "REG").shape("cls_projectors2.weight", 2)[1]
        model, notes = read_dit_layout(tensors, "REG", self.heads, preset, owner=REG, front=1, cls_dim=cls_dim)
        guided = cfg_spec(model, 2.3, interval=(0.0, 0.85 / 0.15))
        sampler = Sampler(**SDE, guide=guided)
        run = Run(model=model, path=Flow(), parameterisation=Velocity(), sampler=sampler, ema=())
        return Conversion(run, tensors, SD_VAE, dropped, notes)
