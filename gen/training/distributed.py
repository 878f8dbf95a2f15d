"""Training on several processes: starting accelerate, and sharding networks with torch's FSDP2.

accelerate starts the processes and averages their gradients. Its own way to FSDP2 is not taken: version 1.15 silently
leaves a run on CPUs unsharded, shards no network without an optimiser (an average, a target), and gives a resumed
optimiser new parameters but not their state. So networks are sharded here, by torch's fully_shard, before there are
optimisers, on any device; accelerate does the rest.
"""

from __future__ import annotations

import atexit
import copy
import os
import time
import warnings
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from gen.config.devices import is_accelerated
from gen.config.errors import UserError
from gen.training.low_precision import float8_obstacle, torchao
from gen.training.run import Run

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # with which processes wait for each other: a launcher ends them all if one fails

__all__ = [
    "background_group", "broadcast", "create_accelerator", "device_mesh", "exchange", "full_tensor", "gather",
    "is_main", "meta_copy", "processes", "shard", "share", "shutdown", "unshard",
]  # fmt: skip


def create_accelerator(run: Run, folder: Path) -> Accelerator:
    """Create accelerate's Accelerator for a run, on CPUs if the machine has no accelerator that gen computes on.

    Args:
        run: its precision and trackers are taken.
        folder: where trackers write.

    Raises:
        UserError: for fp16 on a CPU and fp8 on a device without it, or if accelerate sees another number of processes
            than were launched.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import patch_environment

    AcceleratorState._reset_state()  # else a second run in this process could not choose its own precision
    with patch_environment(ACCELERATE_USE_FSDP="false"):
        accelerator = Accelerator(
            cpu=not is_accelerated(),
            mixed_precision="bf16" if run.precision == "fp8" else run.precision,
            log_with=list(run.trackers) or None,
            project_dir=str(folder) if run.trackers else None,
        )
    if run.precision == "fp16" and accelerator.device.type == "cpu":
        raise UserError("precision fp16 needs a GPU; on this machine allowed: no, bf16")
    if run.precision == "fp8":
        if (obstacle := float8_obstacle(accelerator.device)) is not None:
            raise UserError(f"precision fp8: {obstacle}; allowed: no, bf16")
        torchao("float8")
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:  # each of them would train alone, in the same folder
        seen = f"accelerate sees {accelerator.num_processes} on {accelerator.device}"
        raise UserError(f"{launched} processes were launched, and {seen}")
    if launched > 1:
        atexit.register(shutdown)
    return accelerator


def shutdown() -> None:
    """Destroy the process group and give its threads a moment to end.

    A gloo thread that frees its last tensor needs Python; if the interpreter is already exiting, it aborts the process.
    No call waits for those threads, hence the sleep.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        time.sleep(0.1)


def is_main() -> bool:
    """Return whether this is the first, or the only, of the processes that a launcher started."""
    return processes()[0] == 0


