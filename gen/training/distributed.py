"""Several processes as one training: how they find each other, and networks of which each process holds a part.

accelerate starts the processes and sums their gradients. Its own way to FSDP2 is not taken, since in version 1.15 it
leaves a run on CPUs unsharded without a word, shards no network without an optimiser (an average, a target), and gives
a resumed optimiser new parameters but not their state. So networks are cut here, by torch's fully_shard, before there
are optimisers, on any device; accelerate does the rest.
"""

from __future__ import annotations

import atexit
import copy
import os
import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.training.run import Run

__all__ = ["accelerator", "first", "leave", "outline", "parted", "plain", "shard", "shares", "whole"]


def accelerator(run: Run, folder: Path) -> Any:
    """accelerate's Accelerator: on CPUs if there is nothing else. UserError where it and the launcher disagree."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import patch_environment

    AcceleratorState._reset_state()  # else a second run in this process could not choose its own precision
    with patch_environment(ACCELERATE_USE_FSDP="false"):
        made = Accelerator(
            cpu=not torch.accelerator.is_available(),
            mixed_precision=run.precision,
            log_with=list(run.trackers) or None,
            project_dir=str(folder) if run.trackers else None,
        )
    if run.precision == "fp16" and made.device.type == "cpu":
        raise UserError("precision fp16 needs a GPU; on this machine allowed: no, bf16")
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != made.num_processes:  # each of them would train alone, in the same folder
        raise UserError(f"{started} processes were started, and accelerate sees {made.num_processes} on {made.device}")
    if started > 1:
        atexit.register(leave)
    return made


def leave() -> None:
    """Ends the connections, and lets their threads end what they are at.

    A thread of gloo's that gives back its last tensor needs Python; where Python is already leaving, it aborts the
    process. No call waits for those threads, so they are given a moment.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        time.sleep(0.1)


def first() -> bool:
    """Whether this is the first, or the only, of the processes that a launcher started."""
    return os.environ.get("RANK", "0") == "0"


def shares(run: Run, accelerator: Any) -> Any:
    """The mesh of processes over which to shard, or None: asked for by run.shard, or `accelerate launch --use_fsdp`.

    UserError for what that launch may ask for besides and cannot get.
    """
    launched = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if launched:
        for name, allowed in {"FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "false"}.items():
            given = os.environ.get(name, allowed).lower()
            if given != allowed:
                raise UserError(f"accelerate launch --{name.lower()} {given}: allowed is {allowed}")
    if not (launched or run.shard) or accelerator.num_processes == 1:
        return None
    if run.compile:
        raise UserError("a run is compiled or sharded, not both: leave out compile, or shard and --use_fsdp")
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(accelerator.device.type, (accelerator.num_processes,))


def shard(net: nn.Module, mesh: Any) -> None:
    """Cuts every parameter in parts, in place, one part to a process; they are gathered while the network runs.

    A transformer's blocks, which are those with `residuals` (gen.models.layers.block), are gathered one by one, then
    all the rest; other networks at once. UserError for a parameter that is a single number, which has no parts, and for
    a network that is the gradient of its potential, since parameters are let go of after the first of two derivatives.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for name, parameter in net.named_parameters():
        if parameter.ndim == 0:
            raise UserError(f"{type(net).__name__} cannot be sharded: {name} is a single number; leave out shard")
    if hasattr(net, "potential"):
        raise UserError(f"{type(net).__name__} cannot be sharded: it is itself a derivative; leave out shard")
    # Nothing here writes into a network's output, which is what it warns of.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
    for part in [*(module for module in net.modules() if hasattr(module, "residuals")), net]:
        if next(part.parameters(), None) is not None:
            # The root too: parameters() must be the parts at every moment between two calls.
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
            for method in ("residuals", "fused_forward"):  # how a block is called: gen.models.layers.block.run_block
                if part is not net and hasattr(part, method):
                    register_fsdp_forward_method(part, method)


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or all of one that is in parts; then every process has to ask at once."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def parted(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors, the same in every process, each in parts if its namesake in `like` is, and where that one is."""
    return {name: _parted(tensor, like[name]) if name in like else tensor for name, tensor in tensors.items()}


def _parted(tensor: Tensor, like: Any) -> Tensor:
    if not hasattr(like, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def outline(net: nn.Module) -> nn.Module:
    """A copy of a network without its numbers, from which `plain` makes whole ones after the network is sharded."""
    return copy.deepcopy(net).to("meta")


@torch.no_grad()
def plain(net: nn.Module, outline: nn.Module) -> nn.Module:
    """A copy of a sharded network that is whole, for evaluation; every process has to ask at once."""
    device = next(t.device for t in (*net.parameters(), *net.buffers()))
    made = copy.deepcopy(outline).to_empty(device=device)
    for ours, theirs in zip(_tensors(made), _tensors(net), strict=True):
        ours.copy_(whole(theirs))
    return made.eval()


def _tensors(net: nn.Module) -> Iterable[Tensor]:
    return (*net.parameters(), *net.buffers())
