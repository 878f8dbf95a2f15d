"""DiT^DH: a transformer with a wide and shallow head, for latents of very many channels (RAE, Zheng et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.nn.functional import silu

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.diffusion.denoiser import Cond
from gen.diffusion.tap import Tap, call_site
from gen.models.layers import family, init
from gen.models.layers.block import Block, FinalLayer, SwiGLU, run_block
from gen.models.layers.embed import ClassEmbedding, GaussianTimeEmbedding, grid_embedding
from gen.models.layers.patch import unpatchify
from gen.models.layers.rope import Rope, axial_angles

__all__ = ["DiTDH", "DiTDHNet"]

SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}  # depth, width, heads
DIGITS = {"size": 8, "patch": 2, "channels": 1, "classes": 10, "width": 48, "depth": 4, "heads": 4}
DIGITS_HEAD = {"head_width": 80, "head_depth": 1, "head_heads": 4}


def _table() -> family.Presets:
    """Return DiTDH-S ... DiTDH-XL, and one for digits."""
    sizes = {
        f"DiTDH-{size}": {"depth": depth, "width": width, "heads": heads}
        for size, (depth, width, heads) in SIZES.items()
    }
    return {**sizes, "digits": {**DIGITS, **DIGITS_HEAD}}


@dataclass(frozen=True)
class DiTDH(family.Family):
    """DDT's division with a head of its own width; the defaults are the published DiTDH-XL on DINOv2-B's 16 x 16 x 768.

    The encoder computes one vector s of x for each token; the head has x anew, and s as its condition. Presets:
    "DiTDH-S" to "DiTDH-XL", and "digits".

    Attributes:
        size: height and width of x, pixels; 16 for RAE's latents.
        patch: side of a token's square, pixels.
        channels: of x; 768 for DINOv2-B.
        classes: number of labels, 0 for none; the label table has one more row, for "no class".
        width: channels of the encoder's tokens; 384 (S), 768 (B), 1024 (L), 1152 (XL).
        depth: number of blocks of the encoder; 12, 12, 24, 28.
        heads: of the encoder's attention; 6, 12, 16, 16.
        head_width: channels of the head's tokens, at least channels * patch^2: the noise in a token fills all its
            dimensions, and a narrower network cannot return it, however long it is trained (theorem in the paper).
        head_depth: number of blocks of the head.
        head_heads: of the head's attention.
        mlp_ratio: the hidden width of the MLP is 2/3 of mlp_ratio * width.
        qk_norm: RMS-normalise queries and keys (gen.models.layers.attention).
        silu_twice: conditions pass SiLU where they are computed, and again where they are used, as published; False
            leaves out the first.
        time_scale: factor on t; 1 for t in [0, 1] as published.
        time_convention: what t = 1 means to the network; "data" passes it 1 - t.
    """

    presets: ClassVar[family.Presets] = _table()

    size: int = 16
    patch: int = 1
    channels: int = 768
    classes: int = 1000
    width: int = 1152
    depth: int = 28
    heads: int = 16
    head_width: int = 2048
    head_depth: int = 2
    head_heads: int = 16
    mlp_ratio: float = 4.0
    qk_norm: bool = False
    silu_twice: bool = True
    time_scale: float = 1.0
    time_convention: Literal["noise", "data"] = "noise"

    def __post_init__(self) -> None:
        family.at_least(self, size=1, patch=1, channels=1, width=1, depth=1, heads=1, head_depth=1, head_heads=1)
        family.at_least(self, classes=0)
        check_fields(self, mlp_ratio="(0, 1000]")
        family.divisible(self, "size", self.patch, "patch")
        family.divisible(self, "width", 4 * self.heads, "4 * heads")
        family.divisible(self, "head_width", 4 * self.head_heads, "4 * head_heads")
        numbers = self.channels * self.patch**2
        if self.head_width < numbers:
            raise UserError(
                f"DiTDH.head_width {self.head_width} is less than a token's {numbers} numbers, channels * patch^2: "
                f"so narrow a head cannot return their noise; give at least {numbers}"
            )

    def build(self) -> DiTDHNet:
        """Return a fresh network: its output is zero and every block the identity."""
        return DiTDHNet(self)


class DiTDHNet(family.FamilyNet):
    """DiTDH's network. Names in the state dict are the published ones.

    The sites of a tap are those of gen.models.ddt.DDTNet; "trunk" is the head, of its own width.
    """

    def __init__(self, spec: DiTDH):
        super().__init__()
        self.spec = spec
        width, head, side = spec.width, spec.head_width, spec.size // spec.patch
        self.x_embedder = nn.ModuleDict({"proj": nn.Conv2d(spec.channels, head, spec.patch, spec.patch)})
        self.s_embedder = nn.ModuleDict({"proj": nn.Conv2d(spec.channels, width, spec.patch, spec.patch)})
        self.s_projector = nn.Linear(width, head) if width != head else nn.Identity()
        self.pos_embed = nn.Parameter(grid_embedding(width, side)[None], requires_grad=False)
        self.t_embedder = GaussianTimeEmbedding(width, scale=spec.time_scale, convention=spec.time_convention)
        self.y_embedder = ClassEmbedding(spec.classes, width) if spec.classes else None
        self.enc_feat_rope = Rope(axial_angles(width // spec.heads, side))
        self.dec_feat_rope = Rope(axial_angles(head // spec.head_heads, side))
        sizes = [(width, spec.heads)] * spec.depth + [(head, spec.head_heads)] * spec.head_depth
        self.blocks = nn.ModuleList(
            Block(w, heads, 2 * int(spec.mlp_ratio * w) // 3, spec.qk_norm, mlp=SwiGLU, rms=True) for w, heads in sizes
        )
        self.final_layer = FinalLayer(head, spec.channels * spec.patch**2, rms=True)
        self._initialise()

    def forward(self, x: Tensor, t: Tensor, cond: Cond, *, s: Tensor | None = None, tap: Tap | None = None) -> Tensor:
        family.check(self.spec, x, t, cond, s)
        time = call_site(tap, "time", self.t_embedder, t)  # [B, width]
        h = self.pos_embed + self.s_embedder["proj"](x).flatten(2).mT  # [B, T, width]
        encoded = self.s_projector(call_site(tap, "encoder", lambda h: self.encode(h, time, cond, tap), h))
        h = self.x_embedder["proj"](x).flatten(2).mT  # [B, T, head_width]
        h = call_site(tap, "trunk", lambda h: self.decode(h, encoded, tap), h)
        return call_site(tap, "final", lambda h: unpatchify(self.final_layer(h, encoded), self.spec.patch), h)

    def encode(self, h: Tensor, time: Tensor, cond: Cond, tap: Tap | None) -> Tensor:
        """Return the head's condition s [B, T, width], from embedded tokens h [B, T, width] and time [B, width]."""
        c = self._silu(time if self.y_embedder is None else time + self.y_embedder(cond["y"]))  # [B, width]
        for i, block in enumerate(self.blocks[: self.spec.depth]):
            h = run_block(block, h, c, i, tap, self.enc_feat_rope)  # [B, T, width]
        return self._silu(time[:, None] + h)

    def decode(self, h: Tensor, encoded: Tensor, tap: Tap | None) -> Tensor:
        """Run the head's blocks on tokens h under the encoder's s, `encoded`; both [B, T, head_width]."""
        for i, block in enumerate(self.blocks[self.spec.depth :], self.spec.depth):
            h = run_block(block, h, encoded, i, tap, self.dec_feat_rope)  # [B, T, head_width]
        return h

    def _silu(self, c: Tensor) -> Tensor:
        return silu(c) if self.spec.silu_twice else c

    def _initialise(self) -> None:
        """Initialise as published: linear maps as torch does, but what modulates, and the output, at zero."""
        init.xavier_patches(self.x_embedder["proj"])
        init.xavier_patches(self.s_embedder["proj"])
        init.normal_embeddings(self)
        init.zeros(*(block.adaLN_modulation for block in self.blocks))
        init.zeros(self.final_layer.adaLN_modulation, self.final_layer.linear)
