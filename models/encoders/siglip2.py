"""SigLIP 2's image encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gen.config.fields import check_fields
from gen.models.encoders.lib.vit import PLAIN, Norm, Vit, config_of, last_norm, pretrained, resample_positions

__all__ = ["SigLIP2"]


@dataclass(frozen=True)
class SigLIP2:
    """The patch tokens of SigLIP (Zhai et al. 2023) or of SigLIP 2 of a fixed size (Tschannen et al. 2025).

    It has no class token. The models that take any size (NaFlex) are another class of transformers, and refused.

    Attributes:
        path: a folder with config.json and safetensors, such as a copy of google/siglip2-base-patch16-256.
        grid: patches on a side; images are resized to grid patches of the model's size.
        norm: the last one: "own"; "plain", without gain and bias, as in RAE; "none".
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
        return int(config_of(self.path, "siglip_vision_model")["hidden_size"])

    def load(self, device: torch.device | str = "cpu") -> nn.Module:
        """Return the frozen encoder. MissingDependency without the folder or the package transformers."""
        config_of(self.path, "siglip_vision_model")
        model = pretrained(self.path, "SiglipVisionModel", vision_use_head=False)
        inner = getattr(model, "vision_model", model)  # one level down in transformers before 5
        table = inner.embeddings.position_embedding.weight.detach()
        positions = resample_positions(table, self.grid, self.antialias, front=0)
        inner.embeddings.position_embedding = nn.Embedding(len(positions), positions.shape[1], _weight=positions)
        inner.embeddings.position_ids = torch.arange(len(positions))[None]
        inner.post_layernorm = last_norm(inner.post_layernorm, self.norm)

        def run(model: Any, x: Tensor) -> Tensor:
            h: Tensor = model(x, interpolate_pos_encoding=True).last_hidden_state
            return h

        return Vit(model, run, self.grid * inner.config.patch_size, 0, PLAIN).to(device)
