"""A memory that is a small network and learns while it reads."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, normalize, silu

from gen.config.fields import check_fields
from gen.kernels.linear_scan import linear_scan
from gen.models.layers.mixers.lib.directions import Both

__all__ = ["Titans", "TitansLayer", "gradients", "memorise", "recall"]

Memory = list[Tensor]  # matrices [..., out, in] of an MLP, the first layer first


@dataclass(frozen=True)
class Titans:
    """Memory at test time, in both directions (Behrouz et al. 2024, arXiv 2501.00663).

    M_t = (1 - a_t) M_(t-1) + S_t, S_t = e_t S_(t-1) - r_t grad |M(k_t) - v_t|^2 / 2, and o_t = M_t(q_t): an MLP in each
    head that every token trains, with a forgetting a, a momentum e and a rate r of its own. Its first weights are
    learned. With one layer and no momentum it is the gated delta rule. Queries and keys are of unit length.

    Attributes:
        heads: of it.
        layers: of the memory, with SiLU between them; 1 for a matrix.
        expand: inner channels of the memory over a head's.
        chunk: tokens whose gradients are taken at one M, the one before the first of them: T / chunk steps one after
            another in place of T.
        rate: largest r.
        shared: one set of weights for both directions.
    """

    heads: int = 4
    layers: int = 2
    expand: int = 2
    chunk: int = 4
    rate: float = 0.5
    shared: bool = False

    def __post_init__(self) -> None:
        one = dict.fromkeys(("heads", "layers", "expand", "chunk"), "[1, inf)")
        check_fields(self, rate="(0, inf)", **one)

    def build(self, width: int, grid: tuple[int, int]) -> nn.Module:
        """Return the module for tokens of a width."""
        return Both(functools.partial(TitansLayer, width, self), self.shared)


def recall(memory: Memory, q: Tensor) -> Tensor:
    """Return what a memory says of q, [..., e].

    Args:
        memory: its matrices [..., out, in].
        q: [..., d].
    """
    for i, weight in enumerate(memory):
        q = (weight @ (silu(q) if i else q)[..., None])[..., 0]
    return q


def gradients(memory: Memory, k: Tensor, v: Tensor) -> Memory:
    """Return the gradient of |M(k) - v|^2 / 2 to every matrix of a memory, themselves differentiable.

    Args:
        memory: its matrices [..., out, in].
        k: [..., d].
        v: [..., e].
    """
    inputs, slopes = [k], [torch.ones_like(k)]  # of each layer, and the derivative of what it went through
    for weight in memory[:-1]:
        z = (weight @ inputs[-1][..., None])[..., 0]
        gate = z.sigmoid()
        inputs.append(z * gate)
        slopes.append(gate * (1 + z * (1 - gate)))
    back = (memory[-1] @ inputs[-1][..., None])[..., 0] - v
    found: Memory = []
    for weight, given, slope in zip(reversed(memory), reversed(inputs), reversed(slopes), strict=True):
        found.insert(0, back[..., None] * given[..., None, :])
        back = (weight.mT @ back[..., None])[..., 0] * slope
    return found


def memorise(
    start: Memory, q: Tensor, k: Tensor, v: Tensor, forget: Tensor, momentum: Tensor, rate: Tensor, chunk: int
) -> Tensor:
    """Return o_t = M_t(q_t), [B, T, H, e].

    Args:
        start: matrices [H, out, in] of the memory before the first token.
        q, k: [B, T, H, d].
        v: [B, T, H, e].
        forget, momentum, rate: a, e, r of each token, [B, T, H].
        chunk: see Titans.
    """
    memory = [weight.expand(len(q), *weight.shape) for weight in start]  # each [B, H, out, in]
    speed = [torch.zeros_like(weight) for weight in memory]
    outs = []
    for part in zip(*(x.split(chunk, 1) for x in (q, k, v, forget, momentum, rate)), strict=True):
        ask, key, value, a, e, r = (x[..., None, None] if x.ndim == 3 else x for x in part)
        after: Memory = []
        for i, slope in enumerate(gradients([weight[:, None] for weight in memory], key, value)):
            pace = linear_scan(e, -r * slope, speed[i])  # [B, chunk, H, out, in]
            after.append(linear_scan(1 - a, pace, memory[i]))
            speed[i], memory[i] = pace[:, -1], after[i][:, -1]
        outs.append(recall(after, ask))
    return torch.cat(outs, 1)


class TitansLayer(nn.Module):
    """Tokens h [B, T, width] -> [B, T, width], from the first to the last.

    Args:
        width: of the tokens.
        spec: the hyperparameters.
    """

    def __init__(self, width: int, spec: Titans):
        super().__init__()
        self.spec, size = spec, width // spec.heads
        inner = [size, *[spec.expand * size] * (spec.layers - 1), size]
        self.memory = nn.ParameterList(
            torch.randn(spec.heads, out, into) * into**-0.5 for into, out in itertools.pairwise(inner)
        )
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.gates = nn.Linear(width, 3 * spec.heads)  # forgetting, momentum, rate
        self.g_proj = nn.Linear(width, width, bias=False)
        self.norm = nn.RMSNorm(size, eps=1e-5)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = silu(self.qkv(h)).unflatten(-1, (3, self.spec.heads, -1)).unbind(2)
        forget, momentum, rate = self.gates(h).chunk(3, -1)
        forget = -torch.expm1(logsigmoid(forget) / 16)  # little, as of other gates
        rate, q, k = self.spec.rate * rate.sigmoid(), normalize(q, dim=-1), normalize(k, dim=-1)
        mixed = memorise(list(self.memory), q, k, v, forget, momentum.sigmoid(), rate, self.spec.chunk)
        out: Tensor = self.o_proj(self.norm(mixed).flatten(2) * silu(self.g_proj(h)))
        return out
