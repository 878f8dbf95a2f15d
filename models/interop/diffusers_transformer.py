"""DiTTransformer2DModel of diffusers as a network with sites, so that solvers, guides and caches drive it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.spec import Json
from gen.diffusion.denoiser import Cond, Denoiser
from gen.diffusion.parameterisation import Eps, Parameterisation
from gen.diffusion.path import DDPM, NoisePath
from gen.diffusion.tap import Tap, call_site
from gen.models.layers import family
from gen.models.layers.block import modulate
from gen.models.layers.patch import unpatchify
from gen.models.layers.recompute import recomputed

__all__ = ["DiffusersDiT", "DiffusersSpec", "denoiser"]


def denoiser(
    transformer: nn.Module, path: NoisePath | None = None, parameterisation: Parameterisation | None = None
) -> Denoiser:
    """Return a DiTTransformer2DModel as a Denoiser.

    Theirs counts timesteps 0 .. 999, ours t = 1 .. 1000 with 0 for clean data; DDPM passes t - 1 to the network.

    Args:
        transformer: of diffusers.
        path: None for DDPM's table, of the published weights.
        parameterisation: None for eps, of the published weights.
    """
    return Denoiser(DiffusersDiT(transformer).eval(), path or DDPM(), parameterisation or Eps())


@dataclass(frozen=True)
class DiffusersSpec:
    """Spec of a DiTTransformer2DModel.

    Attributes:
        config: diffusers' configuration of the transformer.
    """

    config: Json

    @property
    def size(self) -> int:
        """Height and width of x."""
        return int(self.config["sample_size"])

    @property
    def channels(self) -> int:
        """Channels of x."""
        return int(self.config["in_channels"])

    @property
    def classes(self) -> int:
        """Number of labels."""
        return int(self.config["num_embeds_ada_norm"])

    def build(self) -> DiffusersDiT:
        """Return a fresh network."""
        import diffusers

        owner: Any = diffusers.DiTTransformer2DModel
        return DiffusersDiT(owner.from_config(self.config))


class DiffusersDiT(family.FamilyNet):
    """net(x [B, C, H, W], timestep [B], {"y": int64 [B]}) -> [B, C, H, W] by the transformer's own modules.

    Of an output with learned variances the first half, the mean, is returned. The label after the last is "no class".
    Sites are those of gen.models.layers.patch.PatchNet but for "time": "trunk", "hidden.3", "blocks.3",
    "blocks.3.attn", "blocks.3.mlp" (with ".raw" inside), "final". Raises UserError for anything but a
    DiTTransformer2DModel.
    """

    def __init__(self, transformer: Any):
        super().__init__()
        if type(transformer).__name__ != "DiTTransformer2DModel":
            raise UserError(f"DiffusersDiT: got {type(transformer).__name__}; allowed: DiTTransformer2DModel")
        self.transformer = transformer
        self.spec = DiffusersSpec(transformer.config)

    def forward(self, x: Tensor, t: Tensor, cond: Cond, *, s: Tensor | None = None, tap: Tap | None = None) -> Tensor:
        family.check(self.spec, x, t, cond, s)
        h = self.transformer.pos_embed(x)  # [B, T, width]
        h = call_site(tap, "trunk", lambda h: self.trunk(h, t, cond["y"], tap), h)
        out = call_site(tap, "final", lambda h: self.head(h, t, cond["y"]), h)  # [B, C or 2C, H, W]
        return out[:, : self.spec.channels]

    def trunk(self, h: Tensor, t: Tensor, y: Tensor, tap: Tap | None) -> Tensor:
        """Run all blocks on tokens h [B, T, width] at timestep t [B] under the labels y [B]."""
        for i, block in enumerate(self.transformer.transformer_blocks):
            after = partial(_run_block, block, t=t, y=y, i=i, tap=tap)
            h = call_site(tap, f"hidden.{i}", recomputed(self.transformer, after), h)
        return h

    def head(self, h: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Return the image [B, C or 2C, H, W] of the last tokens h [B, T, width]."""
        model = self.transformer
        c = model.transformer_blocks[0].norm1.emb(t, y, hidden_dtype=h.dtype)  # [B, width]
        shift, scale = model.proj_out_1(nn.functional.silu(c)).chunk(2, 1)
        tokens = model.proj_out_2(modulate(model.norm_out(h), shift, scale))  # [B, T, patch * patch * channels]
        return unpatchify(tokens, model.config.patch_size)


def _run_block(block: Any, h: Tensor, t: Tensor, y: Tensor, i: int, tap: Tap | None) -> Tensor:
    """Return tokens h [B, T, width] after block i; a BasicTransformerBlock has its own embedders of time and label."""
    site = f"blocks.{i}"

    def residual(h: Tensor) -> Tensor:
        c = block.norm1.emb(t, y, hidden_dtype=h.dtype)  # [B, width]
        modulation = block.norm1.linear(block.norm1.silu(c))[:, None]  # [B, 1, 6 width]
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, -1)

        def attn(h: Tensor) -> Tensor:
            h = modulate(block.norm1.norm(h), shift1, scale1)
            return gate1 * call_site(tap, f"{site}.attn.raw", block.attn1, h)

        def mlp(h: Tensor) -> Tensor:
            h = modulate(block.norm3(h), shift2, scale2)
            return gate2 * call_site(tap, f"{site}.mlp.raw", block.ff, h)

        first = call_site(tap, f"{site}.attn", attn, h)  # [B, T, width]
        return first + call_site(tap, f"{site}.mlp", mlp, h + first)

    return h + call_site(tap, site, residual, h)
