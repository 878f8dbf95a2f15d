"""Martinser/REG: last.pt, and what its train.py saves (Wu et al. 2025). A SiT with a class token in its state."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gen.config.fields import check_fields
from gen.models.interop.lib.dit_layout import read_dit_layout
from gen.models.interop.lib.inferred import SDE, Conversion, Reader, cfg_spec
from gen.models.interop.lib.settings import transport, vae_latent
from gen.models.interop.public.repa import without_projectors
from gen.models.interop.weights import Weights
from gen.models.reg import REG
from gen.training.run import Run, Sampler

__all__ = ["REGWeights"]


@dataclass(frozen=True)
class REGWeights:
    """The velocity towards noise of image and class token; t = 1 is the noise. Projectors are left out.

    The path is linear unless the file's settings say that it is cosine.

    Sampled by 249 Euler-Maruyama steps to t = 0.04 and one to data, image and token guided by 2.3 for t <= 0.85, as the
    repository says to.

    Attributes:
        heads: of attention; None for those of the settings or of the published sizes.
        classes: number of classes; None for the settings' or, where there are none, one less than the table has rows.
    """

    heads: int | None = None
    classes: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, heads="[1, inf)", classes="[1, inf)")

    def claims(self, weights: Weights) -> bool:
        return "cls_projectors2.weight" in weights.tensors

    def read(self, weights: Weights, preset: str | None) -> Conversion:
        tensors, dropped = without_projectors(weights.tensors)
        cls_dim = Reader(tensors, "REG").shape("cls_projectors2.weight", 2)[1]
        weights = replace(weights, tensors=tensors)
        path, parameterisation = transport(weights, "noise", ("velocity",))
        model, notes = read_dit_layout(
            weights, "REG", self.heads, preset, owner=REG, front=1, classes=self.classes, cls_dim=cls_dim
        )
        sampler = Sampler(**SDE, guide=cfg_spec(model, 2.3, until=0.85, path=path))
        run = Run(model=model, path=path, parameterisation=parameterisation, sampler=sampler, ema=())
        return Conversion(run, tensors, vae_latent(weights), dropped, notes)
