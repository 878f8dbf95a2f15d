"""Linear layers in eight bits by torchao: which layers of a network, and what the machine must have."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Container, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

from gen.config.errors import MissingDependency, UserError

__all__ = ["block_linears", "float8_obstacle", "to_float8", "torchao"]

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
        text = f"eight bits need torchao ({error}): pip install 'gen-diffusion[quantized]'"
        raise MissingDependency(text) from None
    finally:
        logging.disable(before)


def to_float8(nets: Iterable[nn.Module], device: torch.device) -> None:
    """Have the layers of `block_linears` multiply in float8 in training, forward and backward.

    Weights, activations and their gradients are rounded to e4m3 and e5m2 with one scale per tensor, from its own
    largest number (Micikevicius et al. 2022); parameters and sums stay as they are, and nothing is added to the state.

    Args:
        nets: changed in place; their parameters are the same objects.
        device: of the networks; where it has no such products they are emulated, slowly.

    Raises:
        UserError: for a network without such layers, and for one that is the gradient of its potential.
    """
    library: Any = torchao("float8")
    config = library.Float8LinearConfig(emulate=float8_obstacle(device) is not None, pad_inner_dim=True)
    for net in nets:
        if any(hasattr(module, "potential") for module in net.modules()):
            raise UserError(f"precision fp8 has no second derivative, and {type(net).__name__} is a gradient itself")
        chosen = partial(_named, block_linears(net))
        library.convert_to_float8_training(net, config=config, module_filter_fn=chosen)


def _named(names: Container[str], module: nn.Module, name: str) -> bool:
    return name in names
