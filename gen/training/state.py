"""The training state as named tensors: weights, averages and optimiser state, gathered for a checkpoint and restored.

nets: the networks by role. averages: their averages by (role, label). optims: the optimisers by role.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gen.config import checkpoints
from gen.config.spec import Json
from gen.training.distributed import distribute_like, full_tensor
from gen.training.optimiser_state import dump, load

__all__ = ["enable_fused", "optimiser_files", "restore", "trainable_parameters", "weight_files"]

Nets = Mapping[str, nn.Module]
Averages = Mapping[tuple[str, str], nn.Module]
Optims = Mapping[str, torch.optim.Optimizer]
Files = dict[str, dict[str, Tensor]]


def trainable_parameters(net: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters an optimiser updates, by name.

    Args:
        net: the network; frozen parameters are left out.
    """
    return {name: p for name, p in net.named_parameters() if p.requires_grad}


def enable_fused(net: nn.Module) -> int:
    """Make every module that can compute in fused operations do so (gen.models.layers.block).

    Args:
        net: changed in place.

    Returns:
        How many of its modules can.
    """
    modules: list[Any] = [module for module in net.modules() if hasattr(module, "fused")]
    for module in modules:
        module.fused = True
    return len(modules)


def weight_files(nets: Nets, averages: Averages, keep: bool = True) -> Files:
    """Collect net.safetensors and net-ema.safetensors of every role and average; every process has to call at once.

    Args:
        nets, averages: see the module.
        keep: false in processes that do not write: they only take part in gathering.

    Returns:
        Tensors by file name and name; of sharded ones the whole, on the CPU.
    """
    files = {f"{role}.safetensors": _gather(net.state_dict(), keep) for role, net in nets.items()}
    return files | {
        f"{role}-{label}.safetensors": _gather(net.state_dict(), keep) for (role, label), net in averages.items()
    }


def optimiser_files(nets: Nets, optims: Optims, keep: bool = True) -> tuple[Files, Json]:
    """Collect state/net.safetensors of every role, with keys such as "blocks.0.attn.qkv.weight/exp_avg".

    Args:
        nets, optims: see the module.
        keep: as of `weight_files`.

    Returns:
        Tensors by file name and name; and by role what else the optimisers know, for the manifest.
    """
    dumped = {role: dump(optim, _names(nets[role])) for role, optim in optims.items()}
    files = {f"state/{role}.safetensors": _gather(tensors, keep) for role, (_, tensors) in dumped.items()}
    return files, {role: values for role, (values, _) in dumped.items()}


def _names(net: nn.Module) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in trainable_parameters(net).items()}


def _gather(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Gather sharded tensors one by one, in all processes; return the full ones, or nothing."""
    gathered = {}
    for name, tensor in tensors.items():
        full = full_tensor(tensor)
        if keep:
            gathered[name] = full if full is tensor else full.cpu()
    return gathered


def restore(folder: Path, manifest: Json, nets: Nets, averages: Averages, optims: Optims) -> None:
    """Load weights, averages and optimiser state of a checkpoint, in place.

    Args:
        folder: the checkpoint.
        manifest: what gen.config.checkpoints.read returned of it.
        nets, averages, optims: see the module; the optimisers have made no step yet.
    """
    for role, net in nets.items():
        _load(net, checkpoints.read_tensors(folder, f"{role}.safetensors", manifest))
        if role not in optims:
            continue
        saved = checkpoints.read_tensors(folder, f"state/{role}.safetensors", manifest)
        parameters = trainable_parameters(net)
        owners = {key: parameters[key.partition("/")[0]] for key in saved if key.partition("/")[0] in parameters}
        shaped = {key: owner for key, owner in owners.items() if owner.shape == saved[key].shape}
        load(optims[role], _names(net), manifest["optim"][role], distribute_like(saved, shaped))
    for (role, label), net in averages.items():
        _load(net, checkpoints.read_tensors(folder, f"{role}-{label}.safetensors", manifest))


def _load(net: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    net.load_state_dict(distribute_like(tensors, net.state_dict()))
