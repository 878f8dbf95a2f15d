"""Mask paths: the fraction of tokens that are masked at time t, from none at t = 0 to all at t = 1.

A path of tokens, as gen/diffusion/path.py has paths of numbers: q(x_t = mask) = masked_fraction(t), each token by
itself. Its NELBO in continuous time is the cross-entropy of the masked tokens times weight(t) (Sahoo et al. 2024,
eq. 10; Shi et al. 2024). sigma(t) = -log(1 - masked_fraction(t)) is the total noise that public code speaks of.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields

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


@runtime_checkable
class MaskPath(Protocol):
    """The contract of a mask path: a rising masked fraction as a function of t in [0, 1]. A frozen dataclass."""

    t1: ClassVar[float] = 1.0

    @abstractmethod
    def masked_fraction(self, t: Tensor) -> Tensor:
        """Return the probability that a token is masked at t.

        Args:
            t: times of any shape.
        """
        ...

    @abstractmethod
    def rate(self, t: Tensor) -> Tensor:
        """Return the derivative of masked_fraction at t.

        Args:
            t: times of any shape.
        """
        ...

    def weight(self, t: Tensor) -> Tensor:
        """Return the NELBO's weight of a masked token's cross-entropy: rate(t) / masked_fraction(t).

        Args:
            t: times of any shape.
        """
        return self.rate(t) / self.masked_fraction(t)


@dataclass(frozen=True)
class LogLinear(MaskPath):
    """m = (1 - eps) t, weight 1 / t: the default of MDLM, LLaDA and, with eps 0, BD3-LM.

    Attributes:
        eps: fraction that is not masked at t = 1; MDLM's 1e-3.
    """

    eps: float = 1e-3

    def __post_init__(self) -> None:
        check_fields(self, eps="[0, 1)")

    def masked_fraction(self, t: Tensor) -> Tensor:
        return (1 - self.eps) * t

    def rate(self, t: Tensor) -> Tensor:
        return torch.full_like(t, 1 - self.eps)


@dataclass(frozen=True)
class Cosine(MaskPath):
    """m = (1 - eps) (1 - cos(pi t / 2)) (MDLM's noise_schedule: cosine).

    Attributes:
        eps: fraction that is not masked at t = 1; MDLM's 1e-3.
    """

    eps: float = 1e-3

    def __post_init__(self) -> None:
        check_fields(self, eps="[0, 1)")

    def masked_fraction(self, t: Tensor) -> Tensor:
        return (1 - self.eps) * (1 - torch.cos(math.pi / 2 * t))

    def rate(self, t: Tensor) -> Tensor:
        return (1 - self.eps) * math.pi / 2 * torch.sin(math.pi / 2 * t)


@dataclass(frozen=True)
class CosineSquared(MaskPath):
    """m = (1 - eps) sin^2(pi t / 2) (MDLM's noise_schedule: cosinesqr).

    Attributes:
        eps: fraction that is not masked at t = 1; MDLM's 1e-3.
    """

    eps: float = 1e-3

    def __post_init__(self) -> None:
        check_fields(self, eps="[0, 1)")

    def masked_fraction(self, t: Tensor) -> Tensor:
        return (1 - self.eps) * torch.sin(math.pi / 2 * t) ** 2

    def rate(self, t: Tensor) -> Tensor:
        return (1 - self.eps) * math.pi / 2 * torch.sin(math.pi * t)


@dataclass(frozen=True)
class Linear(MaskPath):
    """Total noise sigma = low + t (high - low), m = 1 - exp(-sigma).

    Attributes:
        low, high: total noise at t = 0 and at t = 1; MDLM's 0 and 10.
    """

    low: float = 0.0
    high: float = 10.0

    def __post_init__(self) -> None:
        check_fields(self, low="[0, inf)", high="(low, inf)")

    def masked_fraction(self, t: Tensor) -> Tensor:
        return -torch.expm1(-(self.low + t * (self.high - self.low)))

    def rate(self, t: Tensor) -> Tensor:
        return (self.high - self.low) * torch.exp(-(self.low + t * (self.high - self.low)))


@dataclass(frozen=True)
class Geometric(MaskPath):
    """Total noise sigma = low^(1 - t) high^t, m = 1 - exp(-sigma).

    Attributes:
        low, high: total noise at t = 0 and at t = 1; MDLM's 1e-3 and 10.
    """

    low: float = 1e-3
    high: float = 10.0

    def __post_init__(self) -> None:
        check_fields(self, low="(0, inf)", high="(low, inf)")

    def masked_fraction(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self.sigma(t))

    def sigma(self, t: Tensor) -> Tensor:
        return self.low ** (1 - t) * self.high**t

    def rate(self, t: Tensor) -> Tensor:
        return self.sigma(t) * math.log(self.high / self.low) * torch.exp(-self.sigma(t))


@dataclass(frozen=True)
class Square(MaskPath):
    """m = t^2, weight 2 / t (BD3-LM)."""

    def masked_fraction(self, t: Tensor) -> Tensor:
        return t**2

    def rate(self, t: Tensor) -> Tensor:
        return 2 * t


@dataclass(frozen=True)
class SquareRoot(MaskPath):
    """m = sqrt t, weight 1 / (2 t) (BD3-LM)."""

    def masked_fraction(self, t: Tensor) -> Tensor:
        return t**0.5

    def rate(self, t: Tensor) -> Tensor:
        return 0.5 * t**-0.5


@dataclass(frozen=True)
class Logarithm(MaskPath):
    """m = log(1 + t) / log 2 (BD3-LM)."""

    def masked_fraction(self, t: Tensor) -> Tensor:
        return torch.log1p(t) / math.log(2)

    def rate(self, t: Tensor) -> Tensor:
        return 1 / ((1 + t) * math.log(2))


def corrupt(tokens: Tensor, fraction: Tensor, u: Tensor, mask_token_id: int, keep: Tensor | None = None) -> Tensor:
    """Mask tokens at random: the forward process q(x_t | x_0).

    Args:
        tokens: ids, int64 [B, L].
        fraction: probability that a token is masked, [B] or [B, L].
        u: uniform numbers in [0, 1), [B, L]: a token is masked where u < fraction.
        mask_token_id: id of the mask token.
        keep: tokens that are never masked, bool [B, L]; None for none.
    """
    if int(u.ndim) != tokens.ndim:
        raise UserError(f"corrupt: u has shape {list(u.shape)} for tokens {list(tokens.shape)}")
    hit = u < (fraction[:, None] if fraction.ndim == 1 else fraction)
    return torch.where(hit if keep is None else hit & ~keep, mask_token_id, tokens)
