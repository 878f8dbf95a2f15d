"""Parameterisations: the meaning of a network's output a x0 + b eps, as two coefficients and one inverse for all.

det = alpha b - sigma a;   x0 = (b x - sigma out) / det;   eps = (alpha out - a x) / det.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.diffusion.path import NoisePath, Prediction, expand

__all__ = ["X0", "EDMPrecond", "Eps", "Parameterisation", "Score", "V", "Velocity"]

OTHER_NAMES = {"epsilon": "eps", "flow_prediction": "velocity", "sample": "x0", "v_prediction": "v"}  # of diffusers


@dataclass(frozen=True)
class Parameterisation:
    """The coefficients a(t), b(t), and what follows from them."""

    def coefficients(self, path: NoisePath, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return a and b at times t, 0-d or [B], each shaped as t."""
        raise NotImplementedError

    def scale(self, path: NoisePath, t: Tensor) -> Tensor:
        """Return the factor on x before it enters the network (c_in of EDM), shaped as t."""
        return torch.ones_like(t)

    def det(self, path: NoisePath, t: Tensor) -> Tensor:
        """Return alpha b - sigma a; an error e of the output is one of -sigma/det e in x0 and alpha/det e in eps."""
        a, b = self.coefficients(path, t)
        return path.alpha(t) * b - path.sigma(t) * a

    def target(self, path: NoisePath, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Return the regression target a x0 + b eps, shaped as x0 [B, ...]."""
        a, b = self.coefficients(path, t)
        return expand(a, x0) * x0 + expand(b, x0) * eps

    def solve(self, path: NoisePath, x: Tensor, out: Tensor, t: Tensor) -> Prediction:
        """Convert the network's output [B, ...] at x_t [B, ...] to a Prediction."""
        a, b = self.coefficients(path, t)
        det = self.det(path, t)
        if t.ndim == 0 and abs(float(det)) <= 1e-12 * float(path.sigma(t)):  # cos(pi / 2) is 6e-17
            name = type(self).__name__
            raise UserError(
                f"{name} prediction does not determine x0 at t = {float(t):g}, where alpha = 0: start below it"
            )
        alpha, sigma = path.alpha(t) / det, path.sigma(t) / det
        x0 = expand(b / det, x) * x - expand(sigma, x) * out
        return Prediction(x0, expand(alpha, x) * out - expand(a / det, x) * x)


@dataclass(frozen=True)
class X0(Parameterisation):
    """The clean sample. At t = 0, where x holds no noise, eps is its limit 0."""

    def coefficients(self, path: NoisePath, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), torch.zeros_like(t)

    def solve(self, path: NoisePath, x: Tensor, out: Tensor, t: Tensor) -> Prediction:
        sigma = path.sigma(t)
        inverse = torch.where(sigma > 0, 1 / sigma, torch.zeros_like(sigma))
        return Prediction(out, expand(inverse, x) * (x - expand(path.alpha(t), x) * out))


@dataclass(frozen=True)
class Eps(Parameterisation):
    """The noise (Ho et al. 2020)."""

    def coefficients(self, path: NoisePath, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), torch.ones_like(t)


@dataclass(frozen=True)
class Velocity(Parameterisation):
    """The velocity dx/dt = alpha' x0 + sigma' eps; eps - x0 on the flow path.

    Attributes:
        toward: "data" is its negative, the velocity where time runs from noise to data (SiT, LightningDiT, DDT).
    """

    toward: Literal["noise", "data"] = "noise"

    def __post_init__(self) -> None:
        check_fields(self)

    def coefficients(self, path: NoisePath, t: Tensor) -> tuple[Tensor, Tensor]:
        if self.toward == "data":
            return -path.dalpha(t), -path.dsigma(t)
        return path.dalpha(t), path.dsigma(t)


@dataclass(frozen=True)
class V(Parameterisation):
    """alpha eps - sigma x0 (Salimans & Ho 2022)."""

    def coefficients(self, path: NoisePath, t: Tensor) -> tuple[Tensor, Tensor]:
        return -path.sigma(t), path.alpha(t)


@dataclass(frozen=True)
class Score(Parameterisation):
    """grad log p_t(x) = -eps / sigma (Song et al. 2021)."""

    def coefficients(self, path: NoisePath, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), -1 / path.sigma(t)

    def solve(self, path: NoisePath, x: Tensor, out: Tensor, t: Tensor) -> Prediction:
        return Eps().solve(path, x, -expand(path.sigma(t), x) * out, t)


@dataclass(frozen=True)
class EDMPrecond(Parameterisation):
    """F of D = c_skip x + c_out F(c_in x) (Karras et al. 2022, table 1), for data of a known standard deviation.

    Written for any path: with v = alpha^2 sd^2 + sigma^2 the variance of x, c_skip = alpha sd^2 / v,
    c_out = sigma sd / sqrt(v), c_in = 1 / sqrt(v); alpha = 1 gives the published ones.

    Attributes:
        sigma_data: sd, the standard deviation of the data; default EDM's.
        toward: "noise" is -F, which at sd = 1 is v of x scaled to variance 1 (Stable Video Diffusion, CosXL).
    """

    sigma_data: float = 0.5
    toward: Literal["data", "noise"] = "data"

    def __post_init__(self) -> None:
        check_fields(self, sigma_data="(0, inf)")

    def coefficients(self, path: NoisePath, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma, sd = path.alpha(t), path.sigma(t), self.sigma_data
        root = self.scale(path, t).reciprocal() * (1 if self.toward == "data" else -1)
        return sigma / (sd * root), -alpha * sd / root

    def scale(self, path: NoisePath, t: Tensor) -> Tensor:
        return ((path.alpha(t) * self.sigma_data) ** 2 + path.sigma(t) ** 2).rsqrt()
