"""facebookresearch/DiT: DiT-XL-2-256x256.pt, -512x512.pt, and what its train.py saves (Peebles & Xie 2022)."""

from __future__ import annotations

from dataclasses import dataclass

from gen.diffusion.parameterisation import Eps
from gen.diffusion.path import DDPM
from gen.models.interop.lib.inferred import SD_VAE, Found, guide
from gen.models.interop.lib.plain_dit import is_plain, read_plain
from gen.models.interop.weights import Weights
from gen.training.run import Run, Sampler

__all__ = ["DiTWeights"]


@dataclass(frozen=True)
class DiTWeights:
    """Noise prediction on DDPM's linear table; the learned variances are kept in the weights and not used.

    Sampled by 250 steps, guided by 1.5 on the first three channels, as its FID was measured, but by the ODE (DDIM).
    """

    heads: int | None = None

    def claims(self, weights: Weights) -> bool:
        return is_plain(weights) and not any(name.startswith("projectors.") for name in weights.tensors)

    def read(self, weights: Weights, preset: str | None) -> Found:
        model, notes = read_plain(weights.tensors, "DiT", self.heads, preset)
        grid = {"name": "timesteps", "spacing": "linspace"}
        sampler = Sampler(solver="ddim", steps=250, grid=grid, guide=guide(model, 1.5, channels=3))
        run = Run(model=model, path=DDPM(), parameterisation=Eps(), sampler=sampler, ema=())
        return Found(run, weights.tensors, SD_VAE, notes=notes)