def share(n: int, collective: bool = False) -> range:
    """Return the indices, of n, that are this process's to compute; those of all processes in order are range(n).

    Args:
        n: number of samples; UserError for fewer than processes.
        collective: True if the processes compute each sample together (the engine "sequence"): all are everyone's.
    """
    rank, world = (0, 1) if collective else processes()
    if n < world:
        raise UserError(f"{n} samples for {world} processes: start fewer, or ask for more")
    return range(n * rank // world, n * (rank + 1) // world)


def gather(value: T, collective: bool = False) -> list[T]:
    """Return the values of all processes in order, on the first one; [] on the others, and [value] for one process.

    Args:
        value: this process's; all of them have to call.
        collective: True if it is the same in all of them: each returns its own.
    """
    rank, world = (0, 1) if collective else _join()
    if world == 1:
        return [value]
    values: list[Any] = [None] * world
    torch.distributed.gather_object(value, values if rank == 0 else None)
    return values if rank == 0 else []


def broadcast(value: T, collective: bool = False, group: ProcessGroup | None = None) -> T:
    """Return the first process's value on every process.

    Args:
        value: the first process's; of the others it is ignored.
        collective: True if every process has it.
        group: of all processes, through which it goes; None for the one that they start with.
    """
    if collective or _join()[1] == 1:
        return value
    values = [value]
    torch.distributed.broadcast_object_list(values, group=group)
    return values[0]


def exchange(mine: Mapping[int, T], group: ProcessGroup | None = None) -> list[T]:
    """Return the values of all processes in the order of their numbers, on every one of them; all have to call.

    Args:
        mine: this process's values, by numbers that no other process has.
        group: as of `broadcast`.
    """
    world = _join()[1]
    parts: list[Any] = [mine] * world
    if world > 1:
        torch.distributed.all_gather_object(parts, dict(mine), group=group)
    whole = {number: value for part in parts for number, value in part.items()}
    return [whole[number] for number in sorted(whole)]


def processes() -> tuple[int, int]:
    """Return this process's rank, and the number of processes that a launcher started."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def _join() -> tuple[int, int]:
    """The same, after the processes have met."""
    rank, world = processes()
    if world > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", timeout=PATIENCE)
        atexit.register(shutdown)
    return rank, world


def background_group() -> ProcessGroup | None:
    """Return a group of all processes for a thread beside the training, whose messages do not mix with its own.

    Every process has to call at once; None for one process.
    """
    return None if _join()[1] == 1 else torch.distributed.new_group(backend="gloo", timeout=PATIENCE)


def device_mesh(run: Run, accelerator: Accelerator) -> DeviceMesh | None:
    """Return the mesh of processes over which to shard, or None for one process or an unsharded run.

    Args:
        run: `run.shard` asks for sharding; so does `accelerate launch --use_fsdp`, through the environment.
        accelerator: the device type and the number of processes.

    Raises:
        UserError: for options of that launch that are not supported, and for a run that is also compiled or in fp8, or
            whose averages are to lie elsewhere, or whose processes step apart.
    """
    launched = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if launched:
        for name, allowed in {"FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "false"}.items():
            given = os.environ.get(name, allowed).lower()
            if given != allowed:
                raise UserError(f"accelerate launch --{name.lower()} {given}: allowed is {allowed}")
    if not (launched or run.shard) or accelerator.num_processes == 1:
        return None
    if run.outer is not None:
        raise UserError("a run is sharded, or its processes step apart: leave out outer, or shard and --use_fsdp")
    if run.ema_device is not None:
        raise UserError("averages of a sharded run are shards on its devices: leave out ema_device, or shard")
    if run.compile:
        raise UserError("a run is compiled or sharded, not both: leave out compile, or shard and --use_fsdp")
    if run.precision == "fp8":
        raise UserError("precision fp8 with shard has not been tried: leave out shard and --use_fsdp, or take bf16")
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(accelerator.device.type, (accelerator.num_processes,))


def shard(net: nn.Module, mesh: DeviceMesh) -> None:
    """Shard every parameter in place, one part per process; parts are gathered while the network runs.

    A transformer's blocks, those with `residuals` (gen.models.layers.block), are gathered one by one, then all the
    rest; other networks at once.

    Args:
        net: the network, the same in every process.
        mesh: of `device_mesh`.

    Raises:
        UserError: for a parameter that is a single number, which cannot be split, and for a network that is the
            gradient of its potential, since parameters are freed after the first of two derivatives.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for name, parameter in net.named_parameters():
        if parameter.ndim == 0:
            raise UserError(f"{type(net).__name__} cannot be sharded: {name} is a single number; leave out shard")
    if hasattr(net, "potential"):
        raise UserError(f"{type(net).__name__} cannot be sharded: it is itself a derivative; leave out shard")
    # Nothing here writes into a network's output, which is what it warns of.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
    for module in [*(m for m in net.modules() if hasattr(m, "residuals")), net]:
        if next(module.parameters(), None) is not None:
            # The root too: parameters() must be the shards at every moment between two calls.
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
            for method in ("residuals", "fused_forward"):  # how a block is called: gen.models.layers.block.run_block
                if module is not net and hasattr(module, method):
                    register_fsdp_forward_method(module, method)


def full_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor itself, or the gathered whole of a sharded one; then every process has to call at once.

    Args:
        tensor: a plain tensor or a DTensor.
    """
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def meta_copy(net: nn.Module) -> nn.Module:
    """Return a copy on the meta device, without data, from which `unshard` builds full networks.

    Args:
        net: a network that is not sharded yet.
    """
    return copy.deepcopy(net).to("meta")


@torch.no_grad()
def unshard(net: nn.Module, template: nn.Module) -> nn.Module:
    """Return a full copy of a sharded network in evaluation mode; every process has to call at once.

    Args:
        net: the sharded network.
        template: its `meta_copy` from before it was sharded.
    """
    device = next(t.device for t in (*net.parameters(), *net.buffers()))
    full = copy.deepcopy(template).to_empty(device=device)
    for ours, theirs in zip(_tensors(full), _tensors(net), strict=True):
        ours.copy_(full_tensor(theirs))
    return full.eval()


def _tensors(net: nn.Module) -> tuple[Tensor, ...]:
    return (*net.parameters(), *net.buffers())
