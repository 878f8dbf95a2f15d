"""Masked diffusion: the share of tokens that are masked at time t, from none at t = 0 to all at t = 1.

A path of tokens, as gen/diffusion/path.py has paths of numbers: q(x_t = mask) = mask(t), each token for itself. Its
NELBO in continuous time is the cross-entropy of the masked tokens times weight(t) = mask'(t) / mask(t) (Sahoo et al.
2024, eq. 10; Shi et al. 2024). sigma(t) = -log(1 - mask(t)) is the total noise that public code speaks of.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gen.config.errors import UserError

__all__ = [
    "Cosine",
    "CosineSquared",
    "Geometric",
    "Linear",
    "LogLinear",
    "Logarithm",
    "MaskPath",
    "Square",
    "SquareRoot",
    "corrupt",
]


@dataclass(frozen=True)
class MaskPath(ABC):
    """The share of tokens that are masked, a rising function of t in [0, 1] of any shape."""

    t1: ClassVar[float] = 1.0

    @abstractmethod
    def masked_fraction(self, t: Tensor) -> Tensor:
        """The probability that a token is masked at t."""

    @abstractmethod
    def rate(self, t: Tensor) -> Tensor:
        """The derivative of mask(t)."""

    def weight(self, t: Tensor) -> Tensor:
        """What the NELBO weighs the cross-entropy of a masked token with: mask'(t) / mask(t)."""
        return self.rate(t) / self.masked_fraction(t)


@dataclass(frozen=True)
class LogLinear(MaskPath):
    """mask = (1 - eps) t, weight 1 / t: the default of MDLM (eps 1e-3), LLaDA and, with eps 0, BD3-LM."""

    eps: float = 1e-3

    def masked_fraction(self, t: Tensor) -> Tensor:
        return (1 - self.eps) * t

    def rate(self, t: Tensor) -> Tensor:
        return torch.full_like(t, 1 - self.eps)


@dataclass(frozen=True)
class Cosine(MaskPath):
    """mask = (1 - eps) (1 - cos(pi t / 2)) (MDLM's noise_schedule: cosine)."""

    eps: float = 1e-3

    def masked_fraction(self, t: Tensor) -> Tensor:
        return (1 - self.eps) * (1 - torch.cos(math.pi / 2 * t))

    def rate(self, t: Tensor) -> Tensor:
        return (1 - self.eps) * math.pi / 2 * torch.sin(math.pi / 2 * t)


@dataclass(frozen=True)
class CosineSquared(MaskPath):
    """mask = (1 - eps) sin^2(pi t / 2) (MDLM's noise_schedule: cosinesqr)."""

    eps: float = 1e-3

    def masked_fraction(self, t: Tensor) -> Tensor:
        return (1 - self.eps) * torch.sin(math.pi / 2 * t) ** 2

    def rate(self, t: Tensor) -> Tensor:
        return (1 - self.eps) * math.pi / 2 * torch.sin(math.pi * t)


@dataclass(frozen=True)
class Linear(MaskPath):
    """Total noise sigma = low + t (high - low), mask = 1 - exp(-sigma)."""

    low: float = 0.0
    high: float = 10.0

    def masked_fraction(self, t: Tensor) -> Tensor:
        return -torch.expm1(-(self.low + t * (self.high - self.low)))

    def rate(self, t: Tensor) -> Tensor:
        return (self.high - self.low) * torch.exp(-(self.low + t * (self.high - self.low)))


@dataclass(frozen=True)
class Geometric(MaskPath):
    """Total noise sigma = low^(1 - t) high^t, mask = 1 - exp(-sigma)."""

    low: float = 1e-3
    high: float = 10.0

    def masked_fraction(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self.sigma(t))

    def sigma(self, t: Tensor) -> Tensor:
        return self.low ** (1 - t) * self.high**t

    def rate(self, t: Tensor) -> Tensor:
        return self.sigma(t) * math.log(self.high / self.low) * torch.exp(-self.sigma(t))


@dataclass(frozen=True)
class Square(MaskPath):
    """mask = t^2, weight 2 / t (BD3-LM)."""

    def masked_fraction(self, t: Tensor) -> Tensor:
        return t**2

    def rate(self, t: Tensor) -> Tensor:
        return 2 * t


@dataclass(frozen=True)
class SquareRoot(MaskPath):
    """mask = sqrt t, weight 1 / (2 t) (BD3-LM)."""

    def masked_fraction(self, t: Tensor) -> Tensor:
        return t**0.5

    def rate(self, t: Tensor) -> Tensor:
        return 0.5 * t**-0.5


@dataclass(frozen=True)
class Logarithm(MaskPath):
    """mask = log(1 + t) / log 2 (BD3-LM)."""

    def masked_fraction(self, t: Tensor) -> Tensor:
        return torch.log1p(t) / math.log(2)

    def rate(self, t: Tensor) -> Tensor:
        return 1 / ((1 + t) * math.log(2))


def corrupt(tokens: Tensor, share: Tensor, u: Tensor, mask: int, fixed: Tensor | None = None) -> Tensor:
    """tokens [B, L] with `mask` where u [B, L] < share, [B] or [B, L]; what is fixed [B, L] is left alone."""
    if int(u.ndim) != tokens.ndim:
        raise UserError(f"corrupt: u has shape {list(u.shape)} for tokens {list(tokens.shape)}")
    hit = u < (share[:, None] if share.ndim == 1 else share)
    return torch.where(hit if fixed is None else hit & ~fixed, mask, tokens)
