"""The contract of restoration: samples of a prior that agree with a measurement y = A x + noise."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Protocol

from torch import Tensor

from gen.diffusion.denoiser import Cond, DenoiserLike
from gen.diffusion.noise import Noise
from gen.diffusion.path import NoisePath
from gen.operators.lib.operator import Operator

__all__ = ["Restorer", "descended", "flow_time", "level", "unit_rate"]


class Restorer(Protocol):
    """A plug-in of gen.samplers.restore: a frozen dataclass of JSON values.

    What is known of the measurement's noise is a field, `noise`, its standard deviation. Row i of the result depends on
    row i of the arguments alone, unless `ties_rows`.

    Attributes:
        ties_rows: whether the rows are one sample together, such as the slices of a volume.
    """

    ties_rows: ClassVar[bool] = False

    @abstractmethod
    def restore(
        self,
        denoise: DenoiserLike,
        y: Tensor,
        operator: Operator,
        shape: tuple[int, ...],
        noise: Noise,
        cond: Cond | None = None,
    ) -> Tensor:
        """Return samples, [B, ...].

        Args:
            denoise: the prior, of any path.
            y: measurements [B, *operator.measured].
            operator: of one sample (gen.operators).
            shape: of the samples, with B.
            noise: one seed for each row.
            cond: of the prior, [B, ...].
        """
        ...


def level(path: NoisePath, t: Tensor) -> float:
    """Return sigma / alpha, the noise in units of x / alpha.

    Args:
        path: of the noise.
        t: a time, 0-d.
    """
    return float(path.sigma(t) / path.alpha(t))


def flow_time(path: NoisePath, t: Tensor) -> float:
    """Return sigma / (alpha + sigma): the time of the flow path with the same level of noise, in [0, 1].

    Args:
        path: of the noise.
        t: a time, 0-d.
    """
    alpha, sigma = float(path.alpha(t)), float(path.sigma(t))
    return sigma / (alpha + sigma)


def descended(operator: Operator, x: Tensor, y: Tensor, rate: float, steps: int = 1) -> Tensor:
    """Return x after steps of gradient descent on |y - A x|^2 / 2, [B, ...].

    Args:
        operator: of one sample.
        x: [B, ...].
        y: [B, *measured].
        rate: of a step.
        steps: how many.
    """
    for _ in range(steps):
        x = x + rate * operator.vjp(x, y - operator.A(x))
    return x


def unit_rate(operator: Operator) -> float:
    """Return 1 / |A|^2, below twice of which gradient descent on |y - A x|^2 / 2 converges; 1 for what is not linear.

    Args:
        operator: of one sample.
    """
    size = operator.norm() if operator.linear else 1.0
    return 1 / size**2 if size else 1.0
