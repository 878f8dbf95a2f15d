"""Linear layers whose weights are laid out once for the processor: for networks that are only evaluated."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from gen.config.errors import UserError
from gen.kernels.linear import Activation, linear, pack
from gen.models.layers.block import Mlp

__all__ = ["PackedLinear", "pack_linears"]


class PackedLinear(nn.Module):
    """A linear layer [..., in] -> [..., out] and its activation; the weights are constants, see gen.kernels.linear."""

    def __init__(self, layer: nn.Linear, activation: Activation | None = None):
        super().__init__()
        self.weight = pack(layer.weight)
        self.bias = layer.bias
        self.activation = activation

    def forward(self, h: Tensor) -> Tensor:
        return linear(h, self.weight, self.bias, self.activation)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedLinear:
        raise UserError("packed weights stay on the device and in the dtype they were packed for: prepare anew")


def pack_linears(net: nn.Module) -> None:
    """Replace every nn.Linear in a network by a PackedLinear; the first of an Mlp includes the GELU.

    Subclasses of nn.Linear have a formula of their own, and stay.

    Args:
        net: changed in place.
    """
    for name, child in net.named_children():
        if type(child) is nn.Linear:
            fused = isinstance(net, Mlp) and name == "fc1"
            setattr(net, name, PackedLinear(child, "gelu_tanh" if fused else None))
        else:
            pack_linears(child)
    if isinstance(net, Mlp) and isinstance(net.fc1, PackedLinear):
        net.act = nn.Identity()
