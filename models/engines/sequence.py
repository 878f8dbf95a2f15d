"""One sample's tokens shared out over several processes, for sequences that are too long or too slow for one."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.diffusion.denoiser import Cond
from gen.diffusion.net import sides
from gen.diffusion.tap import Tap
from gen.kernels.sequence_parallel import (
    Traffic,
    gather_tokens,
    local_tokens,
    process_grid,
    ring_attention,
    ulysses_attention,
    usp_attention,
)
from gen.models.dit import DiTNet
from gen.models.engines.lib.trunk import trunk_in_parts
from gen.models.layers.attention import Attention
from gen.models.layers.wrapper import Wrapper
from gen.models.lightning_dit import LightningDiTNet

__all__ = ["Sequence", "SequenceParallelNet"]

FAMILIES = {DiTNet: "dit", LightningDiTNet: "lightning_dit"}
METHODS: dict[str, Callable[..., Tensor]] = {"ulysses": ulysses_attention, "ring": ring_attention, "usp": usp_attention}


@dataclass(frozen=True)
class Sequence:
    """A DiT or LightningDiT of whose tokens each process of torch.distributed's default group computes an equal part.

    Every process has the whole network, calls it with the same x at the same moment, and gets the whole output.

    Attributes:
        method: how tokens attend across processes (gen.kernels.sequence_parallel): "ulysses" exchanges heads, whose
            number the processes must divide; "ring" passes keys and values on, whatever the heads, in more bytes, and
            while it computes; "usp" is a ring of groups that exchange heads.
        ulysses: processes of such a group, whose number divides that of the processes, and of heads; of "usp" alone.
    """

    collective = True  # so samples are not shared out between the processes

    method: Literal["ulysses", "ring", "usp"] = "ulysses"
    ulysses: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, ulysses="[1, inf)")
        if (self.ulysses is None) == (self.method == "usp"):
            raise UserError(
                f"Sequence: ulysses = {self.ulysses} with method {self.method}; usp needs it, no other has it"
            )

    def prepare(self, net: nn.Module, device: torch.device | str = "cpu") -> SequenceParallelNet:
        """Return a copy of the network; UserError where it does not divide, and where there is one process."""
        if type(net) not in FAMILIES:
            allowed = ", ".join(FAMILIES.values())
            raise UserError(f"the engine 'sequence' shares out tokens of {allowed}, not of {type(net).__name__}")
        if not dist.is_initialized():
            raise UserError("the engine 'sequence' needs processes: start them with torchrun and init_process_group")
        spec: Any = net.spec
        count, tokens = dist.get_world_size(), math.prod(side // spec.patch for side in sides(spec))
        if tokens % count:
            raise UserError(f"the engine 'sequence': {tokens} tokens do not divide over {count} processes")
        row = {"ulysses": count, "ring": 1, "usp": self.ulysses or 1}[self.method]
        if count % row:
            raise UserError(f"the engine 'sequence': {count} processes do not form groups of ulysses = {row}")
        if spec.heads % row:
            raise UserError(
                f"the engine 'sequence': {spec.heads} heads do not divide over {row} processes; use method ring"
            )
        return SequenceParallelNet(net, self).to(device)


class SequenceParallelNet(Wrapper):
    """A copy of a network, called like it. Inside "trunk" the sites of a tap see this process's tokens.

    It can be trained: where all processes have the same loss, the gradient of it is the mean of theirs, which is what
    DistributedDataParallel leaves.

    Attributes:
        traffic: what this process has sent.
        about: method and number of processes, in words.
    """

    fixed_batch = splits_samples = True

    def __init__(self, net: nn.Module, engine: Sequence):
        super().__init__(net.spec)
        self.inner, self.traffic = copy.deepcopy(net), Traffic()
        grid = f" of groups of {engine.ulysses}" if engine.ulysses else ""
        self.about = f"sequence ({engine.method}{grid}, {dist.get_world_size()} processes)"
        attend = partial(METHODS[engine.method], traffic=self.traffic)
        if engine.ulysses:
            attend = partial(attend, grid=process_grid(engine.ulysses))
        for module in self.inner.modules():
            if isinstance(module, Attention):
                module.attend = attend

    def forward(self, x: Tensor, t: Tensor, cond: Cond, *, s: Tensor | None = None, tap: Tap | None = None) -> Tensor:
        gather = partial(gather_tokens, traffic=self.traffic)
        return self.inner(x, t, cond, s=s, tap=trunk_in_parts(tap, local_tokens, gather))
