"""The discriminator of patches that LDM and VA-VAE are trained against."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal

from torch import nn

from gen.config.errors import UserError
from gen.config.fields import check_fields

__all__ = ["PatchGAN"]


@dataclass(frozen=True)
class PatchGAN:
    """A logit for each patch of a picture (Isola et al. 2017; taming-transformers' NLayerDiscriminator).

    4 x 4 convolutions: `layers` of stride 2, two of stride 1; leaky ReLUs of slope 0.2. With the defaults a patch has
    70 x 70 pixels, and there are 2,765,633 parameters for 3 channels.

    Attributes:
        width: channels of the first convolution; twice as many in each later one, at most 8 times.
        layers: of stride 2.
        norm: "group", within each picture, or "batch", within each micro-batch of one kind, as published: the result
            then depends on how a batch is cut.
    """

    width: int = 64
    layers: int = 3
    norm: Literal["group", "batch"] = "group"

    def __post_init__(self) -> None:
        check_fields(self, width="[1, inf)", layers="[1, 6]")

    def build(self, channels: int, sides: tuple[int, int]) -> nn.Module:
        """Return the network, freshly initialised: weights from N(0, 0.02^2).

        Args:
            channels: of the pictures.
            sides: height and width of the smallest.

        Raises:
            UserError: for pictures that are too small.
        """
        least = 3 * 2**self.layers
        if min(sides) < least:
            raise UserError(
                f"PatchGAN.layers = {self.layers} takes pictures of {least} pixels at least, these have "
                f"{sides[0]} x {sides[1]}; allowed: layers = 1 from 6 pixels"
            )
        widths = [self.width * min(2**i, 8) for i in range(self.layers + 1)]
        parts: list[nn.Module] = [nn.Conv2d(channels, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for i, (before, width) in enumerate(itertools.pairwise(widths)):
            stride = 2 if i < self.layers - 1 else 1
            parts += [nn.Conv2d(before, width, 4, stride, 1, bias=False), self._norm(width), nn.LeakyReLU(0.2)]
        net = nn.Sequential(*parts, nn.Conv2d(widths[-1], 1, 4, 1, 1))
        for module in net:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
                nn.init.normal_(module.weight, 1.0, 0.02)
        return net

    def _norm(self, width: int) -> nn.Module:
        if self.norm == "batch":
            return nn.BatchNorm2d(width, track_running_stats=False)
        return nn.GroupNorm(math.gcd(32, width), width)
