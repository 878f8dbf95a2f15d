"""What a training has to remember: weights, averages and optimiser state, as named tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gen import manifest as checkpoints

__all__ = ["optimisers", "trained", "unpack", "weights"]

Nets = Mapping[str, nn.Module]  # by role
Averages = Mapping[tuple[str, str], nn.Module]  # by role and label
Files = dict[str, dict[str, Tensor]]


def trained(net: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters an optimiser sees, by name."""
    return {name: p for name, p in net.named_parameters() if p.requires_grad}


def weights(nets: Nets, averages: Averages) -> Files:
    """net.safetensors and net-ema.safetensors, for every role and average."""
    files = {f"{role}.safetensors": dict(net.state_dict()) for role, net in nets.items()}
    return files | {f"{role}-{label}.safetensors": dict(net.state_dict()) for (role, label), net in averages.items()}


def optimisers(nets: Nets, optims: Mapping[str, Any]) -> Files:
    """state/net.safetensors: "blocks.0.attn.qkv.weight/exp_avg", for every role."""
    return {
        f"state/{role}.safetensors": {
            f"{name}/{key}": value if isinstance(value, Tensor) else torch.tensor(value)
            for name, parameter in trained(nets[role]).items()
            for key, value in optim.state.get(parameter, {}).items()
        }
        for role, optim in optims.items()
    }


def unpack(place: Path, info: Mapping[str, Any], nets: Nets, averages: Averages, optims: Mapping[str, Any]) -> None:
    """Everything back where it was, from a checkpoint and its manifest."""
    for role, net in nets.items():
        net.load_state_dict(checkpoints.read_tensors(place, f"{role}.safetensors", info))
        if role not in optims:
            continue
        saved = checkpoints.read_tensors(place, f"state/{role}.safetensors", info)
        for name, parameter in trained(net).items():
            mine = {key.rpartition("/")[2]: value for key, value in saved.items() if key.rpartition("/")[0] == name}
            optims[role].state[parameter] = {
                key: value if key == "step" else value.to(parameter.device) for key, value in mine.items()
            }
    for (role, label), net in averages.items():
        net.load_state_dict(checkpoints.read_tensors(place, f"{role}-{label}.safetensors", info))
