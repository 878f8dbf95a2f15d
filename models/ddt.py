"""DDT: an encoder of what the picture shows, and a small decoder of its change (Wang et al. 2025, arXiv 2504.05741)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.nn.functional import fold, silu, unfold

from gen.config.fields import check_fields
from gen.diffusion.denoiser import Cond
from gen.diffusion.tap import Tap, call_site
from gen.models.layers import family, init
from gen.models.layers.block import Block, FinalLayer, SplitSwiGLU, run_block
from gen.models.layers.embed import ClassEmbedding, TimeEmbedding
from gen.models.layers.rope import Rope, interleaved_angles

__all__ = ["DDT", "DDTNet"]

SIZES = {"B": (8, 4, 768, 12), "L": (20, 4, 1024, 16), "XL": (22, 6, 1152, 16)}  # encoder, decoder, width, heads
DIGITS = {"size": 8, "channels": 1, "classes": 10, "width": 64, "encoder": 3, "decoder": 1, "heads": 4}


def _table() -> family.Presets:
    """Return DDT-B/2, DDT-L/2, DDT-XL/2, and one for digits."""
    table = {
        f"DDT-{size}/2": {"encoder": encoder, "decoder": decoder, "width": width, "heads": heads}
        for size, (encoder, decoder, width, heads) in SIZES.items()
    }
    return {**table, "digits": {**DIGITS, "time_scale": 1000.0, "max_period": 10_000.0, "time_convention": "noise"}}


@dataclass(frozen=True)
class DDT(family.Family):
    """A decoupled transformer; the defaults are the published DDT-XL/2 for 256 x 256 ImageNet in 32 x 32 x 4 latents.

    The encoder, under time and class, computes one vector s of x for each token; the decoder, on x anew, has s as its
    condition and no other. From step to step s changes little, so the encoder may be run at some steps only
    (gen.samplers.caches.ddt_shared). Each condition passes SiLU once, before it is used. Positions enter by rotated
    queries and keys only. Presets: "DDT-B/2", "DDT-L/2", "DDT-XL/2" and "digits".

    Attributes:
        size: height and width of x, pixels.
        patch: side of a token's square, pixels.
        channels: of x.
        classes: number of labels, 0 for none; the label table has one more row, for "no class".
        width: channels of a token; 768 (B), 1024 (L), 1152 (XL).
        encoder: number of blocks of the encoder; 8, 20, 22.
        decoder: number of blocks of the decoder; 4, 4, 6.
        heads: of attention; 12, 16, 16.
        mlp_ratio: the hidden width of the MLP is 2/3 of mlp_ratio * width.
        qk_norm: RMS-normalise queries and keys (gen.models.layers.attention).
        span: rotary positions are spread over 0 .. span, whatever the size.
        max_period: of the waves of time (gen.models.layers.embed.waves); 10 for t in [0, 1] as published.
        time_scale: factor on t.
        time_convention: what t = 1 means to the network; "data" as published.
    """

    presets: ClassVar[family.Presets] = _table()

    size: int = 32
    patch: int = 2
    channels: int = 4
    classes: int = 1000
    width: int = 1152
    encoder: int = 22
    decoder: int = 6
    heads: int = 16
    mlp_ratio: float = 4.0
    qk_norm: bool = True
    span: float = 16.0
    max_period: float = 10.0
    time_scale: float = 1.0
    time_convention: Literal["noise", "data"] = "data"

    def __post_init__(self) -> None:
        family.at_least(self, size=1, patch=1, channels=1, width=1, encoder=1, decoder=1, heads=1, classes=0)
        check_fields(self, mlp_ratio="(0, 1000]", span="(0, inf)", max_period="(0, inf)")
        family.divisible(self, "size", self.patch, "patch")
        family.divisible(self, "width", 4 * self.heads, "4 * heads")

    def build(self) -> DDTNet:
        """Return a fresh network: its output is zero, though its blocks are not the identity."""
        return DDTNet(self)


class DDTNet(family.FamilyNet):
    """DDT's network. Names in the state dict are the published ones.

    Sites of a tap. Residuals: "blocks.3", "blocks.3.attn", "blocks.3.mlp" (see gen.models.layers.patch.PatchNet), the
    decoder's numbered on from the encoder's. Whole values: "time"; "encoder" (the embedded tokens -> s [B, T, width]);
    "trunk" (tokens before the decoder's first block -> after its last); "hidden.3"; "final". A cache of "encoder" and
    "trunk" together stands for the whole network.
    """

    def __init__(self, spec: DDT):
        super().__init__()
        self.spec = spec
        width, numbers = spec.width, spec.channels * spec.patch**2
        self.x_embedder = nn.ModuleDict({"proj": nn.Linear(numbers, width)})
        self.s_embedder = nn.ModuleDict({"proj": nn.Linear(numbers, width)})
        period, scale = spec.max_period, spec.time_scale
        self.t_embedder = TimeEmbedding(width, max_period=period, scale=scale, convention=spec.time_convention)
        self.y_embedder = ClassEmbedding(spec.classes, width) if spec.classes else None
        self.rope = Rope(interleaved_angles(width // spec.heads, spec.size // spec.patch, spec.span), saved=False)
        hidden = 2 * int(spec.mlp_ratio * width) // 3
        self.blocks = nn.ModuleList(
            Block(width, spec.heads, hidden, spec.qk_norm, mlp=SplitSwiGLU, rms=True, silu=False, bias=False)
            for _ in range(spec.encoder + spec.decoder)
        )
        self.final_layer = FinalLayer(width, numbers, silu=False)
        self._initialise()

    def forward(self, x: Tensor, t: Tensor, cond: Cond, *, s: Tensor | None = None, tap: Tap | None = None) -> Tensor:
        family.check(self.spec, x, t, cond, s)
        patch = self.spec.patch
        patches = unfold(x, patch, stride=patch).mT  # [B, T, C * patch * patch], the channel slowest
        time = call_site(tap, "time", self.t_embedder, t)  # [B, width]
        h = self.s_embedder["proj"](patches)  # [B, T, width]
        encoded = call_site(tap, "encoder", lambda h: self.encode(h, time, cond, tap), h)
        h = call_site(tap, "trunk", lambda h: self.decode(h, encoded, tap), self.x_embedder["proj"](patches))

        def final(h: Tensor) -> Tensor:
            return fold(self.final_layer(h, encoded).mT, x.shape[2:], patch, stride=patch)

        return call_site(tap, "final", final, h)  # [B, C, H, W]

    def encode(self, h: Tensor, time: Tensor, cond: Cond, tap: Tap | None) -> Tensor:
        """Return the decoder's condition s [B, T, width], from embedded tokens h [B, T, width] and time [B, width]."""
        c = silu(time if self.y_embedder is None else time + self.y_embedder(cond["y"]))  # [B, width]
        for i, block in enumerate(self.blocks[: self.spec.encoder]):
            h = run_block(block, h, c, i, tap, self.rope)  # [B, T, width]
        return silu(time[:, None] + h)

    def decode(self, h: Tensor, encoded: Tensor, tap: Tap | None) -> Tensor:
        """Run the decoder's blocks on tokens h [B, T, width] under the encoder's s, `encoded` [B, T, width]."""
        for i, block in enumerate(self.blocks[self.spec.encoder :], self.spec.encoder):
            h = run_block(block, h, encoded, i, tap, self.rope)  # [B, T, width]
        return h

    def _initialise(self) -> None:
        """Initialise as published: blocks and their modulations as torch does, only the last layer at zero."""
        init.xavier_patches(self.x_embedder["proj"])
        init.xavier_patches(self.s_embedder["proj"])
        init.normal_embeddings(self)
        init.zeros(self.final_layer.adaLN_modulation, self.final_layer.linear)
