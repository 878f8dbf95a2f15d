"""Loss weights: a factor per sample on the squared error of the network's own output.

What a paper states for the error of x0 or of eps is carried over by |x0 error| = |sigma / det| |output error| and
|eps error| = |alpha / det| |output error|, so each weighting means the same in every parameterisation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gen.config.fields import check_fields
from gen.diffusion.parameterisation import Parameterisation
from gen.diffusion.path import NoisePath

__all__ = ["EDMWeighting", "MinSNR", "Sigmoid", "UniformWeighting", "Weighting", "errors"]


def errors(path: NoisePath, parameterisation: Parameterisation, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return the absolute errors of x0 and of eps that an error of 1 in the network's output causes.

    Where det = 0 the output determines only one of the two; the errors are then the limits 1 / |a| and 1 / |b|, so
    that zero-terminal-SNR schedules train.

    Args:
        path, parameterisation: see the modules.
        t: times [B].

    Returns:
        The error of x0 and the error of eps, [B] each.
    """
    a, b = parameterisation.coefficients(path, t)
    det = parameterisation.det(path, t)
    singular = det == 0
    x0_error = torch.where(singular, 1 / a, path.sigma(t) / det).abs()
    return x0_error, torch.where(singular, 1 / b, path.alpha(t) / det).abs()


@dataclass(frozen=True)
class Weighting:
    """A loss weight as a function of time."""

    def weight(self, path: NoisePath, parameterisation: Parameterisation, t: Tensor) -> Tensor:
        """Return the factors on the squared error of the output, [B], at times t [B]."""
        raise NotImplementedError


@dataclass(frozen=True)
class UniformWeighting(Weighting):
    """1 for all times: DDPM's "simple" loss for eps, flow matching for velocities."""

    def weight(self, path: NoisePath, parameterisation: Parameterisation, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@dataclass(frozen=True)
class MinSNR(Weighting):
    """min(SNR, gamma) on the error of x0 (Hang et al. 2023, eq. 8).

    Attributes:
        gamma: the largest weight; default the paper's.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        check_fields(self, gamma="(0, inf)")

    def weight(self, path: NoisePath, parameterisation: Parameterisation, t: Tensor) -> Tensor:
        x0_error, eps_error = errors(path, parameterisation, t)
        return torch.minimum(eps_error**2, self.gamma * x0_error**2)  # snr |x0 error|^2 = |eps error|^2


@dataclass(frozen=True)
class Sigmoid(Weighting):
    """sigmoid(bias - log SNR) per unit of log SNR, on the error of eps (Kingma & Gao 2023, eq. 11; Hoogeboom 2024).

    Per unit of t, in which times are drawn, that is times -dlog SNR / dt = 2 (sigma' / sigma - alpha' / alpha); taken
    as 0 at both ends, where that is infinite. As published with uniform times.

    Attributes:
        bias: log SNR of the noise level up to which the weight is about 1; Kingma & Gao have 0 to 3 for -bias.
    """

    bias: float = -1.0

    def __post_init__(self) -> None:
        check_fields(self)

    def weight(self, path: NoisePath, parameterisation: Parameterisation, t: Tensor) -> Tensor:
        alpha, sigma = path.alpha(t), path.sigma(t)
        density = 2 * (path.dsigma(t) * alpha - path.dalpha(t) * sigma) / (alpha * sigma)
        per_level = torch.sigmoid(self.bias - 2 * path.lam(t)) * errors(path, parameterisation, t)[1] ** 2
        return torch.where(alpha * sigma > 0, density * per_level, torch.zeros_like(t))


@dataclass(frozen=True)
class EDMWeighting(Weighting):
    """1 / c_out^2 on the error of x0, which is 1 on the output F of EDMPrecond (Karras et al. 2022, table 1).

    Attributes:
        sigma_data: standard deviation of the data; default EDM's.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        check_fields(self, sigma_data="(0, inf)")

    def weight(self, path: NoisePath, parameterisation: Parameterisation, t: Tensor) -> Tensor:
        variance = (path.alpha(t) * self.sigma_data) ** 2 + path.sigma(t) ** 2
        return variance / (self.sigma_data * parameterisation.det(path, t)) ** 2
