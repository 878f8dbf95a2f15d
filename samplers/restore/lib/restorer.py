"""The contract of restoration: samples of a prior that agree with a measurement y = A x + noise."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Protocol

from torch import Tensor

from gen.diffusion.denoiser import Cond, DenoiserLike
from gen.diffusion.noise import Noise
from gen.diffusion.path import NoisePath
from gen.operators.lib.operator import Operator

__all__ = ["Restorer", "level"]


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
