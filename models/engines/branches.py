"""Two evaluations of a guide on two processes at once, for latency: each computes one branch of one sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.diffusion.denoiser import Cond
from gen.diffusion.tap import Tap
from gen.kernels.sequence_parallel.collectives import Traffic, all_gather
from gen.models.layers.wrapper import Wrapper

__all__ = ["Branches", "BranchesNet"]

T = TypeVar("T")


@dataclass(frozen=True)
class Branches:
    """Any network whose guide's two evaluations are computed by two processes of torch.distributed's default group.

    Each computes one branch, the conditional or the other, and both have both outputs after one all-gather of the size
    of x. Both call with the same x at the same moment, and decide alike whether there is a second branch, since that
    follows from the time: an evaluation that a guide leaves alone (its interval, scale 1) is computed by both, as is
    the weak network of autoguidance. A cache's report counts the branch of its own process. One process computes both.
    """

    collective: ClassVar[bool] = True  # so samples are not shared out between the processes
    copies: ClassVar[bool] = False  # so the network may be a pipeline's own

    def prepare(self, net: nn.Module, device: torch.device | str = "cpu") -> BranchesNet:
        """Return the network itself, wrapped; UserError for another number of processes than one or two."""
        if not dist.is_initialized():
            raise UserError("the engine 'branches' needs processes: start them with torchrun and init_process_group")
        if dist.get_world_size() > 2:
            raise UserError(f"the engine 'branches' has 2 branches, not {dist.get_world_size()}: start 2 processes")
        return BranchesNet(net)


class BranchesNet(Wrapper):
    """A network, called like it; a guide's two evaluations go through `run_branches`.

    Attributes:
        traffic: what this process has sent.
        about: number of processes, in words.
    """

    fixed_batch = True

    def __init__(self, net: nn.Module):
        super().__init__(net.spec)
        self.inner, self.traffic = net, Traffic()
        self.about = f"branches ({dist.get_world_size()} processes)"
        self.mode: Literal["plain", "exchange", "recall", "done"] = "plain"
        self.outputs: Tensor | None = None  # [2, B, ...] of the first and of the second evaluation

    def run_branches(self, first: Callable[[], T], second: Callable[[], T]) -> tuple[T, T]:
        """Return what both calls return, of which this process evaluates the network for one.

        Args:
            first: calls the network once; computed by process 0.
            second: the same, by process 1.
        """
        if dist.get_world_size() == 1:
            return first(), second()
        rank, calls = dist.get_rank(), (first, second)
        try:
            self.mode = "exchange"
            own = calls[rank]()
            self.mode = "recall"
            other = calls[1 - rank]()
        finally:
            self.mode, self.outputs = "plain", None
        return (other, own) if rank else (own, other)

    def forward(self, x: Tensor, t: Tensor, cond: Cond, *, s: Tensor | None = None, tap: Tap | None = None) -> Tensor:
        if self.mode == "done":
            raise UserError("the engine 'branches': a branch evaluates its network more than once")
        if self.mode == "recall" and self.outputs is not None:
            self.mode = "done"
            return self.outputs[1 - dist.get_rank()]
        out: Tensor = self.inner(x, t, cond, s=s, tap=tap)
        if self.mode == "exchange":
            if out.requires_grad:
                raise UserError("the engine 'branches' passes no gradients on: sample under torch.no_grad()")
            self.outputs, self.mode = all_gather(out, None, self.traffic), "done"
        return out
