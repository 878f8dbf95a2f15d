"""The decoder of RAE, that of a masked autoencoder, under the names of its published weights; and its block."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gen.diffusion.tap import Tap, call_site
from gen.models.layers.embed import grid_embedding

__all__ = ["Layer", "ViTDecoder"]

EPS = 1e-12  # of all norms


class ViTDecoder(nn.Module):
    """Tokens [B, N, dim] to patches [B, N, patch^2 * channels], pixels row by row with channels innermost.

    A class token comes first, and is left out at the end; positions are fixed waves, and stored. Sites: "blocks.3.attn"
    and "blocks.3.mlp", the two residuals.
    """

    decoder_pos_embed: Tensor

    def __init__(self, dim: int, grid: int, out: int, width: int, depth: int, heads: int, hidden: int):
        super().__init__()
        self.decoder_embed = nn.Linear(dim, width)
        self.trainable_cls_token = nn.Parameter(torch.zeros(1, 1, width))
        table = grid_embedding(width, grid)
        self.register_buffer("decoder_pos_embed", torch.cat([torch.zeros(1, width), table.float()])[None])
        self.decoder_layers = nn.ModuleList(Layer(width, heads, hidden) for _ in range(depth))
        self.decoder_norm = nn.LayerNorm(width, eps=EPS)
        self.decoder_pred = nn.Linear(width, out)

    def forward(self, tokens: Tensor, tap: Tap | None = None) -> Tensor:
        h = self.decoder_embed(tokens)
        h = torch.cat([self.trainable_cls_token.expand(len(h), -1, -1), h], 1) + self.decoder_pos_embed.to(h.dtype)
        for i, layer in enumerate(self.decoder_layers):
            h = layer(h, f"blocks.{i}", tap)
        out: Tensor = self.decoder_pred(self.decoder_norm(h))
        return out[:, 1:]


class Layer(nn.Module):
    """A pre-norm block; its mask, bool [T, T], is True where a token, a row, attends to another."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.attention = Attention(width, heads)
        self.intermediate = Dense(width, hidden)
        self.output = Dense(hidden, width)
        self.layernorm_before = nn.LayerNorm(width, eps=EPS)
        self.layernorm_after = nn.LayerNorm(width, eps=EPS)

    def forward(self, h: Tensor, site: str, tap: Tap | None, mask: Tensor | None = None) -> Tensor:
        h = h + call_site(tap, f"{site}.attn", lambda h: self.attention(self.layernorm_before(h), mask), h)
        return h + call_site(tap, f"{site}.mlp", self.mlp, h)

    def mlp(self, h: Tensor) -> Tensor:
        """Return what the MLP adds."""
        return self.output(F.gelu(self.intermediate(self.layernorm_after(h))))


class Attention(nn.Module):
    """Multi-head self-attention with a bias everywhere."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attention = QKV(width, heads)
        self.output = Dense(width, width)

    def forward(self, h: Tensor, mask: Tensor | None) -> Tensor:
        return self.output(self.attention(h, mask))


class QKV(nn.Module):
    """Queries, keys and values, each by its own product, and what the attention makes of them."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, h: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (
            part(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)


class Dense(nn.Module):
    """A linear map, one level down as in the published names."""

    def __init__(self, into: int, out: int):
        super().__init__()
        self.dense = nn.Linear(into, out)

    def forward(self, h: Tensor) -> Tensor:
        return self.dense(h)
