"""REG's network: SiT whose state is an image and an encoder's class token, noised and denoised together.

(Wu et al. 2025, "Representation Entanglement for Generation".)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.diffusion.denoiser import Cond
from gen.diffusion.net import sides
from gen.models.dit import DiT, DiTNet
from gen.models.layers import family
from gen.models.layers.block import modulate
from gen.models.layers.patch import unpatchify

__all__ = ["REG", "REGNet"]


def _table() -> family.Presets:
    """Return REG-B/2, REG-L/2, REG-XL/2, which are DiT's sizes with t in [0, 1], 1 at noise; and one for digits."""
    published = {f"REG-{size}": {**DiT.presets[f"DiT-{size}"], "time_scale": 1.0} for size in ("B/2", "L/2", "XL/2")}
    return {**published, "digits": {**DiT.presets["digits"], "cls_dim": 64}}


@dataclass(frozen=True)
class REG(DiT):
    """A DiT with one more token, in front: the class token of a frozen encoder.

    Presets: "REG-B/2", "REG-L/2", "REG-XL/2" and "digits". The other fields are DiT's; learn_sigma and mup_base have no
    meaning here and must keep their defaults.

    Attributes:
        cls_dim: numbers of the class token; 768 for DINOv2-B, as published.
    """

    presets: ClassVar[family.Presets] = _table()

    cls_dim: int = 768

    def __post_init__(self) -> None:
        super().__post_init__()
        family.at_least(self, cls_dim=1)
        if self.learn_sigma or self.mup_base is not None:
            name, default = ("learn_sigma", False) if self.learn_sigma else ("mup_base", None)
            raise UserError(f"REG.{name} is {getattr(self, name)}; this family has none: it must be {default}")

    @property
    def size_step(self) -> int | None:
        """None: the state is flat, and has no sides."""
        return None

    def build(self) -> REGNet:
        """Return a fresh network: its output is zero and every block the identity."""
        return REGNet(self)


class REGNet(DiTNet):
    """net(x [B, C H W + cls_dim], t [B], {"y": int64 [B]}) -> the same: the image, flattened, then the class token.

    Sites are DiT's, with 1 + T tokens, the class token first. Names in the state dict are the published ones.
    """

    spec: REG
    final_layer: JointFinal

    def __init__(self, spec: REG):
        super().__init__(spec)
        width = spec.width
        none = torch.zeros(1, 1, width)  # the class token has no position
        self.pos_embed = nn.Parameter(torch.cat([none, self.pos_embed.detach()], 1), requires_grad=False)
        self.cls_projectors2 = nn.Linear(spec.cls_dim, width)
        self.wg_norm = nn.LayerNorm(width, eps=1e-6)
        self.final_layer = JointFinal(width, spec.patch**2 * spec.channels, spec.cls_dim)
        nn.init.xavier_uniform_(self.cls_projectors2.weight)
        nn.init.zeros_(self.cls_projectors2.bias)

    @property
    def state_shape(self) -> tuple[int]:
        """The shape of one x."""
        return (self.pixels + self.spec.cls_dim,)

    @property
    def pixels(self) -> int:
        """Numbers in the image: where the class token begins."""
        height, width = sides(self.spec)
        return self.spec.channels * height * width

    def image(self, x: Tensor) -> Tensor:
        """Return the image [B, C, H, W] in a state x [B, C H W + cls_dim]."""
        return x[:, : self.pixels].reshape(-1, self.spec.channels, *sides(self.spec))

    def check(self, x: Tensor, t: Tensor, cond: Cond, s: Tensor | None) -> None:
        """Raise UserError unless the arguments fit."""
        if tuple(x.shape[1:]) != self.state_shape:
            spec, (n,), (height, width) = self.spec, self.state_shape, sides(self.spec)
            parts = f"{spec.channels} x {height} x {width} and {spec.cls_dim} of cls"
            raise UserError(f"x has shape {list(x.shape)}; this REG takes [B, {n}]: {parts}")
        super().check(self.image(x), t, cond, s)

    def embed(self, x: Tensor) -> Tensor:
        """Return the tokens of a state x, the class token first, with their positions, [B, 1 + T, width]."""
        token = self.wg_norm(self.cls_projectors2(x[:, self.pixels :]))[:, None]  # [B, 1, width]
        patches = self.x_embedder["proj"](self.image(x)).flatten(2).mT  # [B, T, width]
        return self.pos_embed + torch.cat([token, patches], 1)

    def head(self, h: Tensor, c: Tensor, size: Sequence[int] = ()) -> Tensor:
        """Return the state [B, C H W + cls_dim] of the last tokens h [B, 1 + T, width] under c [B, width]."""
        patches, cls = self.final_layer(h, c)
        patch = self.spec.patch
        return torch.cat([unpatchify(patches, patch, sides(self.spec)[0] // patch).flatten(1), cls], 1)


class JointFinal(nn.Module):
    """Tokens [B, 1 + T, width] to patches [B, T, out] and class token [B, cls_dim]; zero when fresh."""

    def __init__(self, width: int, out: int, cls_dim: int):
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, out)
        self.linear_cls = nn.Linear(width, cls_dim)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        for zero in self.parameters():
            nn.init.zeros_(zero)

    def forward(self, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        shift, scale = self.adaLN_modulation(c).chunk(2, 1)
        h = modulate(self.norm_final(h), shift, scale)
        return self.linear(h[:, 1:]), self.linear_cls(h[:, 0])
