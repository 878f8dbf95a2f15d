"""Real-ESRGAN's degradation of second order: what photographs on the web went through."""

from __future__ import annotations

import math
from bisect import bisect
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.operators.lib.degradations import (
    Degradation,
    blur_kernel,
    compressed,
    filtered,
    normal,
    resized,
    sinc_kernel,
    uniform,
)

__all__ = ["RealESRGAN", "Round"]

Kind = Literal["gaussian", "generalised", "plateau"]

MODES = ("area", "bilinear", "bicubic")
KINDS: tuple[tuple[Kind, bool, float], ...] = (  # kernel, whether it is stretched, probability
    ("gaussian", False, 0.45),
    ("gaussian", True, 0.25),
    ("generalised", False, 0.12),
    ("generalised", True, 0.03),
    ("plateau", False, 0.12),
    ("plateau", True, 0.03),
)
SINC, POISSON, GREY, LAST_SINC = 0.1, 0.5, 0.4, 0.8  # probabilities
QUALITY = (30, 95)
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Round:
    """One round of blur, resizing and noise.

    Attributes:
        blurred: probability of a blur.
        largest: side of the largest kernel, odd; the smallest has 3.
        deviation: of the kernels, lowest and highest, pixels.
        resized: probabilities of enlarging and of shrinking.
        scales: least and greatest scale.
        gaussian: lowest and highest deviation of Gaussian noise, of 255.
        poisson: lowest and highest scale of Poisson noise.
    """

    blurred: float
    largest: int
    deviation: tuple[float, float]
    resized: tuple[float, float]
    scales: tuple[float, float]
    gaussian: tuple[float, float]
    poisson: tuple[float, float]


FIRST = Round(1.0, 19, (0.2, 3.0), (0.2, 0.7), (0.15, 1.5), (1, 30), (0.05, 3.0))
SECOND = Round(0.8, 13, (0.2, 1.5), (0.3, 0.4), (0.3, 1.2), (1, 25), (0.05, 2.5))


@dataclass(frozen=True)
class RealESRGAN:
    """Blur, resizing, noise and JPEG, perhaps a second time, and a last low-pass filter (Wang et al. 2021).

    Kernels, scales, noise and qualities are those of ResShift's copy of it. A seed gives one degradation: the data
    `degraded` draw another one for each picture.

    Attributes:
        factor: height and width of the picture over those of what is left, which it divides.
        second: probability of the second round; 0.5 as ResShift has it, 1 as published first.
        seed: of all that is random.
    """

    factor: int = 4
    second: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, factor="[1, 64]", second="[0, 1]", seed="[0, inf)")

    def on(self, shape: tuple[int, ...]) -> Degradation:
        """Return the operator on samples [1, H, W] or [3, H, W]."""
        if len(shape) == 3 and (shape[1] % self.factor or shape[2] % self.factor):
            raise UserError(f"RealESRGAN: factor = {self.factor} does not divide {shape[1]} x {shape[2]}")
        left = (shape[0], *(size // self.factor for size in shape[1:]))
        return Degradation(shape, left, self._degrade, self.seed)

    def _degrade(self, x: Tensor, draw: torch.Generator) -> Tensor:
        height, width = x.shape[1] // self.factor, x.shape[2] // self.factor
        x = compressed(_after(x, FIRST, (x.shape[1], x.shape[2]), draw), QUALITY, draw)
        if uniform(draw, 0, 1) < self.second:
            x = _after(x, SECOND, (height, width), draw)
        last = None
        if uniform(draw, 0, 1) < LAST_SINC:
            last = sinc_kernel(_side(draw, 13), uniform(draw, math.pi / 3, math.pi))

        def shrunk(x: Tensor) -> Tensor:
            x = resized(x, height, width, _mode(draw))
            return x if last is None else filtered(x, last)

        if uniform(draw, 0, 1) < 0.5:
            return compressed(shrunk(x), QUALITY, draw)
        return shrunk(compressed(x, QUALITY, draw))


def _after(x: Tensor, settings: Round, sizes: tuple[int, int], draw: torch.Generator) -> Tensor:
    """Return a picture after one round; scales are relative to `sizes`."""
    if uniform(draw, 0, 1) < settings.blurred:
        x = filtered(x, _kernel(settings, draw))
    chosen, scale = uniform(draw, 0, 1), 1.0
    if chosen < settings.resized[0]:
        scale = uniform(draw, 1, settings.scales[1])
    elif chosen < sum(settings.resized):
        scale = uniform(draw, settings.scales[0], 1)
    height, width = (max(int(size * scale), 1) for size in sizes)
    return _noisy(resized(x, height, width, _mode(draw)).clamp(0, 1), settings, draw)


def _kernel(settings: Round, draw: torch.Generator) -> Tensor:
    side = _side(draw, settings.largest)
    if uniform(draw, 0, 1) < SINC:
        return sinc_kernel(side, uniform(draw, math.pi / (3 if side < 13 else 5), math.pi))
    chosen, above = uniform(draw, 0, 1), list(accumulate(probability for *_, probability in KINDS[:-1]))
    kind, stretched, _ = KINDS[bisect(above, chosen)]
    return blur_kernel(side, settings.deviation, kind, stretched, draw)


def _noisy(x: Tensor, settings: Round, draw: torch.Generator) -> Tensor:
    """Return a picture with Gaussian or Poisson noise, of each channel by itself or the same in all."""
    poisson, grey = uniform(draw, 0, 1) < POISSON, uniform(draw, 0, 1) < GREY
    luma = (torch.tensor(LUMA).view(3, 1, 1) * x).sum(0, keepdim=True)
    seen = luma if grey and len(x) == 3 else x
    if poisson:
        levels = 2 ** math.ceil(math.log2(len((seen * 255).round().unique())))
        noise = torch.poisson(seen * levels, generator=draw) / levels - seen
        return (x + uniform(draw, *settings.poisson) * noise).clamp(0, 1)
    return (x + uniform(draw, *settings.gaussian) / 255 * normal(seen, draw)).clamp(0, 1)


def _mode(draw: torch.Generator) -> str:
    return MODES[int(uniform(draw, 0, len(MODES)))]


def _side(draw: torch.Generator, largest: int) -> int:
    """Return an odd number from 3 to the largest."""
    return 3 + 2 * int(uniform(draw, 0, (largest - 1) // 2))
