"""The classifier of digits that is shipped for evaluation, before it pools."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gen.config.errors import UserError
from gen.config.spec import build
from gen.diffusion.alignment import Features

__all__ = ["DigitsCNN"]


@dataclass(frozen=True)
class DigitsCNN:
    """For digits [B, 1, 8, 8]: 4 x 4 tokens of 64 features, and their mean, which is the space of this library's FID.

    So alignment with it is alignment with the metric: an FID in features digits_cnn flatters models trained on it.
    """

    dim: ClassVar[int] = 64
    grid: ClassVar[int] = 4

    def load(self, device: torch.device | str = "cpu") -> nn.Module:
        """Return the frozen encoder, in single precision."""
        extractor = build("eval.features", "digits_cnn").load()
        return Spatial(extractor.net.float()).eval().requires_grad_(False).to(device)


class Spatial(nn.Module):
    """Images [B, 1, 8, 8] in [-1, 1] to 16 tokens of 64 features, and their mean."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net: Any = net

    @torch.no_grad()
    def forward(self, images: Tensor) -> Features:
        if images.shape[1:] != (1, 8, 8):
            raise UserError(f"the encoder digits_cnn takes images [B, 1, 8, 8], this is {list(images.shape)}")
        h = images.float()
        for conv in (self.net.conv1, self.net.conv2, self.net.conv3):
            h = F.silu(conv(h))  # at last [B, 64, 4, 4]
        return Features(h.flatten(2).mT, h.mean((2, 3)))
