"""A vision transformer without its weights: random ones as a control, or those that a checkpoint brings."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gen.config.errors import MissingDependency, UserError
from gen.config.fields import check_fields
from gen.models.encoders.lib.vit import IMAGENET, PLAIN, Norm, Vit, last_norm
from gen.models.layers import family

__all__ = ["ViT"]

OWNERS = {  # transformers' model and config
    "dinov2": ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig"),
    "siglip2": ("SiglipVisionModel", "SiglipVisionConfig"),
    "mae": ("ViTMAEModel", "ViTMAEConfig"),
}


@dataclass(frozen=True)
class ViT:
    """The network of DINOv2 with registers, of SigLIP 2 or of MAE, of any size; positions resampled as transformers do.

    load() gives it random weights, which show what a trained encoder adds. An autoencoder that builds it keeps its
    weights in its own checkpoints (gen.models.autoencoders.rae).

    Attributes:
        kind: "dinov2" (with four registers), "siglip2" or "mae".
        grid: patches on a side; images are resized to grid patches.
        patch: side of a patch, pixels.
        width, depth, heads: of the tokens, the blocks, the attention.
        hidden: width of the MLP; None for 4 times that of the tokens, as DINOv2 always has it.
        table: side of the pictures that the table of positions is for: 518 in DINOv2, 256 in SigLIP 2, 224 in MAE.
        norm: the last one: "own"; "plain", without gain and bias, as in RAE; "none".
        pixel_mean, pixel_std: of pictures in [0, 1], of each channel; None for 0.5 in SigLIP 2, else ImageNet's.
        seed: of the random weights.
    """

    kind: Literal["dinov2", "siglip2", "mae"] = "mae"
    grid: int = 16
    patch: int = 16
    width: int = 384
    depth: int = 12
    heads: int = 6
    hidden: int | None = None
    table: int = 224
    norm: Norm = "own"
    pixel_mean: tuple[float, float, float] | None = None
    pixel_std: tuple[float, float, float] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        names = ("grid", "patch", "width", "depth", "heads", "hidden", "table")
        check_fields(self, seed="[0, inf)", pixel_std="(0, inf)", **dict.fromkeys(names, "[1, inf)"))
        family.divisible(self, "width", self.heads, "heads")
        family.divisible(self, "width", 4)  # of MAE's table
        family.divisible(self, "table", self.patch, "patch")
        if self.kind == "dinov2" and self.hidden not in (None, 4 * self.width):
            raise UserError(f"ViT.hidden {self.hidden}; DINOv2 has 4 times the width, {4 * self.width}")

    @property
    def dim(self) -> int:
        """Numbers of a token."""
        return self.width

    def build(self) -> nn.Module:
        """Return the frozen encoder, freshly initialised. MissingDependency without the package transformers."""
        model, config = (self._of_transformers(name) for name in OWNERS[self.kind])
        sizes = {
            "hidden_size": self.width, "num_hidden_layers": self.depth, "num_attention_heads": self.heads,
            "patch_size": self.patch, "image_size": self.table, "intermediate_size": self.hidden or 4 * self.width,
        }  # fmt: skip
        special: dict[str, dict[str, Any]] = {"mae": {"mask_ratio": 0.0}, "siglip2": {"vision_use_head": False}}
        net = model(config(**sizes, **special.get(self.kind, {})))
        inner = getattr(net, "vision_model", net)  # one level down in transformers before 5
        name = "post_layernorm" if self.kind == "siglip2" else "layernorm"
        setattr(inner, name, last_norm(getattr(inner, name), self.norm))
        before = {"dinov2": 5, "mae": 1, "siglip2": 0}[self.kind]
        mean, std = PLAIN if self.kind == "siglip2" else IMAGENET
        statistics = self.pixel_mean or mean, self.pixel_std or std
        return Vit(net, self._run, self.grid * self.patch, before, statistics)

    def load(self, device: torch.device | str = "cpu") -> nn.Module:
        """Return the encoder with random weights, which the seed decides."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return self.build().to(device)

    def _run(self, net: Any, x: Tensor) -> Tensor:
        options: dict[str, Any] = {} if self.kind == "dinov2" else {"interpolate_pos_encoding": True}
        if self.kind == "mae":  # the model sorts patches by noise
            options["noise"] = torch.arange(self.grid**2, device=x.device).expand(len(x), -1)
        h: Tensor = net(x, **options).last_hidden_state
        return h

    def _of_transformers(self, name: str) -> Any:
        try:
            return getattr(importlib.import_module("transformers"), name)
        except (ImportError, AttributeError) as error:
            why = " ".join(str(error).split())
            raise MissingDependency(
                f"{name} needs transformers: pip install 'gen-diffusion[transformers]' ({why})"
            ) from error
