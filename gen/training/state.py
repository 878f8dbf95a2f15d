"""What a training has to remember: weights, averages and optimiser state, as named tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gen.config import checkpoints
from gen.training.distributed import parted, whole

__all__ = ["fuse", "optimisers", "trained", "unpack", "weights"]

Nets = Mapping[str, nn.Module]  # by role
Averages = Mapping[tuple[str, str], nn.Module]  # by role and label
Files = dict[str, dict[str, Tensor]]


def trained(net: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters an optimiser sees, by name."""
    return {name: p for name, p in net.named_parameters() if p.requires_grad}


def fuse(net: nn.Module) -> int:
    """Tells every module that can take its halves in fused operations to do so (gen.models.layers.block); how many."""
    able = [module for module in net.modules() if hasattr(module, "fused")]
    for module in able:
        module.fused = True  # type: ignore[assignment]
    return len(able)


def weights(nets: Nets, averages: Averages, keep: bool = True) -> Files:
    """net.safetensors and net-ema.safetensors, for every role and average; see `_gathered`."""
    files = {f"{role}.safetensors": _gathered(net.state_dict(), keep) for role, net in nets.items()}
    return files | {
        f"{role}-{label}.safetensors": _gathered(net.state_dict(), keep) for (role, label), net in averages.items()
    }


def optimisers(nets: Nets, optims: Mapping[str, Any], keep: bool = True) -> Files:
    """state/net.safetensors: "blocks.0.attn.qkv.weight/exp_avg", for every role; see `_gathered`."""
    return {
        f"state/{role}.safetensors": _gathered(
            {
                f"{name}/{key}": value if isinstance(value, Tensor) else torch.tensor(value)
                for name, parameter in trained(nets[role]).items()
                for key, value in optim.state.get(parameter, {}).items()
            },
            keep,
        )
        for role, optim in optims.items()
    }


def _gathered(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """The same tensors, whole, or nothing if they are not to be kept.

    Of tensors in parts each is gathered by itself, in all processes, and kept in the memory of the CPU.
    """
    found = {}
    for name, tensor in tensors.items():
        one = whole(tensor)
        if keep:
            found[name] = one if one is tensor else one.cpu()
    return found


def unpack(place: Path, info: Mapping[str, Any], nets: Nets, averages: Averages, optims: Mapping[str, Any]) -> None:
    """Everything back where it was, from a checkpoint and its manifest."""
    for role, net in nets.items():
        _load(net, checkpoints.read_tensors(place, f"{role}.safetensors", info))
        if role not in optims:
            continue
        saved = checkpoints.read_tensors(place, f"state/{role}.safetensors", info)
        for name, parameter in trained(net).items():
            mine = {key.rpartition("/")[2]: value for key, value in saved.items() if key.rpartition("/")[0] == name}
            placed = {key: value if key == "step" else value.to(parameter.device) for key, value in mine.items()}
            shaped = {key: parameter for key, value in placed.items() if value.shape == parameter.shape}
            optims[role].state[parameter] = parted(placed, shaped)
    for (role, label), net in averages.items():
        _load(net, checkpoints.read_tensors(place, f"{role}-{label}.safetensors", info))


def _load(net: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    net.load_state_dict(parted(tensors, net.state_dict()))
