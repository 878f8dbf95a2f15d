"""DINOv2, the feature space of FDD (FD-DINOv2): class tokens, with positions as its own hub model resamples them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.eval.features.lib.images import in_batches, normalised, resized, resized_by_pil, to_colour
from gen.eval.features.lib.transformer import Transformer, filled, renamed, weight_file
from gen.eval.features.lib.weights import read_state, tensors_sha256

__all__ = ["DINOv2", "DINOv2Extractor", "DINOv2Net"]

SIZE, PATCH, SIDE = 224, 14, 37  # pixels, pixels of a patch, and patches on a side of the table of positions (518 px)
OFFSET = 0.1  # that the hub model adds to the side in patches, so that rounding never loses one
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES = {(384, 12): "vit-s", (768, 12): "vit-b", (1024, 24): "vit-l"}
FETCH = "DINOv2's weights: dinov2_vitl14_pretrain.pth of its hub, or a copy of facebook/dinov2-large"
RULES = (  # transformers' names to the hub's; before version 5 its attention had other ones
    ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.mask_token", "mask_token"),
    ("encoder.layer.", "blocks."),
    *((f"attention.attention.{name}", f"attn.{name[0]}") for name in ("query", "key", "value")),
    *((f"attention.{x}_proj", f"attn.{x}") for x in "qkv"),
    ("attention.output.dense", "attn.proj"),
    ("attention.o_proj", "attn.proj"),
    ("layer_scale1.lambda1", "ls1.gamma"),
    ("layer_scale2.lambda1", "ls2.gamma"),
    ("layernorm.", "norm."),
)


@dataclass(frozen=True)
class DINOv2:
    """Class tokens of DINOv2 ViT-S, -B or -L/14 without registers (Oquab et al. 2023), for uint8 images.

    Pictures [B, 1 or 3, H, W] are resized to 224 pixels, their shape not kept, as dgm-eval does (Stein et al. 2023);
    published FDD are of ViT-L/14, 1024 features.

    Attributes:
        path: a file of the hub, or a folder of transformers, read as data.
        resize: "pil" is PIL's bicubic filter, rounded to bytes, as in dgm-eval; "torch" EDM2's default, antialiased
            bicubic of floats.
        batch: images per call of the network, always; no caller's batch size matters.
    """

    path: str = ""
    resize: Literal["pil", "torch"] = "pil"
    batch: int = 16

    def __post_init__(self) -> None:
        check_fields(self, batch="[1, inf)")

    def load(self) -> DINOv2Extractor:
        """Return the extractor; MissingDependency without the file, UserError for weights of another network."""
        file = weight_file(self.path, FETCH)
        state = renamed(read_state(file, FETCH)[0], RULES)
        state.pop("mask_token", None)  # of training
        if "norm.weight" not in state or "pos_embed" not in state:
            raise UserError(f"{file} is of another network: expected {FETCH}")
        net = filled(lambda: DINOv2Net(*_dimensions(state)), state, file)
        return DINOv2Extractor(net, tensors_sha256(state), self.resize, self.batch)


def _dimensions(state: Mapping[str, Tensor]) -> tuple[int, int]:
    """Return width and depth of the network whose weights these are."""
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    return len(state["norm.weight"]), depth


@dataclass(frozen=True, eq=False)
class DINOv2Extractor:
    """The loaded network; it runs where the images are.

    Attributes:
        net: in float32.
        sha256: digest of the weights by the hub's names, whatever the file's.
        resize, batch: as of DINOv2.
    """

    net: DINOv2Net
    sha256: str
    resize: str
    batch: int

    @property
    def name(self) -> str:
        shape = self.net.dim, len(self.net.blocks)
        return f"dinov2 {SIZES.get(shape, 'vit-{}x{}'.format(*shape))}/{PATCH} {self.resize}"

    def __call__(self, images: Tensor) -> Tensor:
        net = self.net.to(images.device)

        def compute(part: Tensor) -> Mapping[str, Tensor]:
            if self.resize == "pil":
                x = resized_by_pil(part, (SIZE, SIZE))
            else:
                x = resized(part, SIZE, "bicubic", antialias=True)
            return {"features": net(normalised(x / 255, MEAN, STD))}

        return in_batches(to_colour(images, self.name), self.batch, compute)["features"]


class DINOv2Net(nn.Module):
    """Pictures [B, 3, 224, 224], normalised, to class tokens after the last norm, [B, dim].

    Args:
        dim: width; heads have 64 channels.
        depth: layers.
    """

    def __init__(self, dim: int, depth: int) -> None:
        super().__init__()
        self.dim = dim
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, dim, PATCH, PATCH)})
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + SIDE**2, dim))
        self.blocks = Transformer(depth, dim, max(1, dim // 64), 1e-6, scaled=True)
        self.norm = nn.LayerNorm(dim, 1e-6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patch_embed["proj"](x).flatten(2).mT
        h = torch.cat((self.cls_token.expand(len(h), -1, -1), h), 1) + self.positions(SIZE // PATCH)
        return self.norm(self.blocks(h)[:, 0])

    def positions(self, side: int) -> Tensor:
        """Return the table of positions for side x side patches, [1, 1 + side^2, dim], by the hub model's rule.

        Bicubic without antialias, by the factor (side + .1) / 37 and not to the size: the rule of transformers, and of
        timm, give other features.

        Args:
            side: patches on a side.
        """
        table = self.pos_embed[:, 1:].unflatten(1, (SIDE, SIDE)).permute(0, 3, 1, 2)
        scale = (side + OFFSET) / SIDE
        table = F.interpolate(table, scale_factor=(scale, scale), mode="bicubic", antialias=False)
        return torch.cat((self.pos_embed[:, :1], table.flatten(2).mT), 1)
