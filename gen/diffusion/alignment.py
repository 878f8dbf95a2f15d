"""Alignment of a network's features with those of a frozen encoder: losses, and the head that projects.

Features are tokens [B, T, D] of a square grid, row by row. Losses are means over batch and tokens, computed in single
precision or better, and their gradient flows into the student alone if the teacher's features carry none.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gen.config.errors import UserError

__all__ = [
    "Encoder",
    "Features",
    "Projector",
    "adaptive_weight",
    "manifold",
    "negative_cosine",
    "resample",
    "tokens_of",
    "vf_loss",
]


class Features(NamedTuple):
    """Features of images.

    Attributes:
        tokens: [B, grid^2, D], row by row.
        cls: the whole image's features [B, D], None if the encoder has none.
    """

    tokens: Tensor
    cls: Tensor | None


class Encoder(Protocol):
    """A frozen dataclass that loads a frozen module: images [B, C, H, W] in [-1, 1] to Features.

    An encoder with an attribute `reads`, the name of a condition, is given that instead of images.
    """

    @property
    def dim(self) -> int:
        """Numbers of a token, D."""
        ...

    @property
    def grid(self) -> int:
        """Tokens on a side."""
        ...

    def load(self, device: torch.device | str = "cpu") -> nn.Module:
        """Return the module.

        Args:
            device: where to put it.
        """
        ...


class Projector(nn.Module):
    """Tokens [..., width] to the encoder's space [..., dim]: three linear maps with SiLU between.

    REPA, Yu et al. 2024, with hidden 2048. Xavier's initialisation, biases zero, as in the authors' code.
    """

    def __init__(self, width: int, dim: int, hidden: int = 2048):
        super().__init__()
        linears = nn.Linear(width, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, dim)
        for linear in linears:
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        first, second, third = linears
        self.mlp = nn.Sequential(first, nn.SiLU(), second, nn.SiLU(), third)

    def forward(self, h: Tensor) -> Tensor:
        return self.mlp(h)


def tokens_of(h: Tensor) -> Tensor:
    """Return features as tokens [B, T, D].

    Args:
        h: tokens [B, T, D], or a feature map [B, D, H, W], whose positions become T = H W tokens.
    """
    return h if h.ndim == 3 else h.flatten(2).mT


def resample(tokens: Tensor, grid: int) -> Tensor:
    """Resample tokens bilinearly to another grid, [B, grid^2, D].

    Args:
        tokens: [B, T, D] of a square grid; UserError if T is no square.
        grid: tokens on a side of the new one.
    """
    side = math.isqrt(tokens.shape[1])
    if side**2 != tokens.shape[1]:
        raise UserError(f"{tokens.shape[1]} tokens are no square grid, and so cannot be resampled to {grid} x {grid}")
    if side == grid:
        return tokens
    image = tokens.mT.reshape(len(tokens), -1, side, side)  # [B, D, side, side]
    return F.interpolate(image, (grid, grid), mode="bilinear", align_corners=False).flatten(2).mT


def negative_cosine(h: Tensor, y: Tensor) -> Tensor:
    """Return -cos(h, y), mean over tokens: -1 where all agree (REPA, Yu et al. 2024).

    Args:
        h, y: features [..., D].
    """
    return -(_unit(h) * _unit(y)).sum(-1).mean()


def manifold(h: Tensor, y: Tensor, pairs: Literal["intra", "all"] = "intra") -> Tensor:
    """Return (cos(y_i, y_j) - cos(h_i, h_j))^2, mean over pairs of tokens (U-REPA, Tian et al. 2025).

    Only angles count, so rotating y changes nothing.

    Args:
        h: features [B, T, D].
        y: features [B, T, E].
        pairs: "intra", those within each sample, or "all" of the batch; i = j included.
    """
    with _no_autocast(h):
        h, y = _unit(h), _unit(y)
        if pairs == "intra":
            return (y @ y.mT - h @ h.mT).square().mean()
        h, y = h.flatten(0, 1), y.flatten(0, 1)  # [B T, D]
        # |Y Y' - H H'|^2 = |Y'Y|^2 + |H'H|^2 - 2 |Y'H|^2: D x D numbers where a batch has millions of pairs
        square = (y.mT @ y).square().sum() + (h.mT @ h).square().sum() - 2 * (y.mT @ h).square().sum()
        return square / len(h) ** 2


def vf_loss(z: Tensor, y: Tensor, cos_margin: float = 0.5, distance_margin: float = 0.25) -> Tensor:
    """Return the vision foundation loss of latents against features (VA-VAE, Yao et al. 2025).

    relu(1 - cos_margin - cos(z_i, y_i)), mean over tokens, plus relu(|cos(z_i, z_j) - cos(y_i, y_j)| -
    distance_margin), mean over each sample's pairs: zero, and without gradient, inside both margins.

    Args:
        z: latents [B, T, D].
        y: features [B, T, D].
        cos_margin: of the first term; 0.5 as published.
        distance_margin: of the second; 0.25 as published.
    """
    with _no_autocast(z):
        z, y = _unit(z), _unit(y)
        near = F.relu(1 - cos_margin - (z * y).sum(-1)).mean()
        alike = F.relu((z @ z.mT - y @ y.mT).abs() - distance_margin).mean()
        return near + alike


def adaptive_weight(main: Tensor, other: Tensor, parameter: Tensor, most: float = 1e8, eps: float = 1e-4) -> Tensor:
    """Return |d main / d parameter| / (|d other / d parameter| + eps), a constant to later gradients.

    With it `other` pulls on the parameter as hard as `main`: a decoder's last weight for a discriminator (VQGAN, Esser
    et al. 2021), an encoder's for features (VA-VAE, Yao et al. 2025).

    Args:
        main, other: losses, 0-d.
        parameter: weight that both depend on.
        most: upper bound of the result; 1e8 is VA-VAE's for features, 1e4 all have for discriminators.
        eps: 1e-4 in LDM and VA-VAE, 1e-6 in RAE.
    """
    (a,) = torch.autograd.grad(main, parameter, retain_graph=True)
    (b,) = torch.autograd.grad(other, parameter, retain_graph=True)
    ratio: Tensor = a.norm() / (b.norm() + eps)
    return ratio.clamp(max=most).detach()


def _unit(h: Tensor) -> Tensor:
    return F.normalize(h if h.dtype == torch.float64 else h.float(), dim=-1)


def _no_autocast(h: Tensor) -> torch.autocast:
    """Return a context in which products of unit vectors are not rounded to half precision."""
    return torch.autocast(h.device.type, enabled=False)
