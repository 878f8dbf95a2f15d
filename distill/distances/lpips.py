"""The learned perceptual distance of images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.functional import interpolate

from gen.config.errors import MissingDependency, UserError

__all__ = ["Lpips"]


@dataclass(frozen=True)
class Lpips:
    """LPIPS with VGG features of images in [-1, 1], enlarged to `size` (Zhang et al. 2018).

    pooling: "average" in place of VGG's maxima, as rf++ has it; "max" is the published one. Needs the package lpips and
    VGG's weights, which torchvision downloads once: without either, MissingDependency. Its features have seen
    ImageNet's labels, so FID flatters what is trained with it.
    """

    net: Literal["vgg", "alex"] = "vgg"
    size: int = 224
    pooling: Literal["average", "max"] = "average"

    def __post_init__(self) -> None:
        if self.size < 32 or self.net not in ("vgg", "alex") or self.pooling not in ("average", "max"):
            raise UserError(
                f"Lpips: net = {self.net!r}, size = {self.size}, pooling = {self.pooling!r}; "
                "allowed: vgg or alex, at least 32, average or max"
            )

    @cached_property
    def network(self) -> nn.Module:
        """The frozen network, on the CPU at first."""
        try:
            import lpips
        except (ImportError, RuntimeError) as error:  # torchvision beside another build of torch raises the latter
            raise MissingDependency(
                f"the distance lpips needs its package ({error}): pip install 'gen[lpips]'"
            ) from None
        try:
            net: nn.Module = lpips.LPIPS(net=self.net, verbose=False)
        except OSError as error:
            raise MissingDependency(
                f"the distance lpips needs torchvision's weights of {self.net}, and they cannot be downloaded ({error})"
            ) from None
        if self.pooling == "average":
            _average(net)
        return net.eval().requires_grad_(False)

    def __call__(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """x [B, 1 or 3, H, W] twice, in [-1, 1] -> [B]."""
        if ours.ndim != 4 or ours.shape[1] not in (1, 3):
            raise UserError(f"the distance lpips compares images [B, 1 or 3, H, W], got {list(ours.shape)}")
        net: Any = self.network.to(ours.device)
        distance: Tensor = net(self.enlarged(ours), self.enlarged(theirs))
        return distance.flatten(1).mean(1)

    def enlarged(self, x: Tensor) -> Tensor:
        """[B, 3, size, size], float32."""
        big = interpolate(x.float(), size=(self.size, self.size), mode="bilinear", align_corners=False)
        return big.expand(-1, 3, -1, -1)


def _average(net: nn.Module) -> None:
    """Puts an average in place of every maximum over the same window."""
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.MaxPool2d):
                setattr(module, name, nn.AvgPool2d(child.kernel_size, child.stride, child.padding))
