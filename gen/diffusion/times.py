"""Densities of training times, each given by its inverse distribution function.

`at(u, path)` maps uniform numbers u in [0, 1), which the caller draws, to times.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import find, part
from gen.diffusion.path import NoisePath

__all__ = [
    "Integers", "Karras", "Levels", "LogNormal", "LogitNormal", "Mode", "Natural", "Point", "Shifted", "Times",
    "UShaped", "Uniform",
]  # fmt: skip


@dataclass(frozen=True)
class Times:
    """A density over [0, t1]."""

    def at(self, u: Tensor, path: NoisePath) -> Tensor:
        """Return the quantiles u of the density: times in [0, path.t1], float64, shaped as u."""
        raise NotImplementedError

    def fixed(self, path: NoisePath, n: int = 8) -> Tensor:
        """Return the midpoints of n equal shares of the density, without repeats: the times of validation losses."""
        return torch.unique(self.at((torch.arange(n, dtype=torch.float64) + 0.5) / n, path))


@dataclass(frozen=True)
class Uniform(Times):
    """Uniform between two fractions of t1.

    Attributes:
        low, high: the fractions, 0 <= low < high <= 1.
    """

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, low="[0, 1)", high="(low, 1]")

    def at(self, u: Tensor, path: NoisePath) -> Tensor:
        return (self.low + (self.high - self.low) * u) * path.t1


@dataclass(frozen=True)
class Natural(Times):
    """The density that suits training on the path (NoisePath.natural): EDM's own on EDM, uniform on Flow."""

    def on(self, path: NoisePath) -> Times:
        """Return the path's own density."""
        return _named(path.natural["times"])

    def at(self, u: Tensor, path: NoisePath) -> Tensor:
        return self.on(path).at(u, path)


@dataclass(frozen=True)
class Levels(Times):
    """Even over the path's noise levels between two fractions of them: uniform on Flow, along Karras' grid on EDM.

    Attributes:
        low, high: the fractions, 0 <= low < high <= 1.
    """

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, low="[0, 1)", high="(low, 1]")

    def on(self, path: NoisePath) -> Times:
        """Return the path's own density."""
        return _named(path.natural["levels"], self.low, self.high)

    def at(self, u: Tensor, path: NoisePath) -> Tensor:
        return self.on(path).at(u, path)


@functools.cache
def _named(name: str, *values: float) -> Times:
    made: Times = find(name, "diffusion.times")(*values)
    return made


@dataclass(frozen=True)
class Integers(Times):
    """Uniform over t = 1, 2, ..., t1: the entries of a discrete DDPM table."""

    def at(self, u: Tensor, path: NoisePath) -> Tensor:
        return 1 + (u * path.t1).floor()


@dataclass(frozen=True)
class Point(Times):
    """One time for all samples.

    Attributes:
        where: the time as a fraction of t1, in (0, 1]; 1 trains a one-step generator.
    """

    where: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, where="(0, 1]")

    def at(self, u: Tensor, path: NoisePath) -> Tensor:
        return torch.full_like(u, self.where * path.t1)


@dataclass(frozen=True)
class LogitNormal(Times):
    """t1 sigmoid(mean + std n), n standard normal (Stable Diffusion 3, Esser et al. 2024, section 3.1).

    Attributes:
        mean, std: of logit(t / t1); defaults Stable Diffusion 3's.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, std="(0, inf)")

    def at(self, u: Tensor, path: NoisePath) -> Tensor:
        return path.t1 * torch.sigmoid(self.mean + self.std * _normal(u))


@dataclass(frozen=True)
class LogNormal(Times):
    """exp(mean + std n) as the ratio sigma / alpha, on any path (EDM, Karras et al. 2022, table 1).

    Attributes:
        mean, std: of ln(sigma / alpha); defaults EDM's. EDM2 (Karras et al. 2024) has -0.4, 1.0 in the latents of
            512 x 512 images and -0.8, 1.6 on 64 x 64 pixels.
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        check_fields(self, std="(0, inf)")

    def at(self, u: Tensor, path: NoisePath) -> Tensor:
        return path.t_from_lambda(-(self.mean + self.std * _normal(u))).clamp(max=path.t1)


