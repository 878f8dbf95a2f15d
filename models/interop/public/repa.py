"""sihyun-yu/REPA: last.pt, and what its train.py saves (Yu et al. 2025). A SiT whose time runs the other way."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from gen.config.fields import check_fields
from gen.models.interop.lib.dit_layout import is_dit_layout, read_dit_layout
from gen.models.interop.lib.inferred import SDE, Conversion, Reader, cfg_spec
from gen.models.interop.lib.settings import transport, vae_latent
from gen.models.interop.weights import State, Weights
from gen.training.run import Run, Sampler

__all__ = ["REPAWeights", "without_projectors"]


@dataclass(frozen=True)
class REPAWeights:
    """The velocity towards noise; t = 1 is the noise. Projectors, which sampling never calls, are left out.

    The path is linear unless the file's settings say that it is cosine.

    Guided by 1.8 on all channels for t <= 0.7, as the repository says to.

    Attributes:
        heads: of attention; None for those of the settings or of the published sizes.
        classes: number of classes; None for the settings' or, where there are none, one less than the table has rows.
        sampler: "sde" as the repository says to, 249 Euler-Maruyama steps to t = 0.04 and one to data; "ode" for its
            euler_sampler, 250 equal steps.
    """

    heads: int | None = None
    classes: int | None = None
    sampler: Literal["sde", "ode"] = "sde"

    def __post_init__(self) -> None:
        check_fields(self, heads="[1, inf)", classes="[1, inf)")

    def claims(self, weights: Weights) -> bool:
        return is_dit_layout(weights, "SiT") and any(name.startswith("projectors.") for name in weights.tensors)

    def read(self, weights: Weights, preset: str | None) -> Conversion:
        tensors, dropped = without_projectors(_renumbered(weights.tensors))
        weights = replace(weights, tensors=tensors)
        path, parameterisation = transport(weights, "noise", ("velocity",))
        model, notes = read_dit_layout(weights, "REPA", self.heads, preset, classes=self.classes)
        guided = cfg_spec(model, 1.8, until=0.7, path=path)
        sampler = Sampler(**(SDE if self.sampler == "sde" else {"solver": "euler", "steps": 250}), guide=guided)
        run = Run(model=model, path=path, parameterisation=parameterisation, sampler=sampler, ema=())
        return Conversion(run, tensors, vae_latent(weights), dropped, notes)


def without_projectors(tensors: State) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of the denoiser, and the names of the others with the reason.

    Args:
        tensors: the file's.
    """
    dropped = {name: "a projector, used in training only" for name in tensors if name.startswith("projectors.")}
    return {name: value for name, value in tensors.items() if name not in dropped}, dropped


def _renumbered(tensors: State) -> State:
    """Rename the tensors of the first releases, whose decoder_blocks.k come after all blocks."""
    if not any(name.startswith("decoder_blocks.") for name in tensors):
        return tensors
    first = Reader(tensors, "REPA").count("blocks")

    def name_of(name: str) -> str:
        return re.sub(r"^decoder_blocks\.(\d+)", lambda m: f"blocks.{int(m[1]) + first}", name)

    return {name_of(name): value for name, value in tensors.items()}
