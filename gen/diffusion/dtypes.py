"""Dtypes of a network's weights and of its computation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.diffusion.net import members

__all__ = ["computation_dtype", "weight_converter"]


def weight_converter(net: nn.Module, dtype: torch.dtype | str | None) -> Callable[[str, Tensor], Tensor]:
    """Return what casts a file's tensors by name to the dtype that `gen.load` was given.

    Args:
        net: the network, for its own dtypes.
        dtype: of the weights, such as "bfloat16"; "file" for that of the file; None for the network's own.

    Raises:
        UserError: for what is no floating dtype; what is returned raises it for a tensor of another kind.
    """
    kind = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype not in (None, "file") and not (isinstance(kind, torch.dtype) and kind.is_floating_point):
        raise UserError(f'dtype = {dtype!r}; allowed: None, "file", or a floating dtype such as "bfloat16"')
    own = {name: value.dtype for name, value in net.state_dict().items()}

    def convert(name: str, tensor: Tensor) -> Tensor:
        if name in own and tensor.is_floating_point() != own[name].is_floating_point:
            raise UserError(f"{name} is {tensor.dtype}, expected {own[name]}")
        if dtype == "file" or not tensor.is_floating_point():
            return tensor
        return tensor.to(kind or own.get(name, torch.get_default_dtype()))

    return convert


def computation_dtype(net: nn.Module) -> torch.dtype | None:
    """Return the dtype that x has to have, None for float32; UserError for one that the network does not compute in.

    Args:
        net: with its weights.
    """
    used = next((p.dtype for p in net.parameters() if p.is_floating_point()), torch.float32)
    known = (torch.float32, *members(net).compute_dtypes)
    if used not in known:
        raise UserError(f"dtype {used}: {type(net).__name__} computes in {', '.join(map(str, known))}")
    return None if used == torch.float32 else used
