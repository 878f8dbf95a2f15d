"""DiTTransformer2DModel of diffusers as a network with sites, so that solvers, guides and caches drive it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.parameterisation import Eps, Parameterisation
from gen.diffusion.path import DDPM, NoisePath
from gen.diffusion.tap import Tap, call_site
from gen.models.layers.block import modulate

__all__ = ["DiffusersDiT", "denoiser"]


def denoiser(
    transformer: nn.Module, path: NoisePath | None = None, parameterisation: Parameterisation | None = None
) -> Denoiser:
    """A DiTTransformer2DModel as a Denoiser; the defaults are those of the published weights, eps on DDPM's table.

    Theirs counts timesteps 0 .. 999, ours t = 1 .. 1000 with 0 for clean data; DDPM tells the network t - 1.
    """
    return Denoiser(DiffusersDiT(transformer).eval(), path or DDPM(), parameterisation or Eps())


class DiffusersDiT(nn.Module):
    """net(x [B, C, H, W], timestep [B], {"y": int64 [B]}) -> [B, C, H, W] by the transformer's own modules.

    Of an output with learned variances the first half, the mean, is returned. The label after the last is "no class".
    Sites are those of gen.models.dit: "trunk", "hidden.3", "blocks.3", "blocks.3.attn", "blocks.3.mlp" (with ".raw"
    inside), "final". Raises UserError for anything but a DiTTransformer2DModel.
    """

    def __init__(self, transformer: nn.Module):
        super().__init__()
        if type(transformer).__name__ != "DiTTransformer2DModel":
            raise UserError(f"DiffusersDiT: got {type(transformer).__name__}; allowed: DiTTransformer2DModel")
        self.transformer: Any = transformer

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        cond: Mapping[str, Tensor],
        *,
        s: Tensor | None = None,
        tap: Tap | None = None,
    ) -> Tensor:
        if s is not None:
            raise UserError("a target time s was given, but diffusers' DiT is no flow map and takes only t")
        model, y = self.transformer, self._labels(cond)
        h = model.pos_embed(x)  # [B, T, width]
        h = call_site(tap, "trunk", lambda h: self.trunk(h, t, y, tap), h)
        out = call_site(tap, "final", lambda h: self.head(h, t, y), h)  # [B, C or 2C, H, W]
        return out[:, : model.config.in_channels]

    def trunk(self, h: Tensor, t: Tensor, y: Tensor, tap: Tap | None) -> Tensor:
        """All blocks: tokens h [B, T, width] at timestep t [B] under the labels y [B]."""
        for i, block in enumerate(self.transformer.transformer_blocks):
            h = run_block(block, h, t, y, i, tap)
        return h

    def head(self, h: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Tokens [B, T, width] to the image [B, C or 2C, H, W]."""
        model = self.transformer
        c = model.transformer_blocks[0].norm1.emb(t, y, hidden_dtype=h.dtype)  # [B, width]
        shift, scale = model.proj_out_1(nn.functional.silu(c)).chunk(2, 1)
        tokens = model.proj_out_2(modulate(model.norm_out(h), shift, scale))  # [B, T, patch * patch * channels]
        side, p = round(tokens.shape[1] ** 0.5), model.config.patch_size
        image: Tensor = tokens.reshape(len(tokens), side, side, p, p, -1)  # [B, row, column, y, x, channel]
        return image.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)

    def null(self, cond: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The condition that stands for "no class"."""
        return {**cond, "y": torch.full_like(self._labels(cond), self.transformer.config.num_embeds_ada_norm)}

    def _labels(self, cond: Mapping[str, Tensor]) -> Tensor:
        if "y" not in cond:
            raise UserError(f"diffusers' DiT needs cond['y']; given: {', '.join(cond) or 'nothing'}")
        return cond["y"]


def run_block(block: Any, h: Tensor, t: Tensor, y: Tensor, i: int, tap: Tap | None) -> Tensor:
    """Tokens h [B, T, width] after block i; a BasicTransformerBlock keeps its own embedders of time and label."""
    site = f"blocks.{i}"

    def added(h: Tensor) -> Tensor:
        c = block.norm1.emb(t, y, hidden_dtype=h.dtype)  # [B, width]
        shift1, scale1, gate1, shift2, scale2, gate2 = block.norm1.linear(block.norm1.silu(c)).chunk(6, 1)

        def attn(h: Tensor) -> Tensor:
            h = modulate(block.norm1.norm(h), shift1, scale1)
            return gated(gate1, call_site(tap, f"{site}.attn.raw", block.attn1, h))

        def mlp(h: Tensor) -> Tensor:
            h = modulate(block.norm3(h), shift2, scale2)
            return gated(gate2, call_site(tap, f"{site}.mlp.raw", block.ff, h))

        first = call_site(tap, f"{site}.attn", attn, h)  # [B, T, width]
        return first + call_site(tap, f"{site}.mlp", mlp, h + first)

    return call_site(tap, f"hidden.{i}", lambda h: h + call_site(tap, site, added, h), h)


def gated(gate: Tensor, h: Tensor) -> Tensor:
    """h [B, T, width] times the gate [B, width]."""
    return gate[:, None] * h
