"""LightNet's mixer of tokens: attention that is a softmax per channel of the keys, so that one scan is enough.

The additive recurrence, channelwise in k_t and Z_t in R^d, with v_t in R^e and S_t in R^(d x e),

    Z_t = Z_(t-1) + exp(k_t),   Z_t S_t = Z_(t-1) S_(t-1) + exp(k_t) v_t^T,   o_t = S_t^T q_t

weights every token so far by its share of the sum: o_t = sum_(s <= t) (q_t . softmax_s(k)) v_s. A share does not fade
with distance, so tokens without an order, such as an image's, are read once and whole instead of once from every side.
(Qin et al. 2024, "You Only Scan Once: Efficient Multi-dimension Sequential Modeling with LightNet", arXiv 2405.21022.)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, silu

from gen.kernels.linear_attention import linear_attention

__all__ = ["LightNetMixer", "Lrpe", "MdTpe", "Tpe", "bidirectional", "causal", "lrpe_angles", "recurrent"]


def bidirectional(q: Tensor, k: Tensor, v: Tensor, encode: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Return the attention [B, H, T, e] of every token to every token, in time T d e.

    Args:
        q, k: [B, H, T, d].
        v: [B, H, T, e].
        encode: position encoding of q and of the shares of k, such as an Lrpe; None for none.
    """
    if encode is None:
        return linear_attention(q, k, v)
    return encode(q) @ (encode(k.softmax(-2)).mT @ v)


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return the attention [B, H, T, e] of every token to itself and those before it; memory T^2 d.

    Args:
        q, k: [B, H, T, d].
        v: [B, H, T, e].
    """
    z = k.logcumsumexp(-2)  # log Z
    later = torch.ones(k.shape[-2], k.shape[-2], dtype=torch.bool, device=k.device).triu(1)
    exponent = k[..., None, :, :] - z[..., :, None, :]  # of s in t: [..., T (t), T (s), d]
    share = exponent.masked_fill(later[..., None], -torch.inf).exp()  # masked first: the later ones' exp may overflow
    return (q[..., :, None, :] * share).sum(-1) @ v


def recurrent(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return the same as `causal`, token by token as in the equations, with log Z, which cannot overflow, for Z.

    Args:
        q, k: [B, H, T, d].
        v: [B, H, T, e].
    """
    z = torch.full_like(k[..., 0, :], -torch.inf)
    state = k.new_zeros(*k.shape[:-2], k.shape[-1], v.shape[-1])  # S: [..., d, e]
    outs = []
    for t in range(k.shape[-2]):
        before, z = z, torch.logaddexp(z, k[..., t, :])
        kept, new = (before - z).exp(), (k[..., t, :] - z).exp()
        state = kept[..., None] * state + new[..., None] * v[..., t, None, :]
        outs.append((q[..., t, None, :] @ state).squeeze(-2))
    return torch.stack(outs, -2)


def lrpe_angles(side: int, heads: int, dim: int, base: float = 10_000.0) -> Tensor:
    """Return the angles of MD-LRPE on a square grid, row by row, float64 [heads, side^2, dim].

    A head's channels are cut in two: the angle of the first is row * theta, of the second column * theta, with
    theta = base^(-2 i / (heads dim)), i counting on from head to head. Tokens without a position, such as text, have 0.

    Args:
        side: cells on a side.
        heads: number of heads.
        dim: channels of a head.
        base: of theta.
    """
    part = (dim + 1) // 2
    i = torch.arange(heads, dtype=torch.float64)[:, None] * dim + torch.arange(part)
    theta = base ** (-2 * i / (heads * dim))  # [heads, part]
    position = torch.arange(side, dtype=torch.float64)
    row, column = position.repeat_interleave(side), position.repeat(side)  # each [side^2]
    return torch.cat([p[:, None] * theta[:, None] for p in (row, column)], 2)[..., :dim]


class Lrpe(nn.Module):
    """x [B, heads, T, dim] -> [B, heads, T, 2 dim]: x cos(angle), then x sin(angle) (MD-LRPE).

    A product of two of them is sum_i x_i y_i cos(angle_i - angle'_i): it depends on relative positions only.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, side: int, heads: int, dim: int, base: float = 10_000.0):
        super().__init__()
        angles = lrpe_angles(side, heads, dim, base)
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x * self.cos, x * self.sin], -1)


class LightNetMixer(nn.Module):
    """Tokens h [B, T, width] -> [B, T, width] by `bidirectional`. Names in the state dict are flash-linear-attention's.

    q passes SiLU; the attention's output is RMS-normalised over all heads and gated by SiLU of a product of two thin
    matrices (rank `gate_rank`). lrpe: encoding of the tokens' positions, or None; the rope that a block hands its
    attention is not used.
    """

    def __init__(self, width: int, heads: int, gate_rank: int, lrpe: Lrpe | None = None):
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.g_proj = nn.Sequential(nn.Linear(width, gate_rank, bias=False), nn.Linear(gate_rank, width, bias=False))
        self.g_norm = nn.RMSNorm(width, eps=1e-5)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.lrpe = lrpe

    def forward(self, h: Tensor, rope: None = None) -> Tensor:
        q, k, v = (
            proj(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )  # each [B, heads, T, width / heads]
        mixed = bidirectional(silu(q), k, v, self.lrpe).transpose(1, 2).flatten(2)  # [B, T, width]
        return self.o_proj(self.g_norm(mixed) * silu(self.g_proj(h)))


class Tpe(nn.Module):
    """Encoding of a token's position along one axis by its predecessors: x [..., n, width] -> [..., n, width].

    Linear attention whose query and key are learned and the same at every position, with a learned decay for each head,

        o_n = sum_(m <= n) decay^(n - m) (q . k) x_m,    decay = sigmoid(log_decay) in (0, 1),

    then RMSNorm and a product. q and k act through q . k alone, one number to a head. At decay 1 all predecessors count
    the same and o_n is a running sum; nothing keeps a trained decay from that end.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        start = (width // heads) ** -0.5  # q . k = 1
        self.heads = heads
        self.q = nn.Parameter(torch.full((width,), start))
        self.k = nn.Parameter(torch.full((width,), start))
        self.log_decay = nn.Parameter(torch.randn(heads))
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.o_proj = nn.Linear(width, width, bias=False)

    def weights(self, n: int) -> Tensor:
        """Return decay^(n - m) (q . k) for every pair of positions, [heads, n, n]; zero for m > n."""
        position = torch.arange(n, device=self.q.device)
        back = position[:, None] - position
        power = (back * logsigmoid(self.log_decay)[:, None, None]).masked_fill(back < 0, -torch.inf)
        gain = (self.q * self.k).reshape(self.heads, -1).sum(1)
        return gain[:, None, None] * power.exp()

    def forward(self, x: Tensor) -> Tensor:
        split = x.reshape(*x.shape[:-1], self.heads, -1)  # [..., n, heads, width / heads]
        summed = torch.einsum("hnm,...mhd->...nhd", self.weights(x.shape[-2]), split)
        return self.o_proj(self.norm(summed.flatten(-2)))


class MdTpe(nn.Module):
    """Tokens of a square grid, row by row, [B, T, width] -> [B, T, width]: the sum of a Tpe along rows and one down."""

    def __init__(self, width: int, heads: int, side: int):
        super().__init__()
        self.side = side
        self.tpes = nn.ModuleList(Tpe(width, heads) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        along, down = self.tpes
        grid = x.reshape(len(x), self.side, self.side, -1)  # [B, row, column, width]
        return (along(grid) + down(grid.transpose(1, 2)).transpose(1, 2)).flatten(1, 2)
