"""facebookresearch/DiT: DiT-XL-2-256x256.pt, -512x512.pt, and what its train.py saves (Peebles & Xie 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gen.config.fields import check_fields
from gen.diffusion.parameterisation import Eps
from gen.diffusion.path import DDPM
from gen.models.interop.lib.dit_layout import is_dit_layout, read_dit_layout
from gen.models.interop.lib.inferred import Conversion, cfg_spec
from gen.models.interop.lib.settings import check_model, vae_latent
from gen.models.interop.weights import Weights
from gen.training.run import Run, Sampler

__all__ = ["DiTWeights"]


@dataclass(frozen=True)
class DiTWeights:
    """Noise prediction on DDPM's linear table, with learned variances.

    Sampled in their 250 of the 1000 timesteps, guided by 1.5 on the first three channels, as its FID was measured.

    Attributes:
        heads: of attention; None for those of the settings or of the published sizes.
        classes: number of classes; None for the settings' or, where there are none, one less than the table has rows.
        sampler: "ddim" for their ddim_sample_loop, the ODE; "ddpm" for their p_sample_loop, ancestral steps with the
            learned variances, by which its FID was measured.
    """

    heads: int | None = None
    classes: int | None = None
    sampler: Literal["ddim", "ddpm"] = "ddim"

    def __post_init__(self) -> None:
        check_fields(self, heads="[1, inf)", classes="[1, inf)")

    def claims(self, weights: Weights) -> bool:
        return is_dit_layout(weights, "DiT") and not any(name.startswith("projectors.") for name in weights.tensors)

    def read(self, weights: Weights, preset: str | None) -> Conversion:
        check_model(weights, "DiT")
        model, notes = read_dit_layout(weights, "DiT", self.heads, preset, classes=self.classes)
        grid = {"name": "timesteps", "spacing": "linspace"}
        ancestral = {"name": "ancestral", "variance": "learned" if model.learn_sigma else "beta"}
        solver = ancestral if self.sampler == "ddpm" else "ddim"
        sampler = Sampler(solver=solver, steps=250, grid=grid, guide=cfg_spec(model, 1.5, channels=3))
        run = Run(model=model, path=DDPM(), parameterisation=Eps(), sampler=sampler, ema=())
        return Conversion(run, weights.tensors, vae_latent(weights), notes=notes)
