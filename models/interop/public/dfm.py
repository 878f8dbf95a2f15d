"""snap-research/elit: DFM-SiT, such as dfm_sit_imagenet_512px_1k_0400000.pt (Haji-Ali et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import Json
from gen.diffusion.decomposition import Laplacian
from gen.diffusion.path import Staged
from gen.models.dfm import DFM
from gen.models.interop.lib.dit_layout import read_dit_layout
from gen.models.interop.lib.inferred import Conversion, cfg_spec
from gen.models.interop.lib.settings import transport, vae_latent
from gen.models.interop.public.repa import without_projectors
from gen.models.interop.weights import Weights
from gen.training.run import Run, Sampler

__all__ = ["DFMWeights"]

FINEST = {  # of two stages, under the names of a DiT
    "x_embedder.embedders.1.proj.weight": "x_embedder.proj.weight",
    "final_layer.projections.1.linear.weight": "final_layer.linear.weight",
}


@dataclass(frozen=True)
class DFMWeights:
    """The velocity of two stages towards noise, each at its own time; t = 1 is the noise. Names are theirs.

    Sampled as there: 40 Euler steps of the coarse stage to the threshold 0.1, and 10 of both, unguided.

    Attributes:
        heads: of attention; None for those of the settings or of the published sizes.
        classes: number of classes; None for the settings' or, where there are none, one less than the table has rows.
        scale: of guidance, on all channels; 1 for none.
    """

    heads: int | None = None
    classes: int | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, heads="[1, inf)", classes="[1, inf)", scale="[0, inf)")

    def claims(self, weights: Weights) -> bool:
        return all(name in weights.tensors for name in FINEST)

    def read(self, weights: Weights, preset: str | None) -> Conversion:
        if missing := [name for name in FINEST if name not in weights.tensors]:
            raise UserError(f"no file of DFM-SiT: it has no {missing[0]}")
        tensors, dropped = without_projectors(weights.tensors)
        if "x_embedder.embedders.2.proj.weight" in tensors:
            raise UserError("DFM-SiT of more than two stages, which the repository's own sampler cannot run")
        path, parameterisation = transport(weights, "noise", ("velocity",))
        if type(path).__name__ != "Flow":
            raise UserError(f"DFM-SiT on the path {path}; allowed: linear")
        alike = {there: tensors[here] for here, there in FINEST.items()}
        shown = replace(weights, tensors={**tensors, **alike})
        fixed: Json = {"owner": DFM, "decomposition": Laplacian(), "time_scale": 1.0}
        model, notes = read_dit_layout(shown, "DFM-SiT", self.heads, preset, classes=self.classes, **fixed)
        guide = None if self.scale == 1 else cfg_spec(model, self.scale)
        sampler = Sampler("euler", steps=50, grid={"name": "phases", "shares": [4, 1]}, guide=guide)
        run = Run(model=model, path=Staged((0.1,)), parameterisation=parameterisation, sampler=sampler, ema=())
        return Conversion(run, tensors, vae_latent(weights), dropped, notes)
