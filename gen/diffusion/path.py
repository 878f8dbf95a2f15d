"""Gaussian paths x_t = alpha(t) x0 + sigma(t) eps, from t = 0 (data) to t = t1 (noise).

Everywhere in gen time runs in this direction. Times are float64 tensors: 0-d in sampling loops, [B] in training.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from gen.config.errors import UserError, shown
from gen.config.fields import check_fields
from gen.config.spec import part
from gen.diffusion.prediction import Prediction, expand
from gen.diffusion.tables import cosine_betas, interpolate_table, power_betas, table_position, table_slope

__all__ = [
    "DDPM", "EDM", "GVP", "VP", "Flow", "NoisePath", "Prediction", "Staged", "Table", "Trig", "ZeroSNR", "expand",
]  # fmt: skip


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

    def start(self, noise: Tensor, t: Tensor) -> Tensor:
        """Return x_t for a sampler that starts at t from unit noise [B, ...], without the data's share."""
        return expand(self.sigma(t), noise) * noise


@dataclass(frozen=True)
class Flow(NoisePath):
    """Rectified flow / flow matching: alpha = 1 - t, sigma = t (Liu et al. 2022, Lipman et al. 2022)."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def dalpha(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def dsigma(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def t_from_lambda(self, lam: Tensor) -> Tensor:
        return torch.sigmoid(-lam)

    def interpolate(self, pred: Prediction, s: Tensor) -> Tensor:
        return torch.lerp(pred.x0, pred.eps, s.item())  # in one operation: a small net is not to wait for the loop


@dataclass(frozen=True)
class Staged(Flow):
    """Rectified flow of a pyramid, each stage at a time of its own (Haji-Ali et al. 2025); t is the coarsest's.

    Stage i + 1 begins, from noise, where the coarser ones have come down to thresholds[i], and catches up with them by
    the next threshold, or at t = 0; all times are linear in t within a phase (gen.diffusion.decomposition).

    Attributes:
        thresholds: noise times in (0, 1), falling, one less than there are stages; () is the flow path. The paper has
            0.1 by default, 0.3 on 512 x 512 and 0.05 on 1024 x 1024 images (it counts from the noise: 0.9, 0.7, 0.95),
            and its public code 0.1.
    """

    thresholds: tuple[float, ...]

    def __post_init__(self) -> None:
        check_fields(self, thresholds="(0, 1)")
        if any(low >= high for high, low in itertools.pairwise(self.thresholds)):
            raise UserError(f"Staged: thresholds = {shown(self.thresholds)}; they must fall")

    @property
    def natural(self) -> Mapping[str, str]:
        return {**super().natural, "grid": "phases"}

    @property
    def knots(self) -> tuple[float, ...]:
        return self.thresholds

    def t_to_network(self, t: Tensor) -> Tensor:
        """Return the time of each stage and its speed dt_s / dt, [..., S, 2]; at a threshold those below it."""
        stages = [torch.stack([t, torch.ones_like(t)], -1)]
        for top, low in itertools.pairwise((*self.thresholds, 0.0)):
            speed = (1 - low) / (top - low)
            entering = torch.stack([1 - speed * (top - t), torch.full_like(t, speed)], -1)
            waiting = torch.stack([torch.ones_like(t), torch.zeros_like(t)], -1)
            stage = torch.where((t > top)[..., None], waiting, entering)
            stages.append(torch.where((t > low)[..., None] | (low == 0), stage, stages[0]))
        return torch.stack(stages, -2)

    def mix(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        if self.thresholds:
            raise UserError("stages at times of their own are not mixed at one t: train by the objective dfm, sample "
                            "by a rule for the ODE, such as euler or heun")  # fmt: skip
        return super().mix(x0, eps, t)

    def start(self, noise: Tensor, t: Tensor) -> Tensor:
        if self.thresholds and float(t) < 1:
            raise UserError(f"a loop over stages begins in noise, at t = 1, and not at {float(t):g}")
        return super().start(noise, t)


@dataclass(frozen=True)
class Trig(NoisePath):
    """alpha = cos t, sigma = sin t, t in [0, pi/2] (sCM, Lu & Song 2024)."""

    @property
    def t1(self) -> float:
        return math.pi / 2

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(t)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(t)

    def dalpha(self, t: Tensor) -> Tensor:
        return -torch.sin(t)

    def dsigma(self, t: Tensor) -> Tensor:
        return torch.cos(t)

    def t_from_lambda(self, lam: Tensor) -> Tensor:
        return torch.atan(torch.exp(-lam))


@dataclass(frozen=True)
class GVP(NoisePath):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2), t in [0, 1] (SiT, Ma et al. 2024): Trig in another unit of time.

    The unit matters to networks: a velocity is pi / 2 times that of Trig.
    """

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(t * (math.pi / 2))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(t * (math.pi / 2))

    def dalpha(self, t: Tensor) -> Tensor:
        return self.sigma(t) * (-math.pi / 2)

    def dsigma(self, t: Tensor) -> Tensor:
        return self.alpha(t) * (math.pi / 2)

    def t_from_lambda(self, lam: Tensor) -> Tensor:
        return torch.atan(torch.exp(-lam)) * (2 / math.pi)


