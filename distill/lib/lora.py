"""Low-rank adapters by peft: a copy of a network that learns by them, and their merging into the network."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from gen.config.errors import MissingDependency

__all__ = ["merge_adapters", "with_adapters"]


def with_adapters(net: nn.Module, rank: int, owner: str) -> nn.Module:
    """Return a copy of a network of which only adapters are trained, one beside every linear layer but the head.

    Hu et al. 2021, scale 1 (alpha = rank); at first it computes what the network computes.

    Args:
        net: the network.
        rank: of the adapters.
        owner: name of the distiller, for the message.

    Raises:
        MissingDependency: without peft.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise MissingDependency(f"{owner}: lora_rank = {rank} needs peft: pip install 'gen-diffusion[lora]'") from None

    names = [name for name, m in net.named_modules() if isinstance(m, nn.Linear) and name != "head"]
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=names)
    return inject_adapter_in_model(config, copy.deepcopy(net))


@torch.no_grad()
def merge_adapters(adapted: nn.Module, net: nn.Module) -> None:
    """Copy the weights of a network with adapters, the adapters added, into the network without.

    Args:
        adapted: what `with_adapters` returned.
        net: the network.
    """
    layers = dict(adapted.named_modules())
    for name, layer in net.named_modules():
        other: Any = layers[name]
        if isinstance(layer, nn.Linear) and hasattr(other, "get_delta_weight"):
            layer.weight.copy_(other.base_layer.weight + other.get_delta_weight("default"))
