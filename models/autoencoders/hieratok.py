"""A ViT autoencoder on token maps of several scales, coarse to fine: our reading of HieraTok (arXiv 2509.23736)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.diffusion.autoencoder import Posterior
from gen.diffusion.tap import Tap
from gen.models.autoencoders.lib.network import Network, check_images, check_latents
from gen.models.autoencoders.lib.vit_decoder import Layer
from gen.models.layers import family
from gen.models.layers.embed import grid_embedding
from gen.models.layers.patch import unpatchify

__all__ = ["HieraTok"]

LOGVAR = (-30.0, 20.0)  # range of log variances, as that of diffusers' AutoencoderKL


@dataclass(frozen=True)
class HieraTok(family.Family):
    """A map of tokens and its averages at coarser scales are one sequence, whose attention is scale-causal.

    The paper outlines this and no more: a token attends to its own scale and to all coarser ones. The rest is our
    reading. The encoder's map of patches is averaged to each scale, the sequence runs coarse to fine through a ViT, and
    the finest tokens alone are the latent, Gaussian, [latent_channels, scales[-1], scales[-1]]; the decoder averages
    the latent in the same way, and reads the picture off its finest tokens. Positions are fixed waves, those of a
    coarse token the first of the cells that it averages, and each scale has a learned vector; one scale has none, and
    is a plain ViT. `causal = "none"` is the control: every token attends to all, with the same parameters.

    Presets: "B/16", a ViT-B of each half for 256 x 256 pictures, in 341 tokens (the paper's sizes are not known), and
    "digits".

    Attributes:
        size: height and width of the pictures, a multiple of the finest scale.
        channels: of the pictures.
        classes: labels of the data, of which nothing depends.
        latent_channels: of the latents.
        scales: sides of the maps, growing; each divides the last.
        causal: which half masks the finer scales.
        width, depth, heads: of each half's tokens, blocks and attention.
        hidden: width of the MLPs.
    """

    presets: ClassVar[family.Presets] = {
        "B/16": {
            "size": 256, "channels": 3, "classes": 0, "latent_channels": 16, "scales": (1, 2, 4, 8, 16), "width": 768,
            "depth": 12, "heads": 12, "hidden": 3072,
        },
        "digits": {
            "size": 8, "channels": 1, "classes": 10, "latent_channels": 2, "scales": (1, 2, 4), "width": 32, "heads": 2,
            "hidden": 64,
        },
    }  # fmt: skip

    size: int = 32
    channels: int = 3
    classes: int = 0
    latent_channels: int = 4
    scales: tuple[int, ...] = (1, 2, 4, 8)
    causal: Literal["both", "encoder", "decoder", "none"] = "both"
    width: int = 64
    depth: int = 2
    heads: int = 4
    hidden: int = 128

    def __post_init__(self) -> None:
        names = ("size", "channels", "latent_channels", "scales", "width", "depth", "heads", "hidden")
        check_fields(self, classes="[0, inf)", **dict.fromkeys(names, "[1, inf)"))
        family.divisible(self, "width", 4)
        family.divisible(self, "width", self.heads, "heads")
        rising = all(a < b for a, b in zip(self.scales, self.scales[1:], strict=False))
        if not self.scales or not rising or any(self.scales[-1] % side for side in self.scales):
            raise UserError(f"HieraTok.scales {self.scales}; allowed: growing sides, each of which divides the last")
        family.divisible(self, "size", self.scales[-1], "scales[-1]")

    @property
    def patch(self) -> int:
        """Side of the square of a token of the finest scale, pixels."""
        return self.size // self.scales[-1]

    @property
    def tokens(self) -> int:
        """Number of tokens of all scales."""
        return sum(side**2 for side in self.scales)

    def build(self) -> nn.Module:
        """Return the network, freshly initialised."""
        return HieraTokNet(self)


class HieraTokNet(Network):
    """The network, as gen.diffusion.autoencoder.AutoencoderNet has it.

    Sites are those of the decoder: "blocks.3.attn" and "blocks.3.mlp", the two residuals.
    """

    def __init__(self, spec: HieraTok) -> None:
        super().__init__(spec)
        self.channels, self.stride = spec.latent_channels, spec.patch
        self.patches = nn.Conv2d(spec.channels, spec.width, spec.patch, spec.patch)
        self.encoder = ScaleViT(spec, 2 * spec.latent_channels, spec.causal in ("both", "encoder"))
        self.embedding = nn.Conv2d(spec.latent_channels, spec.width, 1)
        self.decoder = ScaleViT(spec, spec.patch**2 * spec.channels, spec.causal in ("both", "decoder"))

    def encode(self, images: Tensor) -> Posterior:
        check_images(self, images)
        self._check_grid(images, self.spec.size)
        side = self.spec.scales[-1]
        moments = self.encoder(self.patches(images)).mT.unflatten(2, (side, side))  # [B, 2 C, h, w]
        mean, logvar = moments.chunk(2, 1)
        return Posterior(mean, logvar.clamp(*LOGVAR))

    def decode(self, latents: Tensor) -> Tensor:
        return self.decoded(latents, None)

    def decoded(self, z: Tensor, tap: Tap | None) -> Tensor:
        check_latents(self, z)
        self._check_grid(z, self.spec.scales[-1])
        return unpatchify(self.decoder(self.embedding(z), tap), self.spec.patch)

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight of the decoder's last linear map."""
        return _weight(self.decoder.out)

    @property
    def latent_layer(self) -> nn.Parameter:
        """The weight of the encoder's last linear map."""
        return _weight(self.encoder.out)

    def _check_grid(self, x: Tensor, side: int) -> None:
        if x.shape[2:] != (side, side):
            raise UserError(f"this HieraTok takes {side} x {side}, these are {list(x.shape)}")


class ScaleViT(nn.Module):
    """A map [B, width, h, w] through a ViT on all its scales, to numbers of the finest tokens, [B, h w, out].

    Attributes:
        mask: True where a token, a row, attends to another; None where each attends to all. [T, T].
    """

    mask: Tensor | None
    positions: Tensor

    def __init__(self, spec: HieraTok, out: int, causal: bool) -> None:
        super().__init__()
        self.scales = spec.scales
        several = len(spec.scales) > 1
        scale = torch.tensor([i for i, side in enumerate(spec.scales) for _ in range(side**2)])  # [T]
        seen = scale[:, None] >= scale if causal and several else None
        self.register_buffer("mask", seen, persistent=False)
        steps = [spec.scales[-1] / side for side in spec.scales]
        tables = [
            grid_embedding(spec.width, side, steps=(step, step)) for side, step in zip(spec.scales, steps, strict=True)
        ]
        self.register_buffer("positions", torch.cat(tables), persistent=False)  # [T, width]
        self.register_buffer("scale", scale, persistent=False)
        self.vectors = nn.Parameter(torch.randn(len(spec.scales), spec.width) * 0.02) if several else None
        self.layers = nn.ModuleList(Layer(spec.width, spec.heads, spec.hidden) for _ in range(spec.depth))
        self.norm = nn.LayerNorm(spec.width)
        self.out = nn.Linear(spec.width, out)

    def forward(self, finest: Tensor, tap: Tap | None = None) -> Tensor:
        h = self.blocks(self.sequence(finest), tap)
        out: Tensor = self.out(self.norm(h[:, -(self.scales[-1] ** 2) :]))
        return out

    def sequence(self, finest: Tensor) -> Tensor:
        """Return the tokens of all scales, coarse to fine and each row by row, [B, T, width]."""
        maps = [F.avg_pool2d(finest, self.scales[-1] // side) for side in self.scales[:-1]]
        tokens = torch.cat([each.flatten(2).mT for each in (*maps, finest)], 1) + self.positions.to(finest.dtype)
        return tokens if self.vectors is None else tokens + self.vectors[self.get_buffer("scale")]

    def blocks(self, h: Tensor, tap: Tap | None = None) -> Tensor:
        """Run all blocks on tokens h [B, T, width]."""
        for i, layer in enumerate(self.layers):
            h = layer(h, f"blocks.{i}", tap, self.mask)
        return h


def _weight(module: Any) -> nn.Parameter:
    weight: nn.Parameter = module.weight
    return weight
