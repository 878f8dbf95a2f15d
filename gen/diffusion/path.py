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
from gen.diffusion.noise_path import Angular, LogAlpha, NoisePath
from gen.diffusion.prediction import Prediction, expand
from gen.diffusion.tables import cosine_betas, interpolate_table, power_betas, table_position, table_slope

__all__ = [
    "DDPM", "EDM", "GVP", "VP", "Bridge", "Flow", "NoisePath", "Prediction", "Shift", "Staged", "Table", "Trig",
    "ZeroSNR", "expand",
]  # fmt: skip


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


@dataclass(frozen=True)
class Shift(NoisePath):
    """ResShift's chain (Yue et al. 2023) on the residual x0 - y of a picture and its degraded version y.

    The chain x0 + eta (y - x0) + kappa sqrt(eta) eps is, less y, (1 - eta) (x0 - y) + kappa sqrt(eta) eps: a path of
    the residual, whose network sees y beside x. t = 0 is clean and t = k + 1 is the k-th eta, k the time the network
    gets; sqrt(eta) grows from `first` to high as first (high / first)^(u^power), u = k / (steps - 1). The defaults are
    those of the conference paper; the journal's are steps = 4 and low = 0.2.

    Attributes:
        steps: number of noise levels, t1.
        kappa: the noise at the end is kappa * high.
        low: sets the first level: it is low / kappa, or low if that is less.
        high: sqrt(eta) at t1, in (low, 1).
        power: exponent of the schedule.
    """

    steps: int = 15
    kappa: float = 2.0
    low: float = 0.04
    high: float = 0.99
    power: float = 0.3

    def __post_init__(self) -> None:
        check_fields(self, steps="[2, 100000]", kappa="(0, inf)", low="(0, 1)", high="(low, 1)", power="(0, 10]")

    @property
    def t1(self) -> float:
        return float(self.steps)

    @property
    def time_unit(self) -> float:
        return float(self.steps)

    @property
    def natural(self) -> Mapping[str, str]:
        return {**super().natural, "parameterisation": "edm_precond", "times": "integers"}

    @property
    def first(self) -> float:
        """sqrt(eta) at t = 1."""
        return min(self.low / self.kappa, self.low)

    def root_eta(self, t: Tensor) -> Tensor:
        """Return sqrt(eta) at t; linear below t = 1."""
        u = torch.where(t > 1, (t - 1) / (self.steps - 1), 1)
        return torch.where(t > 1, self.first * (self.high / self.first) ** u**self.power, self.first * t)

    def root_eta_slope(self, t: Tensor) -> Tensor:
        """Return the derivative of `root_eta`; at t = 1, above which it has no bound, the one from below."""
        u = torch.where(t > 1, (t - 1) / (self.steps - 1), 1)
        rate = math.log(self.high / self.first) * self.power / (self.steps - 1)
        return torch.where(t > 1, self.root_eta(t) * rate * u ** (self.power - 1), self.first)

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - self.root_eta(t) ** 2

    def sigma(self, t: Tensor) -> Tensor:
        return self.kappa * self.root_eta(t)

    def dalpha(self, t: Tensor) -> Tensor:
        return -2 * self.root_eta(t) * self.root_eta_slope(t)

    def dsigma(self, t: Tensor) -> Tensor:
        return self.kappa * self.root_eta_slope(t)

    def t_from_lambda(self, lam: Tensor) -> Tensor:
        ratio = self.kappa * lam.exp()  # (1 - eta) / sqrt(eta)
        root = 2 / (ratio + (ratio**2 + 4).sqrt())
        u = (root / self.first).log().clamp(min=0) / math.log(self.high / self.first)
        return torch.where(root > self.first, 1 + (self.steps - 1) * u ** (1 / self.power), root / self.first)

    def t_to_network(self, t: Tensor) -> Tensor:
        return t - 1


@dataclass(frozen=True)
class Bridge(NoisePath):
    """A Brownian bridge between a picture x0 and its degraded version x1 (I2SB, Liu et al. 2023), on x0 - x1.

    With F the noise that has been added up to t and S that of the whole, x = (1 - w) x0 + w x1 + sqrt(S w (1 - w)) eps,
    w = F / S; less x1 that is a path of the residual. Ancestral steps (ddim, eta = 1) draw from the bridge's posterior
    and euler is OT-ODE. It is symmetric: the rate grows as the square of a line up to the middle and falls again. As
    both ends are pinned, t1 = 1 is one of `steps` before the end; there eps says next to nothing about x0.

    Attributes:
        beta_min, beta_max: the rate at both ends, and what it would be at the end if it grew on; defaults I2SB's.
        steps: t1 lies at the share 1 - 1 / steps of the whole.
    """

    beta_min: float = 0.1
    beta_max: float = 0.3
    steps: int = 1000

    def __post_init__(self) -> None:
        check_fields(self, beta_min="(0, inf)", beta_max="(beta_min, inf)", steps="[10, 1000000]")

    @property
    def natural(self) -> Mapping[str, str]:
        return {**super().natural, "parameterisation": "edm_precond"}

    @property
    def total(self) -> float:
        """S, the variance that the noise of the whole has."""
        return 2 * float(self._cumulated(torch.tensor(0.5, dtype=torch.float64, device="cpu")))

    def share(self, t: Tensor) -> Tensor:
        """Return w at t."""
        return self._share(t * self._reach)

    def beta(self, t: Tensor) -> Tensor:
        """Return the rate of the noise at t."""
        (low, slope), u = self._line, t * self._reach
        return self._reach * (low + slope * torch.minimum(u, 1 - u)) ** 2

    def alpha(self, t: Tensor) -> Tensor:
        return self._share(1 - t * self._reach)

    def sigma(self, t: Tensor) -> Tensor:
        return (self.total * self.share(t) * self.alpha(t)).sqrt()

    def dalpha(self, t: Tensor) -> Tensor:
        return -self.beta(t) / self.total

    def dsigma(self, t: Tensor) -> Tensor:
        return self.beta(t) * (self.alpha(t) - self.share(t)) / (2 * self.sigma(t))

    def t_from_lambda(self, lam: Tensor) -> Tensor:
        odds = 2 * lam + math.log(self.total)  # log of (1 - w) / w
        cumulated = self.total * torch.sigmoid(-odds.abs())
        low, slope = self._line
        root = (low**3 + 3 * slope * cumulated) ** (1 / 3)
        u = 3 * cumulated / (root**2 + root * low + low**2)
        return torch.where(odds > 0, u, 1 - u) / self._reach

    @property
    def _reach(self) -> float:
        return 1 - 1 / self.steps

    @property
    def _line(self) -> tuple[float, float]:
        """sqrt(beta) = low + slope u up to the middle, u the share of the whole time."""
        return math.sqrt(self.beta_min), math.sqrt(self.beta_max) - math.sqrt(self.beta_min)

    def _share(self, u: Tensor) -> Tensor:
        """F / S at u, with all its digits near 0."""
        half = self._cumulated(torch.minimum(u, 1 - u)) / self.total
        return torch.where(u < 0.5, half, 1 - half)

    def _cumulated(self, u: Tensor) -> Tensor:
        """F at u <= 1/2."""
        low, slope = self._line
        return u * (low**2 + low * slope * u + slope**2 * u**2 / 3)
