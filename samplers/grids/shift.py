"""Even times, shifted towards noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gen.config.fields import check_fields
from gen.diffusion.path import NoisePath

__all__ = ["Shift"]


@dataclass(frozen=True)
class Shift:
    """u' = s u / (1 + (s - 1) u) for even fractions u of t1 (Esser et al. 2024, eq. 23).

    On flow this multiplies sigma / alpha by s.

    Attributes:
        shift: s, above 1 for more steps at high noise.
        stop: the last u, before it is shifted; RAE ends at 0.001 and not in clean data.
        tokens: length of the network's sequence; if given, s = e^mu instead, mu linear in it.
        base_tokens, base_mu, max_tokens, max_mu: two points of that line, FLUX's.
    """

    shift: float = 3.0
    stop: float = 0.0
    tokens: int | None = None
    base_tokens: int = 256
    base_mu: float = 0.5
    max_tokens: int = 4096
    max_mu: float = 1.15

    def __post_init__(self) -> None:
        check_fields(self, shift="(0, inf)", stop="[0, 1)", tokens="[1, inf)", max_tokens="(base_tokens, inf)")

    @property
    def factor(self) -> float:
        """The shift s that is used."""
        if self.tokens is None:
            return self.shift
        slope = (self.max_mu - self.base_mu) / (self.max_tokens - self.base_tokens)
        return math.exp(self.base_mu + slope * (self.tokens - self.base_tokens))

    def times(self, path: NoisePath, steps: int) -> Tensor:
        u, s = torch.linspace(1, self.stop, steps + 1, dtype=torch.float64), self.factor
        return path.t1 * (s * u / (s * u + (1 - u)))  # so written, u = 1 stays 1 exactly
