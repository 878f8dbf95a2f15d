"""Linear layers in eight bits by torchao: which layers of a network, and what the machine must have."""

from __future__ import annotations

import importlib
import logging
from typing import Any

import torch
from torch import nn

from gen.config.errors import MissingDependency, UserError

__all__ = ["block_linears", "float8_obstacle", "torchao"]

# Layers that see the condition, once a sample: little work, and all tokens depend on them.
CONDITIONING = ("adaLN", "emb", "norm", "time_", "modulation")


def block_linears(net: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear layers that may compute in eight bits, by name: those of a network's blocks.

    These are the plain nn.Linear inside an nn.ModuleList whose two sizes are multiples of 16, as tensor cores need
    them. Not among them are the first and the last layer of a network, embedders, modulations and other layers that
    see the condition alone, and subclasses of nn.Linear, which have a formula of their own.

    Args:
        net: any network.

    Raises:
        UserError: if there is none.
    """
    lists = tuple(f"{name}." for name, module in net.named_modules() if isinstance(module, nn.ModuleList))
    layers = {
        name: module
        for name, module in net.named_modules()
        if type(module) is nn.Linear
        and name.startswith(lists)
        and not any(part.startswith(CONDITIONING) for part in name.split("."))
        and module.in_features % 16 == module.out_features % 16 == 0
    }
    if not layers:
        kind = type(net).__name__
        raise UserError(f"{kind} has no linear layers in its blocks whose sizes are multiples of 16: none for 8 bits")
    return layers


def float8_obstacle(device: torch.device | str) -> str | None:
    """Return why a device has no products in float8, or None.

    Args:
        device: NVIDIA's of compute capability 8.9 (Ada, Hopper and later) have them.
    """
    device = torch.device(device)
    if device.type != "cuda":
        return f"products in float8 need a GPU of compute capability 8.9 or more, and the device is {device.type}"
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) >= (8, 9):
        return None
    return f"products in float8 need a GPU of compute capability 8.9 or more; this one has {major}.{minor}"


def torchao(module: str) -> Any:
    """Import a module of torchao without what it logs about libraries for other machines.

    Args:
        module: such as "quantization".

    Raises:
        MissingDependency: where it is not installed, or does not fit PyTorch.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        return importlib.import_module(f"torchao.{module}")
    except (ImportError, AttributeError, RuntimeError) as error:
        text = f"eight bits need torchao ({error}): pip install 'gen[quantized]'"
        raise MissingDependency(text) from None
    finally:
        logging.disable(before)
