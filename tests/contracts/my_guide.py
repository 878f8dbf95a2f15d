"""A user's guide, outside gen: classifier-free guidance of x0 alone, clipped."""

from dataclasses import dataclass
from typing import ClassVar

from gen.diffusion.parameterisation import X0
from gen.samplers.guides.lib.two_predictions import TwoPredictionGuide


@dataclass(frozen=True)
class MyGuide(TwoPredictionGuide):
    limit: float = 100.0

    scale_of_uncond: ClassVar[float] = 0.0

    def combine(self, path, x, t, c, u):
        x0 = u.x0 + self.scale * (c.x0 - u.x0)
        return X0().solve(path, x, x0.clamp(-self.limit, self.limit), t)
