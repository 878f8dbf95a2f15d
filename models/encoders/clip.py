"""CLIP's image encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gen.config.fields import check_fields
from gen.models.encoders.lib.vit import Norm, Vit, config_of, last_norm, pretrained, resample_positions

__all__ = ["CLIP"]

STATISTICS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class CLIP:
    """The vision transformer of CLIP (Radford et al. 2021), without the projection to the space of text.

    Attributes:
        path: a folder with config.json and safetensors, such as a copy of openai/clip-vit-large-patch14.
        grid: patches on a side; images are resized to grid patches of the model's size.
        norm: the last one, which CLIP itself applies to its class token alone: "own"; "plain", without gain and bias;
            "none", as in REPA.
        antialias: how positions are resampled to another grid (resample_positions); the model's own way is False.
    """

    path: str
    grid: int = 16
    norm: Norm = "own"
    antialias: bool = False

    def __post_init__(self) -> None:
        check_fields(self, grid="[1, inf)")

    @property
    def dim(self) -> int:
        """Numbers of a token."""
        return int(config_of(self.path, "clip_vision_model")["hidden_size"])

    def load(self, device: torch.device | str = "cpu") -> nn.Module:
        """Return the frozen encoder. MissingDependency without the folder or the package transformers."""
        config_of(self.path, "clip_vision_model")
        model = pretrained(self.path, "CLIPVisionModel")
        inner = getattr(model, "vision_model", model)  # one level down in transformers before 5
        positions = resample_positions(inner.embeddings.position_embedding.weight.detach(), self.grid, self.antialias)
        inner.embeddings.position_embedding = nn.Embedding(len(positions), positions.shape[1], _weight=positions)
        inner.embeddings.position_ids = torch.arange(len(positions))[None]

        inner.post_layernorm = last_norm(inner.post_layernorm, self.norm)

        def run(model: Any, x: Tensor) -> Tensor:
            norm = getattr(model, "vision_model", model).post_layernorm
            h: Tensor = norm(model(x, interpolate_pos_encoding=True).last_hidden_state)
            return h

        return Vit(model, run, self.grid * inner.config.patch_size, 1, STATISTICS).to(device)
