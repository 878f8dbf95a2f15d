"""The training state as named tensors: weights, averages and optimiser state, of a checkpoint and restored from it.

nets: the networks by role. averages: their averages by (role, label). optims: the optimisers by role.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.spec import Json
from gen.diffusion.net import members
from gen.training.data_start import Losses
from gen.training.lora import adapted, adapter_tensors
from gen.training.optimiser_state import dump, load
from gen.training.run import Run
from gen.training.shards import Files, from_rows, rows_of

__all__ = [
    "build_network",
    "enable",
    "enable_blocks",
    "optimiser_files",
    "restore",
    "store_null_text",
    "trainable_parameters",
    "weight_files",
]

Switch = Literal["fused", "gradient_checkpointing"]
SWITCHES: tuple[Switch, ...] = ("fused", "gradient_checkpointing")
Nets = Mapping[str, nn.Module]
Averages = Mapping[tuple[str, str], nn.Module]
Optims = Mapping[str, torch.optim.Optimizer]


def trainable_parameters(net: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters an optimiser updates, by name.

    Args:
        net: the network; frozen parameters are left out.
    """
    return {name: p for name, p in net.named_parameters() if p.requires_grad}


def build_network(run: Run, device: torch.device | str = "cpu") -> nn.Module:
    """Return the fresh network of a run, which knows the embedding of no caption where its data store one.

    Args:
        run: its model and its data. With adapters of a network that was given as an object, that object's weights are
            shared.
        device: that a pipeline of diffusers is moved to first, whose weights network, teacher and data share.
    """
    if hasattr(run.model, "to"):
        run.model.to(device)
    net: nn.Module = run.model.build() if run.given_base is None else run.model.frozen()
    store_null_text(run, net)
    return net


def store_null_text(run: Run, net: nn.Module) -> None:
    """Have a network keep the embedding of no caption that a run's data have stored, if they have one.

    Args:
        run: its data.
        net: changed in place.
    """
    keep = members(net).store_null_text
    if keep is not None and getattr(run.data, "text_fields", {}).get("null_text") == "stored":
        null = getattr(run.data, "null_text", {})
        keep(null["text"], null["text_mask"], null.get("pooled"))


def enable(net: nn.Module, switch: Switch) -> bool:
    """Set an attribute of every module that has it.

    Args:
        net: changed in place.
        switch: "fused" to compute in fused operations (gen.models.layers.block), "gradient_checkpointing" to compute
            the inner values of blocks again in the backward pass (gen.models.layers.recompute).

    Returns:
        Whether there is any; False for gradient checkpointing of a network that is the gradient of its potential, whose
        attention computes otherwise in the forward pass.
    """
    modules = [module for module in net.modules() if hasattr(module, switch)]
    if switch == "gradient_checkpointing" and any(hasattr(module, "potential") for module in net.modules()):
        return False
    for module in net.modules():
        own: Callable[[], None] | None = getattr(module, f"enable_{switch}", None)  # of a network of diffusers
        if own is not None:
            own()
    for module in modules:
        setattr(module, switch, True)
    return bool(modules)


def enable_blocks(run: Run, net: nn.Module, losses: Losses = ()) -> None:
    """Set what a run asks of its network's blocks, see `enable`, and give them its adapters.

    Args:
        run: with `fused`, `gradient_checkpointing` and `lora`.
        net: changed in place.
        losses: as of gen.training.lora.adapted.

    Raises:
        UserError: if it has no such blocks.
    """
    for switch in SWITCHES:
        if getattr(run, switch) and not enable(net, switch):
            model = type(run.model).__name__
            raise UserError(f"{switch} = true, but {model} has no blocks that can do it: leave it out")
    adapted(net, run.lora, losses)


def weight_files(nets: Nets, averages: Averages) -> Files:
    """Return the tensors of net.safetensors and net-ema.safetensors, of every role and average, by file name and name.

    Args:
        nets, averages: see the module.
    """
    files = {f"{role}.safetensors": _stored(net) for role, net in nets.items()}
    return files | {f"{role}-{label}.safetensors": _stored(net) for (role, label), net in averages.items()}


def _stored(net: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a network that a checkpoint holds: of one with run.lora its adapters alone."""
    tensors = net.state_dict()
    return adapter_tensors(tensors) if getattr(net, "adapted", False) else tensors


def _load(net: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load what `_stored` returned; RuntimeError for other tensors."""
    wanted = _stored(net).keys()
    if wanted != tensors.keys():
        raise RuntimeError(f"a checkpoint of {len(tensors)} tensors for a network of {len(wanted)}")
    net.load_state_dict(tensors, strict=not getattr(net, "adapted", False))


def optimiser_files(nets: Nets, optims: Optims) -> tuple[Files, Json]:
    """Return the tensors of state/net.safetensors of every role, with keys like "blocks.0.attn.qkv.weight/exp_avg".

    Args:
        nets, optims: see the module.

    Returns:
        Tensors by file name and name; and by role what else the optimisers know, for the manifest.
    """
    dumped = {role: dump(optim, _names(nets[role])) for role, optim in optims.items()}
    files = {f"state/{role}.safetensors": tensors for role, (_, tensors) in dumped.items()}
    return files, {role: values for role, (values, _) in dumped.items()}


def _names(net: nn.Module) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in trainable_parameters(net).items()}


def restore(folder: Path, manifest: Json, nets: Nets, averages: Averages, optims: Optims, within: str = "") -> None:
    """Load weights, averages and optimiser state of a checkpoint, in place.

    Args:
        folder: the checkpoint.
        manifest: what gen.config.checkpoints.read returned of it.
        nets, averages, optims: see the module; the optimisers have made no step yet.
        within: what the names of the files begin with.
    """
    for role, net in nets.items():
        _load(net, _read(folder, f"{within}{role}.safetensors", manifest, net.state_dict()))
        if role in optims:
            saved = _read(folder, f"{within}state/{role}.safetensors", manifest, trainable_parameters(net))
            load(optims[role], _names(net), manifest["optim"][role], saved)
    for (role, label), net in averages.items():
        _load(net, _read(folder, f"{within}{role}-{label}.safetensors", manifest, net.state_dict()))


def _read(folder: Path, name: str, manifest: Json, owners: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read tensors, or what this process has of them: those of an owner's shape are sharded as it is."""
    sharded: dict[str, Tensor] = {}

    def rows(key: str, shape: tuple[int, ...]) -> range | None:
        owner = owners.get(key.partition("/")[0])
        if owner is None or tuple(owner.shape) != shape or rows_of(owner) is None:
            return None
        sharded[key] = owner
        return rows_of(owner)

    tensors = checkpoints.read_tensors(folder, name, manifest, rows=rows)
    return {key: from_rows(tensor, sharded[key]) if key in sharded else tensor for key, tensor in tensors.items()}