@dataclass(frozen=True)
class Karras(Times):
    """EDM's sampling grid as a density of the ratio sigma / alpha, on any path (Karras et al. 2022, eq. 5).

    ratio = (lowest^(1/rho) + v (highest^(1/rho) - lowest^(1/rho)))^rho, v uniform from `low` to `high`.

    Attributes:
        low, high: range of v; DMD2 has 0.02 to 0.98 (Yin et al. 2024), SiD 0 to 0.8 (Zhou et al. 2024).
        lowest, highest: the ratio at v = 0 and at v = 1; defaults EDM's.
        rho: exponent; default EDM's.
    """

    low: float = 0.0
    high: float = 1.0
    lowest: float = 0.002
    highest: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        check_fields(self, low="[0, 1)", high="(low, 1]", lowest="(0, inf)", highest="(lowest, inf)")
        check_fields(self, rho="(0, inf)")

    def at(self, u: Tensor, path: NoisePath) -> Tensor:
        ends = self.lowest ** (1 / self.rho), self.highest ** (1 / self.rho)
        ratio = (ends[0] + (self.low + (self.high - self.low) * u) * (ends[1] - ends[0])) ** self.rho
        return path.t_from_lambda(-ratio.log()).clamp(max=path.t1)


@dataclass(frozen=True)
class UShaped(Times):
    """Density proportional to cosh(sharpness (t / t1 - 1/2)): both ends often, the middle seldom.

    rf++ (Lee et al. 2024, section 4.1), as its code has it; the formula printed in the paper is not symmetric.

    Attributes:
        sharpness: a in cosh(a (t / t1 - 1/2)), positive; default rf++'s.
    """

    sharpness: float = 4.0

    def __post_init__(self) -> None:
        check_fields(self, sharpness="(0, 100]")

    def at(self, u: Tensor, path: NoisePath) -> Tensor:
        return path.t1 * (0.5 + torch.asinh((2 * u - 1) * math.sinh(self.sharpness / 2)) / self.sharpness)


@dataclass(frozen=True)
class Mode(Times):
    """t / t1 = u - scale (sin^2(pi u / 2) - u): the middle often for scale > 0, the ends for scale < 0, 0 uniform.

    Stable Diffusion 3 (Esser et al. 2024, eq. 20), where t = 1 is the noise as it is here; their u runs backwards,
    which changes nothing, since the density is symmetric.

    Attributes:
        scale: from -1 to 2 / (pi - 2); default that of diffusers' training scripts.
    """

    scale: float = 1.29

    def __post_init__(self) -> None:
        highest = 2 / (math.pi - 2)  # beyond it t would not grow with u
        check_fields(self, scale=f"[-1, {highest}]")

    def at(self, u: Tensor, path: NoisePath) -> Tensor:
        return path.t1 * (u - self.scale * (torch.sin(math.pi / 2 * u) ** 2 - u)).clamp(0, 1)


@dataclass(frozen=True)
class Shifted(Times):
    """Another density with every ratio sigma / alpha multiplied by `shift`: more noise where one x holds more numbers.

    On the flow path, with t = 1 the noise as here, that is t' = shift t / (1 + (shift - 1) t), or logit t' = logit t +
    ln shift (Stable Diffusion 3, Esser et al. 2024, eq. 23; codes that call the data t = 1 divide by the shift there).

    Attributes:
        inner: the other density.
        shift: the factor, positive; 1 if dim is given.
        dim: how many numbers an x has; then the factor is sqrt(dim / base).
        base: RAE's 4096 = 32 x 32 x 4 (Zheng et al. 2025: factor 6.93 for 16 x 16 x 768).
    """

    inner: Times = part("diffusion.times", default=Uniform())
    shift: float = 1.0
    dim: int | None = None
    base: int = 4096

    def __post_init__(self) -> None:
        check_fields(self, shift="(0, inf)", dim="[1, inf)", base="[1, inf)")
        if self.dim is not None and self.shift != 1:
            raise UserError(f"Shifted: shift = {self.shift} beside dim = {self.dim}; give one of the two")

    @property
    def factor(self) -> float:
        """The shift, given or from dim."""
        return self.shift if self.dim is None else math.sqrt(self.dim / self.base)

    def at(self, u: Tensor, path: NoisePath) -> Tensor:
        t = self.inner.at(u, path)
        if self.factor == 1:
            return t
        return path.t_from_lambda(path.lam(t) - math.log(self.factor)).clamp(0, path.t1)


def _normal(u: Tensor) -> Tensor:
    return torch.special.ndtri(u.clamp(1e-12, 1 - 1e-12))
