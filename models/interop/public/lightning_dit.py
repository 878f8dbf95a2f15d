"""hustvl/LightningDiT: lightningdit-xl-imagenet256-800ep.pt, and what its train.py saves (Yao et al. 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import Json
from gen.config.torch_file import read_torch
from gen.models.interop.lib.dit_layout import MARKS, read_dit_layout
from gen.models.interop.lib.inferred import Conversion, cfg_spec
from gen.models.interop.lib.settings import model_name, transport
from gen.models.interop.lib.variants import with_shifts, with_tables
from gen.models.interop.weights import Weights
from gen.models.lightning_dit import LightningDiT
from gen.training.run import Run, Sampler

__all__ = ["LightningDiTWeights"]

LATENT = {
    "autoencoder": "hustvl/vavae-imagenet256-f16d32-dinov2",
    "scale": "1 / std, per channel, of latents_stats.pt in the same repository",
    "shift": "mean, per channel, of the same file",
}


@dataclass(frozen=True)
class LightningDiTWeights:
    """The velocity towards data, whose t = 1 is the data, of latents that were standardised per channel.

    Sampled by 249 Euler steps between their 250 times, shifted to noise (their 0.3 is 1 / 0.3 here), guided by 6.7 on
    the first three channels for t <= 0.875, as the 800 epochs' FID was measured; that of 64 epochs was with 10 and
    t <= 0.9. Variants without RMS norms, SwiGLU, rotary tables or shifts are read too.

    Attributes:
        heads: of attention, where neither a rotary table nor a published size shows them.
        stats: path of the latents_stats.pt that standardised the latents, so that samples can be decoded; None leaves
            the manifest to say where it is.
    """

    heads: int | None = None
    stats: str | None = None

    def __post_init__(self) -> None:
        check_fields(self, heads="[1, inf)")

    def claims(self, weights: Weights) -> bool:
        names = weights.tensors
        gated = "blocks.0.mlp.w12.weight" in names and "pos_embed" in names
        plain = "feat_rope.freqs_cos" in names or model_name(weights) == "LightningDiT"
        marked = gated or (plain and all(mark in names for mark in MARKS))
        return marked and "t_embedder.W" not in names and "s_embedder.proj.weight" not in names

    def read(self, weights: Weights, preset: str | None) -> Conversion:
        path, parameterisation = transport(weights, "data", ("velocity",))
        weights = replace(weights, tensors=with_shifts(weights.tensors))
        model, notes = read_dit_layout(
            weights, "LightningDiT", self.heads, preset, owner=LightningDiT, time_convention="data"
        )
        tensors, more = with_tables(weights.tensors, model)
        sampler = Sampler(
            solver="euler",
            steps=249,
            grid={"name": "shift", "shift": 1 / 0.3},
            guide=cfg_spec(model, 6.7, channels=3, until=0.875, path=path),
        )
        run = Run(model=model, path=path, parameterisation=parameterisation, sampler=sampler, ema=())
        latent = LATENT if self.stats is None else {**LATENT, **_scale(Path(self.stats), model.channels)}
        return Conversion(run, tensors, latent, notes=(*notes, *more))


def _scale(file: Path, channels: int) -> Json:
    """Return scale and shift of latents_stats.pt, a number for each channel."""
    if not file.is_file():
        raise UserError(f"stats: {file} does not exist")
    content = read_torch(file)
    given = [content.get(key) for key in ("mean", "std")] if isinstance(content, Mapping) else []
    values = [value for value in given if isinstance(value, Tensor) and value.numel() == channels]
    if len(values) != 2:
        raise UserError(f"stats: {file} does not hold mean and std of {channels} channels each")
    mean, std = (value.flatten().double() for value in values)
    if not bool((std > 0).all()) or not bool(torch.isfinite(mean).all()):
        raise UserError(f"stats: {file} holds a std that is not positive, or a mean that is not finite")
    return {"scale": (1 / std).tolist(), "shift": mean.tolist()}
