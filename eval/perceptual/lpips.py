"""LPIPS as a loss: the metric's network, without the package or torchvision."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.eval.features.lib.lpips import SMALLEST, Lpips, LpipsNet

__all__ = ["PerceptualLoss"]


@dataclass(frozen=True)
class PerceptualLoss:
    """LPIPS of pictures [B, 1 or 3, H, W] in [-1, 1] at their own size (Zhang et al. 2018), with gradients.

    Its features were trained on ImageNet's labels, so FID flatters what is trained with it.

    Attributes:
        trunk: "vgg", with which LDM, VA-VAE and RAE train, or "alex".
        path: file of the trunk's weights, see gen.eval.features.lib.lpips; "" for what is installed.
    """

    trunk: Literal["alex", "vgg"] = "vgg"
    path: str = ""

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the distance of each pair, [B]."""
        smallest = SMALLEST[self.trunk]
        if output.ndim != 4 or output.shape[1] not in (1, 3) or min(output.shape[2:]) < smallest:
            raise UserError(
                f"lpips compares pictures [B, 1 or 3, H, W] of {smallest} pixels at least, got {list(output.shape)}"
            )
        net = _loaded(self, str(output.device))
        distance: Tensor = net(*(x.float().expand(-1, 3, -1, -1) for x in (output, target)))
        return distance


@functools.cache
def _loaded(loss: PerceptualLoss, device: str) -> LpipsNet:
    """Load a network once for each device."""
    return Lpips(loss.trunk, loss.path).load().net.to(device)
