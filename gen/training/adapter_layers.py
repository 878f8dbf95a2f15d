"""Layers of adapters that peft has not: of a layer that normalises its own weight, and of a weight that is moved."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

__all__ = ["NORMS", "NormalisedLoRA", "normalises", "row_norms", "subtract_from_weight"]

NORMS = "lora_norms.start"  # the lengths of the rows of a weight, among the tensors of its adapter


def normalises(layer: nn.Module) -> bool:
    """Return whether a layer is a linear map or convolution whose every row of the weight counts by direction alone.

    Args:
        layer: any module; such a one says so by its attribute `normalised`.
    """
    return bool(getattr(layer, "normalised", False))


def row_norms(weight: Tensor) -> Tensor:
    """Return the length of each row of a weight [out, ...], [out].

    Args:
        weight: of a layer.
    """
    return torch.linalg.vector_norm(weight.flatten(1), dim=1)


class NormalisedLoRA(nn.Module):
    """A low-rank adapter of a layer that normalises its own weight: row i is that of W + |W_i| s B A, normalised there.

    So s B A is added to rows of length 1, as to the weights of other networks, and the layer keeps magnitudes. That is
    DoRA (arXiv 2402.09353) whose norms are not trained, and whose gradient goes through the norm.

    Args:
        layer: called with the input and perhaps more.
        rank: of B A.
        scale: s.
        gaussian: whether A is normal of deviation 1 / rank, not uniform; both as of peft. B is 0.
    """

    active_adapters = ("default",)

    def __init__(self, layer: Any, rank: int, scale: float, gaussian: bool) -> None:
        super().__init__()
        weight = layer.weight
        made = {"device": weight.device, "dtype": torch.promote_types(weight.dtype, torch.float32), "bias": False}
        self.base_layer, self.scale = layer, scale
        self.lora_A = nn.ModuleDict({"default": nn.Linear(weight[0].numel(), rank, **made)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, len(weight), **made)})
        norms = row_norms(weight.detach().to(made["dtype"]))
        self.lora_norms = nn.ParameterDict({"start": nn.Parameter(norms, requires_grad=False)})
        a: Any = self.lora_A["default"].weight
        if gaussian:
            nn.init.normal_(a, std=1 / rank)
        else:
            nn.init.kaiming_uniform_(a, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B["default"].weight)  # type: ignore[arg-type]

    def forward(self, *given: Any, **options: Any) -> Any:
        a: Any = self.lora_A["default"].weight
        b: Any = self.lora_B["default"].weight
        weight = self.base_layer.weight
        change = (self.scale * self.lora_norms["start"])[:, None] * (b @ a)  # [out, inputs]
        whole = {"weight": weight + change.view_as(weight)}
        return torch.func.functional_call(self.base_layer, whole, given, options)


def subtract_from_weight(layer: Any, scale: float) -> None:
    """Let the weight of a layer that peft adapts read as W - s B0 A0, of its adapter "start"; W itself stays.

    Args:
        layer: peft's, changed in place.
        scale: s.
    """
    register_parametrization(layer.base_layer, "weight", _Moved(layer, scale))


class _Moved(nn.Module):
    """W -> W - s B0 A0, of the same dtype."""

    def __init__(self, layer: Any, scale: float) -> None:
        super().__init__()
        self.owner, self.scale = (layer,), scale  # in a tuple, for its parameters are not this module's

    def forward(self, weight: Tensor) -> Tensor:
        (layer,) = self.owner
        a, b = layer.lora_A["start"].weight, layer.lora_B["start"].weight
        moved: Tensor = (weight - self.scale * b @ a).to(weight.dtype)
        return moved
