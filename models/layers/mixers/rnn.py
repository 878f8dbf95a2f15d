"""Recurrent networks by heads: LSTM, GRU, sLSTM."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from gen.config.fields import check_fields
from gen.models.layers.mixers.lib.directions import Both

__all__ = ["RNN", "RNNLayer", "gru", "lstm", "slstm"]

State = tuple[Tensor, ...]


@dataclass(frozen=True)
class RNN:
    """A recurrence whose state is mixed within heads, in both directions (FlashRNN, Pöppel et al. 2024).

    It remembers in a way that no linear recurrence can, and is sequential: T steps, one after another.

    Attributes:
        heads: blocks of the recurrent weights.
        cell: "lstm", "gru" or "slstm", xLSTM's with exponential gates.
        shared: one set of weights for both directions.
    """

    heads: int = 4
    cell: Literal["lstm", "gru", "slstm"] = "lstm"
    shared: bool = False

    def __post_init__(self) -> None:
        check_fields(self, heads="[1, inf)")

    def build(self, width: int, grid: tuple[int, int]) -> nn.Module:
        """Return the module for tokens of a width."""
        return Both(functools.partial(RNNLayer, width, self.heads, self.cell), self.shared)


def lstm(x: Tensor, r: Tensor, state: State) -> tuple[Tensor, State]:
    """Make a step of an LSTM, as torch.nn.LSTM has it.

    Args:
        x: from the token, for gates in the order i, f, z, o: [B, 4, H, d].
        r: from the hidden state, the same.
        state: c, [B, H, d].
    """
    i, f, z, o = (x + r).unbind(1)
    c = f.sigmoid() * state[0] + i.sigmoid() * z.tanh()
    return o.sigmoid() * c.tanh(), (c,)


def gru(x: Tensor, r: Tensor, state: State) -> tuple[Tensor, State]:
    """Make a step of a GRU, as torch.nn.GRU has it.

    Args:
        x: from the token, for r, z, n: [B, 3, H, d].
        r: from the hidden state, the same.
        state: h itself, [B, H, d].
    """
    (reset, z, n), (r_reset, r_z, r_n) = x.unbind(1), r.unbind(1)
    z = (z + r_z).sigmoid()
    h = z * state[0] + (1 - z) * (n + (reset + r_reset).sigmoid() * r_n).tanh()
    return h, (h,)


def slstm(x: Tensor, r: Tensor, state: State) -> tuple[Tensor, State]:
    """Make a step of an sLSTM, whose exponential gates are kept small by their running maximum m.

    Args:
        x: from the token, for gates in the order i, f, z, o: [B, 4, H, d].
        r: from the hidden state, the same.
        state: c, n, m, [B, H, d]; m is -inf at first.
    """
    i, f, z, o = (x + r).unbind(1)
    c, n, m = state
    kept = logsigmoid(f) + m
    top = torch.maximum(i, kept)
    inside, before = (i - top).exp(), (kept - top).exp()
    c, n = before * c + inside * z.tanh(), before * n + inside
    return o.sigmoid() * c / n, (c, n, top)


_CELLS: dict[str, tuple[Callable[[Tensor, Tensor, State], tuple[Tensor, State]], int, tuple[float, ...]]] = {
    "lstm": (lstm, 4, (0.0,)),
    "gru": (gru, 3, (0.0,)),
    "slstm": (slstm, 4, (0.0, 0.0, -torch.inf)),
}  # a step, its gates, its first state


class RNNLayer(nn.Module):
    """Tokens h [B, T, width] -> [B, T, width], from the first to the last.

    Args:
        width, heads: of the tokens and the recurrence.
        cell: see RNN.
    """

    def __init__(self, width: int, heads: int, cell: str):
        super().__init__()
        self.step, self.gates, self.first = _CELLS[cell]
        self.heads, size = heads, width // heads
        self.x_proj = nn.Linear(width, self.gates * width)
        bound = size**-0.5
        self.recurrent = nn.Parameter(torch.empty(self.gates, heads, size, size).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(self.gates, heads, size))
        self.o_proj = nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self.o_proj(self.run(self.x_proj(h).unflatten(-1, (self.gates, self.heads, -1))).flatten(2))
        return out

    def run(self, x: Tensor) -> Tensor:
        """Return the hidden states [B, T, H, d].

        Args:
            x: from the tokens, [B, T, gates, H, d].
        """
        hidden = torch.zeros_like(x[:, 0, 0])
        state, outs = tuple(torch.full_like(hidden, value) for value in self.first), []
        for token in x.unbind(1):
            r = torch.einsum("bhd,ghde->bghe", hidden, self.recurrent) + self.bias
            hidden, state = self.step(token, r, state)
            outs.append(hidden)
        return torch.stack(outs, 1)
