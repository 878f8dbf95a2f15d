"""Masked autoencoders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gen.config.fields import check_fields
from gen.models.encoders.lib.vit import IMAGENET, PLAIN, Norm, Vit, config_of, last_norm, pretrained, resample_positions

__all__ = ["MAE"]


@dataclass(frozen=True)
class MAE:
    """The encoder of a masked autoencoder (He et al. 2021), with nothing masked.

    Attributes:
        path: a folder with config.json and safetensors, such as a copy of facebook/vit-mae-large.
        grid: patches on a side; images are resized to grid patches of the model's size.
        norm: the last one: "own"; "plain", without gain and bias, as in RAE; "none", as in REPA.
        antialias: how positions are resampled to another grid (resample_positions); False in RAE, True in REPA.
        pixels: "imagenet" for its mean and deviation; "plain" for [-1, 1], as VA-VAE has it.
        resize: of images; RAE's and REPA's is bicubic, VA-VAE's bilinear.
    """

    path: str
    grid: int = 16
    norm: Norm = "own"
    antialias: bool = False
    pixels: Literal["imagenet", "plain"] = "imagenet"
    resize: Literal["bicubic", "bilinear"] = "bicubic"

    def __post_init__(self) -> None:
        check_fields(self, grid="[1, inf)")

    @property
    def dim(self) -> int:
        """Numbers of a token."""
        return int(config_of(self.path, "vit_mae")["hidden_size"])

    def load(self, device: torch.device | str = "cpu") -> nn.Module:
        """Return the frozen encoder. MissingDependency without the folder or the package transformers."""
        config_of(self.path, "vit_mae")
        model = pretrained(self.path, "ViTMAEModel", mask_ratio=0.0)
        table = model.embeddings.position_embeddings
        positions = resample_positions(table.detach()[0], self.grid, self.antialias)
        model.embeddings.position_embeddings = nn.Parameter(positions[None])
        model.layernorm = last_norm(model.layernorm, self.norm)

        def run(model: Any, x: Tensor) -> Tensor:
            order = torch.arange(self.grid**2, device=x.device).expand(len(x), -1)  # the model sorts patches by noise
            h: Tensor = model(x, noise=order, interpolate_pos_encoding=True).last_hidden_state
            return h

        statistics = IMAGENET if self.pixels == "imagenet" else PLAIN
        return Vit(model, run, self.grid * model.config.patch_size, 1, statistics, self.resize).to(device)
