"""One sample's tokens shared out over several processes, for sequences that are too long, or too slow, for one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.diffusion.tap import Tap, call_site
from gen.kernels.sequence_parallel import Traffic, gather_tokens, own_tokens, ring_attention, ulysses_attention
from gen.models.dit import DiTNet
from gen.models.layers.attention import Attention
from gen.models.layers.wrapper import Wrapper
from gen.models.lightning_dit import LightningDiTNet

__all__ = ["Sequence", "Shared"]

FAMILIES = {DiTNet: "dit", LightningDiTNet: "lightning_dit"}
METHODS: dict[str, Callable[..., Tensor]] = {"ulysses": ulysses_attention, "ring": ring_attention}


@dataclass(frozen=True)
class Sequence:
    """A DiT or LightningDiT of whose tokens each process of torch.distributed's default group computes an equal part.

    Every process has the whole network, calls it with the same x at the same moment, and gets the whole output. method:
    how their tokens see each other: "ulysses" passes heads about, whose number the processes must divide; "ring" passes
    keys and values, whatever the heads, in more bytes, and while it computes (gen.kernels.sequence_parallel).
    """

    method: Literal["ulysses", "ring"] = "ulysses"

    def prepare(self, net: nn.Module, device: torch.device | str = "cpu") -> Shared:
        """A copy of the network; UserError, in one line, where it does not divide, and where there is one process."""
        if type(net) not in FAMILIES:
            allowed = ", ".join(FAMILIES.values())
            raise UserError(f"the engine 'sequence' shares out tokens of {allowed}, not of {type(net).__name__}")
        if not dist.is_initialized():
            raise UserError("the engine 'sequence' needs processes: start them with torchrun and init_process_group")
        spec: Any = net.spec
        count, tokens = dist.get_world_size(), (spec.size // spec.patch) ** 2
        if tokens % count:
            raise UserError(f"the engine 'sequence': {tokens} tokens do not divide over {count} processes")
        if self.method == "ulysses" and spec.heads % count:
            raise UserError(
                f"the engine 'sequence': {spec.heads} heads do not divide over {count} processes; use method ring"
            )
        return Shared(net, self.method).to(device)


class Shared(Wrapper):
    """Called like the network that it is a copy of. Inside "trunk" the sites of a tap see this process's tokens.

    traffic: what this process has sent. It can be trained: where all processes have the same loss, the gradient of it
    is the mean of theirs, which is what DistributedDataParallel leaves.
    """

    def __init__(self, net: nn.Module, method: str):
        super().__init__()
        self.inner, self.traffic = copy.deepcopy(net), Traffic()
        self.about = f"sequence ({method}, {dist.get_world_size()} processes)"
        for module in self.inner.modules():
            if isinstance(module, Attention):
                module.attend = partial(METHODS[method], traffic=self.traffic)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        cond: Mapping[str, Tensor],
        *,
        s: Tensor | None = None,
        tap: Tap | None = None,
    ) -> Tensor:
        def sharing(site: str, compute: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
            def apart(h: Tensor) -> Tensor:
                return gather_tokens(compute(own_tokens(h)), traffic=self.traffic)  # [B, T, width]

            return call_site(tap, site, apart if site == "trunk" else compute, h)

        return self.inner(x, t, cond, s=s, tap=sharing)
