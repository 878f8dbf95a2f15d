"""DINOv2, the encoder of REPA."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.models.encoders.lib.vit import IMAGENET, PLAIN, Norm, Vit, config_of, last_norm, pretrained, resample_positions

__all__ = ["DINOv2"]

CLASSES = {"dinov2": "Dinov2Model", "dinov2_with_registers": "Dinov2WithRegistersModel"}


@dataclass(frozen=True)
class DINOv2:
    """Patch and class tokens after the last norm (Oquab et al. 2023), with registers or without.

    Attributes:
        path: a folder with config.json and safetensors, such as a copy of facebook/dinov2-base.
        grid: patches on a side; images are resized to grid patches of the model's size. REPA has 16 for images of 256
            pixels, 32 for 512.
        antialias: how positions are resampled to another grid (resample_positions); True in REPA, and in RAE, whose
            model has registers.
        norm: the last one: "own"; "plain", without gain and bias, as in RAE; "none".
        pixels: "imagenet" for its mean and deviation; "plain" for [-1, 1], as VA-VAE has it.
        resize: of images; RAE's and REPA's is bicubic, VA-VAE's bilinear.
        width: numbers of a token, for a dry run before the folder is there; None to read them in it.
    """

    path: str
    grid: int = 16
    antialias: bool = True
    norm: Norm = "own"
    pixels: Literal["imagenet", "plain"] = "imagenet"
    resize: Literal["bicubic", "bilinear"] = "bicubic"
    width: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, grid="[1, inf)", width="[1, inf)")

    @property
    def dim(self) -> int:
        """Numbers of a token."""
        if self.width is not None and not Path(self.path).exists():
            return self.width
        found = int(config_of(self.path, *CLASSES)["hidden_size"])
        if self.width not in (None, found):
            raise UserError(f"DINOv2.width {self.width}; {self.path} has {found}")
        return found

    def load(self, device: torch.device | str = "cpu") -> nn.Module:
        """Return the frozen encoder. MissingDependency without the folder or the package transformers."""
        config = config_of(self.path, *CLASSES)
        model = pretrained(self.path, CLASSES[config["model_type"]])
        table = model.embeddings.position_embeddings
        positions = resample_positions(table.detach()[0], self.grid, self.antialias)
        model.embeddings.position_embeddings = nn.Parameter(positions[None])
        model.layernorm = last_norm(model.layernorm, self.norm)
        before = 1 + config.get("num_register_tokens", 0)
        side = self.grid * model.config.patch_size
        statistics = IMAGENET if self.pixels == "imagenet" else PLAIN
        return Vit(model, lambda model, x: model(x).last_hidden_state, side, before, statistics, self.resize).to(device)
