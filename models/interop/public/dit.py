"""facebookresearch/DiT: DiT-XL-2-256x256.pt, -512x512.pt, and what its train.py saves (Peebles & Xie 2022)."""

from __future__ import annotations

from dataclasses import dataclass

from gen.diffusion.parameterisation import Eps
from gen.diffusion.path import DDPM
from gen.models.interop.lib.dit_layout import is_dit_layout, read_dit_layout
from gen.models.interop.lib.inferred import SD_VAE, Conversion, cfg_spec
from gen.models.interop.weights import Weights
from gen.training.run import Run, Sampler

__all__ = ["DiTWeights"]


@dataclass(frozen=True)
class DiTWeights:
    """Noise prediction on DDPM's linear table; the learned variances are kept in the weights and not used.

    Sampled by 250 steps, guided by 1.5 on the first three channels, as its FID was measured, but by the ODE (DDIM).

    Attributes:
        heads: of attention; None for those of the published sizes.
    """

    heads: int | None = None

    def claims(self, weights: Weights) -> bool:
        return is_dit_layout(weights) and not any(name.startswith("projectors.") for name in weights.tensors)

    def read(self, weights: Weights, preset: str | None) -> Conversion:
        model, notes = read_dit_layout(weights.tensors, "DiT", self.heads, preset)
        grid = {"name": "timesteps", "spacing": "linspace"}
        sampler = Sampler(solver="ddim", steps=250, grid=grid, guide=cfg_spec(model, 1.5, channels=3))
        run = Run(model=model, path=DDPM(), parameterisation=Eps(), sampler=sampler, ema=())
        return Conversion(run, weights.tensors, SD_VAE, notes=notes)
