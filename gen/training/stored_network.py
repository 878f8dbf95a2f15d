"""The network of a checkpoint, with its weights; of a run with adapters those of run.init and the adapters' sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.spec import Json
from gen.diffusion.net import empty_network
from gen.text.placement import OneDevice, Placement, choose_placement, read_network
from gen.training.lora import merged
from gen.training.run import Run
from gen.training.sources import network_hash, weights_hash

__all__ = ["stored_network"]


def stored_network(
    run: Run,
    checkpoint: Path,
    file: str,
    info: Json,
    dtype: torch.dtype | str | None,
    device: str | torch.device,
    tensor_parallel: int | None,
    max_memory: Mapping[str, Any] | None,
    allow: Sequence[str],
) -> tuple[nn.Module, str | torch.device]:
    """Return the network, in evaluation mode, and the device of what it is given.

    Args:
        run: the checkpoint's.
        checkpoint: its folder.
        file: name of the file of its weights.
        info: its manifest.
        dtype, device, tensor_parallel, max_memory, allow: as of gen.load.
    """
    placement: Placement
    if run.lora is None:
        net = empty_network(run.model, sum(about["bytes"] for about in checkpoints.files_of(info, file).values()))
        placement = choose_placement(net, checkpoint / file, device, tensor_parallel, max_memory)
        return read_network(net, checkpoint, file, info, dtype, placement), placement.device
    if tensor_parallel is not None or max_memory is not None:
        raise UserError(f"{checkpoint} has adapters, which one device adds up: give no tensor_parallel and max_memory")
    adapters, placement = checkpoints.read_tensors(checkpoint, file, info), OneDevice(device)
    return placement.finish(_with_adapters(run, info, adapters, dtype, allow)), device


def _with_adapters(
    run: Run, info: Json, adapters: Mapping[str, Tensor], dtype: torch.dtype | str | None, allow: Sequence[str]
) -> nn.Module:
    """Return the network of a run with adapters, added to the weights of run.init; UserError for others than those."""
    from gen.pipeline import load  # which imports this

    assert run.lora is not None
    if run.given_base is not None:
        if network_hash(run.given_base) != info["sources"]["model"]:
            raise UserError("the adapters belong to other weights than those of the network that was given")
        net = run.model.frozen()
        net.load_state_dict(merged(net.state_dict(), adapters, run.lora), assign=True)
        return net.eval().requires_grad_(False)
    if weights_hash(Path(str(run.init))) != info["sources"]["init"]:
        raise UserError(f"the adapters belong to other weights than those that {run.init} has now")
    base = load(str(run.init), dtype=dtype, allow=allow)
    tensors = (base.denoiser if hasattr(base, "denoiser") else base).net.state_dict()
    net = empty_network(run.model, sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()))
    net.load_state_dict(merged(tensors, adapters, run.lora), assign=True)
    return net.eval().requires_grad_(False)
