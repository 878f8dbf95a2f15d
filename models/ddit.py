"""DDiT: the transformer that MDLM and BD3-LM train, a DiT of tokens (Lou et al. 2023; Sahoo et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.diffusion.tap import Tap, call_site
from gen.models.layers import family, init
from gen.models.layers.block import Mlp, modulate, run_block
from gen.models.layers.embed import TimeEmbedding
from gen.models.layers.text import AttentionContext, TextAttention, rows_at
from gen.models.text import Text, TextNet

__all__ = ["DDiT", "DDiTNet"]

SMALL = {"width": 768, "depth": 12, "heads": 12}


@dataclass(frozen=True)
class DDiT(Text):
    """DiT's block on tokens: layer norms, GELU, rotary embedding, all of it modulated by a time that is always 0.

    As published without time conditioning, so the modulations are learned constants of each block. Presets: "MDLM-OWT",
    of GPT-2's ids and a mask, "MDLM-LM1B", of BERT's, and "nano". Fields are Text's, but for:

    Attributes:
        hidden: channels of the MLP; None for 4 times the width.
        norm_eps: of the layer norms, and of the norms of queries and keys.
        cond_width: channels of the embedding of time.
    """

    presets: ClassVar[family.Presets] = {
        "MDLM-OWT": {**SMALL, "vocab_size": 50258, "length": 1024, "mask_token_id": 50257, "eos_token_ids": (50256,)},
        "MDLM-LM1B": {**SMALL, "vocab_size": 30522, "length": 128, "mask_token_id": 103, "eos_token_ids": (102,)},
        "nano": {"length": 128, "width": 64, "depth": 2, "heads": 4, "cond_width": 32},
    }

    norm_eps: float = 1e-5
    cond_width: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, cond_width="[1, inf)")
        if self.experts is not None:
            raise UserError("DDiT: its blocks have an MLP and no experts; Text has them")

    def build(self) -> DDiTNet:
        """Return the network, freshly initialised: its predictions are uniform, and every block the identity."""
        return DDiTNet(self)


class Conditions(NamedTuple):
    """What the blocks take besides tokens.

    Attributes:
        attention: angles, mask and KV cache.
        time: embedding of time 0, [1, cond_width].
    """

    attention: AttentionContext
    time: Tensor


class DDiTNet(TextNet):
    """DDiT's network; see gen.models.text.TextNet for its sites."""

    spec: DDiT
    shareable = False

    def __init__(self, spec: DDiT):
        nn.Module.__init__(self)  # of TextNet's parts only the table is here
        self.spec, width = spec, spec.width
        self.embed = nn.Embedding(spec.vocab_size, width)
        self.sigma_map = TimeEmbedding(spec.cond_width)
        self.blocks = nn.ModuleList(DDiTBlock(spec, i) for i in range(spec.depth))
        self.final_norm = nn.LayerNorm(width, eps=spec.norm_eps, bias=False)
        self.final_modulation = nn.Linear(spec.cond_width, 2 * width)
        self.head_weight = None if spec.tied else nn.Parameter(torch.zeros(spec.vocab_size, width))
        self.head_bias = nn.Parameter(torch.zeros(spec.vocab_size))
        nn.init.uniform_(self.embed.weight, -(width**-0.5), width**-0.5)
        init.zeros(self.final_modulation, *(block.get_submodule("adaLN_modulation") for block in self.blocks))

    def _trunk(self, h: Tensor, context: AttentionContext, tap: Tap | None, columns: Tensor | None = None) -> Tensor:
        c = Conditions(context, self._time(h))
        for i, block in enumerate(self.blocks):
            h = run_block(block, h, c, i, tap)
        return h if columns is None else rows_at(h, columns)

    def _logits(self, h: Tensor) -> Tensor:
        shift, scale = self.final_modulation(self._time(h)).chunk(2, -1)  # [1, width] each
        weight = self.embed.weight if self.head_weight is None else self.head_weight
        return linear(modulate(self.final_norm(h), shift, scale), weight, self.head_bias)

    def _time(self, h: Tensor) -> Tensor:
        return silu(self.sigma_map(torch.zeros(1, device=h.device)))


class DDiTBlock(nn.Module):
    """The residuals of block `layer` to h [B, F, width]: attention, then an MLP, each modulated and gated.

    Attributes:
        gradient_checkpointing: see gen.models.layers.recompute.
    """

    gradient_checkpointing = False

    def __init__(self, spec: DDiT, layer: int):
        super().__init__()
        width, heads = spec.width, spec.heads
        self.layer = layer
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=spec.norm_eps, bias=False) for _ in range(2))
        self.attn = TextAttention(width, heads, spec.key_heads, spec.dim, spec.qkv_bias, spec.qk_norm, spec.norm_eps)
        self.mlp = Mlp(width, 4 * width if spec.hidden is None else spec.hidden)
        self.adaLN_modulation = nn.Linear(spec.cond_width, 6 * width)

    def residuals(
        self, h: Tensor, c: Conditions, site: str, tap: Tap | None = None, rope: None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the residual of the attention and that of the MLP; see gen.models.layers.block.run_block."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c.time).chunk(6, -1)  # [1, width] each

        def attn(h: Tensor) -> Tensor:
            return gate1 * self.attn(modulate(self.norm1(h), shift1, scale1), c.attention, self.layer)

        def mlp(h: Tensor) -> Tensor:
            return gate2 * self.mlp(modulate(self.norm2(h), shift2, scale2))

        first = call_site(tap, f"{site}.attn", attn, h)
        return first, call_site(tap, f"{site}.mlp", mlp, h + first)
