"""muP: a parameterisation in which the best learning rate does not depend on the width, so that it carries over.

Maximal update parametrisation (Yang et al. 2022, arXiv 2203.03466, table 8) as microsoft/mup and, for DiT, ML-GSAI/
Scaling-Diffusion-Transformers-muP (arXiv 2505.15270) have it, for Adam: `ratio` is the width over that of a base.
"""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Readout", "initialise", "matrix_like"]


class Readout(nn.Linear):
    """The last linear layer, [..., width] -> [..., out], of its input over the ratio; names as nn.Linear's."""

    def __init__(self, width: int, out: int, ratio: float):
        super().__init__(width, out)
        self.ratio = ratio

    def forward(self, h: Tensor) -> Tensor:
        return super().forward(h / self.ratio)


def initialise(net: nn.Module) -> None:
    """Initialise for unit variance: kernels normal with 1 / fan-in, biases 0, label tables N(0, 1), readouts 0.

    Args:
        net: the network.
    """
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
    """Return the names of the weights with two dimensions that grow with the width.

    Their learning rate is 1 / ratio; that of all others, with one such dimension, is left as it is.

    Args:
        net: the network.
        wider: the same at another width, on any device.
    """
    larger = dict(wider.named_parameters())
    grown = {n: sum(a != b for a, b in zip(p.shape, larger[n].shape, strict=True)) for n, p in net.named_parameters()}
    return [name for name, dimensions in grown.items() if dimensions == 2]
