"""The contract of a path x_t = alpha(t) x0 + sigma(t) eps, and what variance preserving ones share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from gen.diffusion.prediction import Prediction, expand
from gen.diffusion.tables import interpolate_table, table_position, table_slope

__all__ = ["Angular", "LogAlpha", "NoisePath"]


@dataclass(frozen=True)
class NoisePath:
    """A path x_t = alpha(t) x0 + sigma(t) eps: alpha, sigma, their derivatives, and what follows from them."""

    @property
    def t1(self) -> float:
        """The time of (nearly) pure noise."""
        return 1.0

    @property
    def time_unit(self) -> float:
        """About the largest time that the network gets: 1, or the length of a table."""
        return 1.0

    @property
    def natural(self) -> Mapping[str, str]:
        """Names of what suits the path: the defaults of a run that only says the path.

        parameterisation; times: the density of training times; levels: one even over all noise levels, with a low and a
        high end; grid: of sampling.
        """
        return {"parameterisation": "velocity", "times": "uniform", "levels": "uniform", "grid": "linear"}

    @property
    def knots(self) -> tuple[float, ...]:
        """Times inside (0, t1), falling, at which the velocity jumps; () for none.

        A loop visits them, evaluates each step on its own side of them, and begins its solver afresh behind them. Such
        a path has more than one noise level, so rules that add noise are refused.
        """
        return ()

    def alpha(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def sigma(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def dalpha(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def dsigma(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def t_from_lambda(self, lam: Tensor) -> Tensor:
        """Return the time at which the half log-SNR is `lam`; inverse of `lam(t)`."""
        raise NotImplementedError

    def t_to_network(self, t: Tensor) -> Tensor:
        """Return the time value passed to the network; t by default."""
        return t

    def lam(self, t: Tensor) -> Tensor:
        """Return the half log-SNR log(alpha / sigma): +inf at t = 0, falling with t."""
        return self.alpha(t).log() - self.sigma(t).log()

    def mix(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Return x_t [B, ...] of data and noise."""
        return expand(self.alpha(t), x0) * x0 + expand(self.sigma(t), x0) * eps

    def velocity(self, pred: Prediction, t: Tensor) -> Tensor:
        """Return dx/dt of the probability-flow ODE: alpha' x0 + sigma' eps."""
        return expand(self.dalpha(t), pred.x0) * pred.x0 + expand(self.dsigma(t), pred.x0) * pred.eps

    def advance(self, x: Tensor, pred: Prediction, t: Tensor, s: Tensor) -> Tensor:
        """Move x from t to s with x0 and eps held as predicted: first order, exact where they are constant.

        That is x + (alpha_s - alpha_t) x0 + (sigma_s - sigma_t) eps. With the prediction of time t itself this is
        alpha_s x0 + sigma_s eps: DDIM on VP, Euler on flow and EDM.
        """
        da, ds = self.alpha(s) - self.alpha(t), self.sigma(s) - self.sigma(t)
        return x + expand(da, x) * pred.x0 + expand(ds, x) * pred.eps

    def interpolate(self, pred: Prediction, s: Tensor) -> Tensor:
        """Return alpha_s x0 + sigma_s eps: `mix` for sampling loops, where s is 0-d and carries no gradient."""
        return torch.add(pred.x0 * float(self.alpha(s)), pred.eps, alpha=float(self.sigma(s)))

    def diffuse(self, x: Tensor, unit: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Return x_t from x_s, t > s: r x_s + sqrt(sigma_t^2 - r^2 sigma_s^2) unit with r = alpha_t / alpha_s."""
        r = self.alpha(t) / self.alpha(s)
        v = self.sigma(t) ** 2 - (r * self.sigma(s)) ** 2
        return expand(r, x) * x + expand(v.sqrt(), x) * unit

    def start(self, noise: Tensor, t: Tensor) -> Tensor:
        """Return x_t for a sampler that starts at t from unit noise [B, ...], without the data's share."""
        return expand(self.sigma(t), noise) * noise


@dataclass(frozen=True)
class LogAlpha(NoisePath):
    """Variance preserving paths, alpha^2 + sigma^2 = 1, given by L(t) = log alpha(t) and its slope."""

    @property
    def natural(self) -> Mapping[str, str]:
        return {**super().natural, "parameterisation": "v"}  # the velocity has no bound at t = 0, eps no x0 at t1

    def log_alpha(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def dlog_alpha(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def t_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        raise NotImplementedError

    def alpha(self, t: Tensor) -> Tensor:
        return self.log_alpha(t).exp()

    def sigma(self, t: Tensor) -> Tensor:
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt()

    def dalpha(self, t: Tensor) -> Tensor:
        return self.dlog_alpha(t) * self.alpha(t)

    def dsigma(self, t: Tensor) -> Tensor:
        return -self.dlog_alpha(t) * self.alpha(t) ** 2 / self.sigma(t)

    def lam(self, t: Tensor) -> Tensor:
        return self.log_alpha(t) - self.sigma(t).log()

    def t_from_lambda(self, lam: Tensor) -> Tensor:
        return self.t_of_log_alpha(-torch.nn.functional.softplus(-2 * lam) / 2)


@dataclass(frozen=True)
class Angular(NoisePath):
    """Variance preserving paths by a table, whose last entry may be pure noise: the angle of alpha and sigma is linear.

    t = 0 is clean data and t = k + 1 is table entry k, which is the time the network gets; between entries
    atan(sigma / alpha) is linear in t. It is finite where alpha = 0, as log alpha is not, and entries stay exact.
    """

    @property
    def entries(self) -> Tensor:
        """The table: alpha^2 at t = 1, 2, ..., falling; float64 [steps]."""
        raise NotImplementedError

    @property
    def t1(self) -> float:
        return float(len(self.entries))

    @property
    def time_unit(self) -> float:
        return self.t1

    @property
    def natural(self) -> Mapping[str, str]:
        return {**super().natural, "parameterisation": "v", "times": "integers"}

    @cached_property
    def angles(self) -> tuple[Tensor, Tensor]:
        """atan(sigma / alpha) at t = 0, 1, ..., steps, and pi / 2 less it, each with all its digits near 0; float64."""
        square = torch.cat([torch.ones(1, dtype=torch.float64), self.entries])
        alpha, sigma = square.sqrt(), (1 - square).sqrt()
        return torch.atan2(sigma, alpha), torch.atan2(alpha, sigma)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sin(interpolate_table(self.angles[1], t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(interpolate_table(self.angles[0], t))

    def dalpha(self, t: Tensor) -> Tensor:
        return self.sigma(t) * table_slope(self.angles[1], t)

    def dsigma(self, t: Tensor) -> Tensor:
        return self.alpha(t) * table_slope(self.angles[0], t)

    def t_from_lambda(self, lam: Tensor) -> Tensor:
        return table_position(self.angles[0], torch.atan(torch.exp(-lam)))

    def t_to_network(self, t: Tensor) -> Tensor:
        return t - 1
