"""sihyun-yu/REPA: last.pt, and what its train.py saves (Yu et al. 2025). A SiT whose time runs the other way."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor

from gen.diffusion.parameterisation import Velocity
from gen.diffusion.path import Flow
from gen.models.interop.lib.inferred import SD_VAE, Found, Reader, guide
from gen.models.interop.lib.plain_dit import is_plain, read_plain
from gen.models.interop.weights import State, Weights
from gen.training.run import Run, Sampler

__all__ = ["REPAWeights", "without_projectors"]


@dataclass(frozen=True)
class REPAWeights:
    """The velocity towards noise, told t = 1 for noise. Projectors, which sampling never calls, are left out.

    Sampled by the SDE in 250 steps, guided by 1.8 on all channels for t <= 0.7, as the repository says to.
    """

    heads: int | None = None

    def claims(self, weights: Weights) -> bool:
        return is_plain(weights) and any(name.startswith("projectors.") for name in weights.tensors)

    def read(self, weights: Weights, preset: str | None) -> Found:
        tensors, dropped = without_projectors(_renumbered(weights.tensors))
        model, notes = read_plain(tensors, "REPA", self.heads, preset)
        guided = guide(model, 1.8, interval=(0.0, 0.7 / 0.3))
        sampler = Sampler(solver={"name": "flow_sde", "churn": 2.0}, steps=250, guide=guided)
        run = Run(model=model, path=Flow(), parameterisation=Velocity(), sampler=sampler, ema=())
        return Found(run, tensors, SD_VAE, dropped, notes)


def without_projectors(tensors: State) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of the denoiser, and the names of the others with the reason."""
    dropped = {name: "a projector, used in training only" for name in tensors if name.startswith("projectors.")}
    return {name: value for name, value in tensors.items() if name not in dropped}, dropped


def _renumbered(tensors: State) -> State:
    """Of the first releases: decoder_blocks.k come after all blocks."""
    if not any(name.startswith("decoder_blocks.") for name in tensors):
        return tensors
    first = Reader(tensors, "REPA").count("blocks")

    def name_of(name: str) -> str:
        return re.sub(r"^decoder_blocks\.(\d+)", lambda m: f"blocks.{int(m[1]) + first}", name)

    return {name_of(name): value for name, value in tensors.items()}
