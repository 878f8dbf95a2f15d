"""Placement of a text model's weights: on one device, over processes, or spread over devices and the disk."""

from __future__ import annotations

import atexit
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.spec import Json
from gen.config.tensor_files import DTYPES
from gen.diffusion.dtypes import weight_converter

__all__ = ["DeviceMap", "OneDevice", "Placement", "TensorParallel", "choose_placement", "read_network"]


class Placement(Protocol):
    """Weights on their way from a file to where they are used, one tensor at a time."""

    device: str | torch.device

    def keep(self, name: str, tensor: Tensor) -> Tensor:
        """Return what is kept of a tensor.

        Args:
            name: of the weight.
            tensor: all of it, on the CPU, in the dtype that it is kept in.
        """
        ...

    def finish(self, net: nn.Module) -> nn.Module:
        """Return the network, ready for `device`.

        Args:
            net: with the weights that were kept.
        """
        ...


def choose_placement(
    net: Any, file: Path, device: str | torch.device, tensor_parallel: int | None, max_memory: Mapping[str, Any] | None
) -> Placement:
    """Return the placement that the options of gen.load name.

    Args:
        net: the network, on the meta device; it is changed where it is to be shared out.
        file: of its weights.
        device: of the network, for one that is not spread.
        tensor_parallel, max_memory: see gen.load.
    """
    if tensor_parallel is None and max_memory is None:
        return OneDevice(device)
    if tensor_parallel is not None and max_memory is not None:
        raise UserError("tensor_parallel and max_memory are given; give one")
    if not getattr(net, "shareable", False):
        option = "max_memory" if tensor_parallel is None else "tensor_parallel"
        raise UserError(f"{option} is for networks of gen.models.text, not for {type(net).__name__}")
    if tensor_parallel is None:
        return DeviceMap(net, file, max_memory or {})
    return TensorParallel(net, tensor_parallel, device)


def read_network(
    net: nn.Module, checkpoint: Path, file: str, info: Json, dtype: torch.dtype | str | None, placement: Placement
) -> nn.Module:
    """Return a network with the weights of a file, in evaluation mode; one tensor at a time is there twice.

    Args:
        net: the network, its weights on the meta device.
        checkpoint: its folder.
        file: name of the file, verified against the manifest.
        info: the manifest.
        dtype: see gen.load.
        placement: where the weights are to lie.
    """
    convert = weight_converter(net, dtype)
    tensors = checkpoints.read_tensors(
        checkpoint, file, info, lambda name, tensor: placement.keep(name, convert(name, tensor))
    )
    try:
        net.load_state_dict(tensors, assign=True)
    except RuntimeError as error:  # its message has a line for every tensor
        why = " ".join(str(error).split())[:200]
        raise UserError(f"{checkpoint}/{file} does not hold the weights of its model: {why}") from None
    return placement.finish(net.eval().requires_grad_(False))


class OneDevice:
    """All weights on one device."""

    def __init__(self, device: str | torch.device):
        self.device = device

    def keep(self, name: str, tensor: Tensor) -> Tensor:
        return tensor

    def finish(self, net: nn.Module) -> nn.Module:
        return net.to(self.device)


class TensorParallel:
    """Each process has its part of the weights, and reads the file for itself; one tensor is whole at a time."""

    def __init__(self, net: Any, count: int, device: str | torch.device):
        from torch.distributed.device_mesh import init_device_mesh

        from gen.training.distributed import PATIENCE, processes, shutdown  # which imports gen.text

        launched = processes()[1]
        if launched != count or count < 2:
            raise UserError(
                f"tensor_parallel {count}, and {launched} processes: start as many, two or more, as in "
                "torchrun --nproc-per-node 2 -m gen decode RUN --tensor-parallel 2"
            )
        kind = torch.device(device)
        if kind.type == "cuda" and kind.index is None:
            kind = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(kind)
        self.device: str | torch.device = kind
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("nccl" if kind.type == "cuda" else "gloo", timeout=PATIENCE)
            atexit.register(shutdown)
        net.parallelize(init_device_mesh(kind.type, (count,)))
        self.wanted = net.state_dict()

    def keep(self, name: str, tensor: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor, distribute_tensor

        like = self.wanted.get(name)
        if not isinstance(like, DTensor) or like.shape != tensor.shape:  # which load_state_dict refuses
            return tensor
        mesh, placements = like.device_mesh, like.placements
        part = distribute_tensor(tensor, mesh, placements, src_data_rank=None).to_local().clone()
        return DTensor.from_local(part, mesh, placements, run_check=False, shape=like.shape, stride=like.stride())

    def finish(self, net: nn.Module) -> nn.Module:
        return net.to(self.device)


class DeviceMap:
    """Whole blocks on GPUs, on the CPU, or left in their file, from which they are read whenever they compute.

    accelerate's hooks bring them to where they are computed. Blocks go to devices in order, as far as memory allows.

    Attributes:
        devices: "disk", "cpu" or a GPU's number by module, as accelerate calls its device_map.
    """

    def __init__(self, net: Any, file: Path, max_memory: Mapping[str, Any]):
        from accelerate import infer_auto_device_map
        from safetensors import safe_open

        if not file.is_file():
            raise UserError(f"max_memory: {file} lies in shards of several processes; allowed: a whole file")
        with safe_open(file, "pt") as content:
            kinds = {name: DTYPES[content.get_slice(name).get_dtype()] for name in content.keys()}  # noqa: SIM118
        sizes = {name: value.to(kinds.get(name, value.dtype)) for name, value in net.state_dict().items()}
        net.load_state_dict(sizes, assign=True)
        limits: Any = {int(key) if str(key).isdigit() else key: value for key, value in max_memory.items()}
        try:
            self.devices: dict[str, Any] = infer_auto_device_map(
                net, limits or None, no_split_module_classes=[type(net.blocks[0]).__name__]
            )
        except (ValueError, KeyError) as error:
            raise UserError(f"max_memory = {dict(max_memory)}: {' '.join(str(error).split())}") from None
        self.device = self._of("embed.weight")
        if self.device == "disk":
            raise UserError(f"max_memory = {dict(max_memory)}: the table of tokens needs memory, and does not fit")
        if len(gpus := {device for device in self.devices.values() if isinstance(device, int)}) > 1:
            raise UserError(f"max_memory = {dict(max_memory)}: one GPU computes, not {len(gpus)}; see tensor_parallel")
        if isinstance(self.device, int):
            self.device = f"cuda:{self.device}"
        self.file, self.kinds, self.buffers = file, kinds, {name for name, _ in net.named_buffers()}

    def _of(self, name: str) -> Any:
        parts = name.split(".")
        return next(
            self.devices[key] for i in range(len(parts), -1, -1) if (key := ".".join(parts[:i])) in self.devices
        )

    def keep(self, name: str, tensor: Tensor) -> Tensor:
        device = self.device if name in self.buffers else self._of(name)
        if device == "disk" and name in self.kinds and tensor.dtype != self.kinds[name]:
            raise UserError(f"max_memory: what is left in its file stays {self.kinds[name]}; give no other dtype")
        if device == "disk":
            device = "meta"
        return tensor.to(device)

    def finish(self, net: nn.Module) -> nn.Module:
        from accelerate import dispatch_model

        index = {
            name: {"safetensors_file": str(self.file), "weight_name": name}
            for name, _ in net.named_parameters() if self._of(name) == "disk"
        }  # fmt: skip
        spread: nn.Module = dispatch_model(net, self.devices, self.device, offload_index=index or None)
        return spread
