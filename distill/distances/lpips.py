"""The learned perceptual distance of images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from gen.config.errors import MissingDependency, UserError
from gen.config.fields import check_fields

__all__ = ["Lpips"]


@dataclass(frozen=True)
class Lpips:
    """LPIPS of images [B, 1 or 3, H, W] in [-1, 1] (Zhang et al. 2018).

    Needs the package lpips and the network's weights, which torchvision downloads once: without either,
    MissingDependency. Its features were trained on ImageNet's labels, so FID flatters what is trained with it.

    Attributes:
        net: whose features are compared.
        size: to which images are enlarged, at least 32; consistency models' code has 224.
        pooling: "average" in place of VGG's maxima, as rf++ has it; "max" is the published one.
    """

    net: Literal["vgg", "alex"] = "vgg"
    size: int = 224
    pooling: Literal["average", "max"] = "average"

    def __post_init__(self) -> None:
        check_fields(self, size="[32, inf)")

    @property
    def files(self) -> tuple[Path, ...]:
        """The weights as torchvision keeps them; () before they are downloaded."""
        name = {"vgg": "vgg16", "alex": "alexnet"}[self.net]
        return tuple(sorted(Path(torch.hub.get_dir(), "checkpoints").glob(f"{name}-*.pth")))

    @cached_property
    def network(self) -> nn.Module:
        """The frozen network, on the CPU at first."""
        try:
            import lpips
        except (ImportError, RuntimeError) as error:  # torchvision beside another build of torch raises the latter
            raise MissingDependency(
                f"the distance lpips needs its package ({error}): pip install 'gen-diffusion[lpips]'"
            ) from None
        try:
            net: nn.Module = lpips.LPIPS(net=self.net, verbose=False)
        except OSError as error:
            raise MissingDependency(
                f"the distance lpips needs torchvision's weights of {self.net}, and they cannot be downloaded ({error})"
            ) from None
        if self.pooling == "average":
            _average_pooling(net)
        return net.eval().requires_grad_(False)

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        if output.ndim != 4 or output.shape[1] not in (1, 3):
            raise UserError(f"the distance lpips compares images [B, 1 or 3, H, W], got {list(output.shape)}")
        net: Any = self.network.to(output.device)
        return net(self.enlarged(output), self.enlarged(target)).flatten(1).mean(1)

    def enlarged(self, x: Tensor) -> Tensor:
        """Resize images to [B, 3, size, size], float32."""
        big = interpolate(x.float(), size=(self.size, self.size), mode="bilinear", align_corners=False)
        return big.expand(-1, 3, -1, -1)


def _average_pooling(net: nn.Module) -> None:
    """Replace every maximum by an average over the same window."""
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.MaxPool2d):
                setattr(module, name, nn.AvgPool2d(child.kernel_size, child.stride, child.padding))
