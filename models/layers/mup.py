"""muP: widths in which every layer learns at its own pace whatever the width, so that the learning rate carries over.

Maximal update parametrisation (Yang et al. 2022, arXiv 2203.03466, table 8) as microsoft/mup and, for DiT, ML-GSAI/
Scaling-Diffusion-Transformers-muP (arXiv 2505.15270) have it, for Adam: `ratio` is the width over that of a base.
"""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Readout", "matrix_like", "start"]


class Readout(nn.Linear):
    """The last linear layer, [..., width] -> [..., out], of its input over the ratio; names as nn.Linear's."""

    def __init__(self, width: int, out: int, ratio: float):
        super().__init__(width, out)
        self.ratio = ratio

    def forward(self, h: Tensor) -> Tensor:
        return super().forward(h / self.ratio)


def start(net: nn.Module) -> None:
    """Unit variance everywhere: kernels normal with 1 / fan-in, offsets 0, tables of classes N(0, 1), readouts 0."""
    for module in net.modules():
        if isinstance(module, Readout):
            nn.init.zeros_(module.weight)
        elif isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, a=1)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
        if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
            nn.init.zeros_(module.bias)


def matrix_like(net: nn.Module, wider: nn.Module) -> list[str]:
    """The trained weights with two dimensions that grow with the width, by comparison with the same net made wider.

    Their learning rate is 1 / ratio; that of all others, with one such dimension, is left as it is.
    """
    larger = dict(wider.named_parameters())
    grown = {n: sum(a != b for a, b in zip(p.shape, larger[n].shape, strict=True)) for n, p in net.named_parameters()}
    return [name for name, dimensions in grown.items() if dimensions == 2]