@dataclass(frozen=True)
class EDM(NoisePath):
    """Variance exploding with t = sigma: alpha = 1 (Karras et al. 2022). Networks get ln(sigma) / 4 as time.

    Attributes:
        sigma_max: t1; default EDM's.
    """

    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        check_fields(self, sigma_max="(0, inf)")

    @property
    def natural(self) -> Mapping[str, str]:
        return {"parameterisation": "edm_precond", "times": "log_normal", "levels": "karras", "grid": "karras"}

    @property
    def t1(self) -> float:
        return self.sigma_max

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def dalpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def dsigma(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def t_from_lambda(self, lam: Tensor) -> Tensor:
        return torch.exp(-lam)

    def t_to_network(self, t: Tensor) -> Tensor:
        return t.log() / 4


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
class VP(LogAlpha):
    """The continuous variance-preserving SDE: log alpha = -(bmax - bmin) t^2 / 4 - bmin t / 2 (Song et al. 2021).

    Attributes:
        beta_min, beta_max: the rates at t = 0 and at t = 1; defaults the paper's.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        check_fields(self, beta_min="(0, inf)", beta_max="(beta_min, inf)")

    def log_alpha(self, t: Tensor) -> Tensor:
        return -(self.beta_max - self.beta_min) * t**2 / 4 - self.beta_min * t / 2

    def dlog_alpha(self, t: Tensor) -> Tensor:
        return -(self.beta_max - self.beta_min) * t / 2 - self.beta_min / 2

    def t_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        root = (self.beta_min**2 - 4 * (self.beta_max - self.beta_min) * log_alpha).sqrt()
        return -4 * log_alpha / (self.beta_min + root)


@dataclass(frozen=True)
class DDPM(LogAlpha):
    """The discrete tables of DDPM (Ho et al. 2020), improved DDPM ("cosine") and Stable Diffusion ("scaled_linear").

    t = 0 is clean data and t = k + 1 is table entry k, others' timestep k, which is the time the network gets; between
    entries log alpha is linear in t, as in DPM-Solver (Lu et al. 2022, appendix D.4).

    Attributes:
        schedule: "linear", "cosine" or "scaled_linear".
        steps: length of the table, t1.
        beta_start, beta_end: first and last beta; not used by "cosine". Defaults DDPM's.
    """

    schedule: Literal["linear", "cosine", "scaled_linear"] = "linear"
    steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02

    def __post_init__(self) -> None:
        check_fields(self, steps="[2, 100000]", beta_start="(0, 1)", beta_end="(beta_start, 1)")

    @property
    def t1(self) -> float:
        return float(self.steps)

    @property
    def time_unit(self) -> float:
        return float(self.steps)

    @property
    def natural(self) -> Mapping[str, str]:
        return {**super().natural, "times": "integers"}

    def betas(self) -> Tensor:
        """Return the published table, float64 [steps]."""
        if self.schedule == "cosine":
            return cosine_betas(self.steps)
        return power_betas(self.steps, self.beta_start, self.beta_end, 1.0 if self.schedule == "linear" else 0.5)

    @cached_property
    def table(self) -> Tensor:
        """log alpha at t = 0, 1, ..., steps; float64."""
        return torch.cat([torch.zeros(1, dtype=torch.float64), torch.log1p(-self.betas()).cumsum(0) / 2])

    def log_alpha(self, t: Tensor) -> Tensor:
        return interpolate_table(self.table, t)

    def dlog_alpha(self, t: Tensor) -> Tensor:
        return table_slope(self.table, t)

    def t_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        return table_position(-self.table, -log_alpha)

    def t_to_network(self, t: Tensor) -> Tensor:
        return t - 1


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


@dataclass(frozen=True, repr=False)
class Table(Angular):
    """A table of noise levels as other libraries hold it, such as `alphas_cumprod` of a scheduler of diffusers.

    So trained betas and any rescaling are followed. Times between entries are defined, too; see Angular.

    Attributes:
        alphas_cumprod: alpha^2 of each entry, in [0, 1) and falling, at least 2; the last may be 0.
    """

    alphas_cumprod: tuple[float, ...]

    def __post_init__(self) -> None:
        check_fields(self, alphas_cumprod="[0, 1)")
        if len(self.alphas_cumprod) < 2 or not bool((self.entries.diff() < 0).all()):
            raise UserError(
                f"Table: alphas_cumprod = {shown(self.alphas_cumprod)}; at least 2 falling numbers are needed"
            )

    def __repr__(self) -> str:
        values = self.alphas_cumprod
        return f"Table({len(values)} entries, alphas_cumprod {values[0]:g} to {values[-1]:g})"

    @cached_property
    def entries(self) -> Tensor:
        return torch.tensor(self.alphas_cumprod, dtype=torch.float64)


@dataclass(frozen=True)
class ZeroSNR(Angular):
    """A table of DDPM rescaled to end in pure noise (Lin et al. 2024, algorithm 1): `rescale_betas_zero_snr`.

    Attributes:
        inner: the table before.
        snr_shift: divides every signal-to-noise ratio of it first (`snr_shift_scale`); CogVideoX's 2B has 3 on
            Stable Diffusion's table.
    """

    inner: DDPM = part("diffusion.path", default=DDPM())
    snr_shift: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, snr_shift="(0, inf)")

    @cached_property
    def entries(self) -> Tensor:
        square = (2 * self.inner.table[1:]).exp()
        root = (square / (self.snr_shift + (1 - self.snr_shift) * square)).sqrt()
        return ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
