"""Two evaluations of a guide on two processes at once, for latency: each computes one branch of one sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import part
from gen.diffusion.denoiser import Cond
from gen.diffusion.net import members
from gen.diffusion.tap import ContextualTap, Tap
from gen.kernels.sequence_parallel.collectives import Group, Traffic, all_gather
from gen.models.engines.patches import Patches
from gen.models.engines.pipefusion import PipeFusion
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

    Attributes:
        within: patches or pipefusion, by which each half of an even number of processes computes its branch; None for
            two processes.
    """

    collective: ClassVar[bool] = True  # so samples are not shared out between the processes

    within: Patches | PipeFusion | None = part("models.engines", kinds=(Patches, PipeFusion), default=None)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.within is not None and self.within.parts is not None:
            raise UserError("Branches: within.parts simulates processes; leave it out")

    copies = False  # but what patches copy

    def prepare(self, net: nn.Module, device: torch.device | str = "cpu") -> BranchesNet:
        """Return the network itself, wrapped; UserError for a number of processes that two branches do not divide."""
        if not dist.is_initialized():
            raise UserError("the engine 'branches' needs processes: start them with torchrun and init_process_group")
        count, rank = dist.get_world_size(), dist.get_rank()
        if self.within is None:
            if count > 2:
                raise UserError(f"the engine 'branches' has 2 branches, not {count}: start 2 processes, or give within")
            return BranchesNet(net, rank, None, f"branches ({count} processes)")
        if count % 2:
            raise UserError(f"the engine 'branches': {count} processes do not divide into 2 halves")
        half = count // 2  # every process takes part in making every group
        halves = [dist.new_group([*range(branch * half, (branch + 1) * half)]) for branch in (0, 1)]
        pairs = [dist.new_group([i, i + half]) for i in range(half)]
        inner = self.within.prepare(net, device, halves[rank // half])
        return BranchesNet(inner, rank // half, pairs[rank % half], f"branches of {half} x {inner.about}")


class BranchesNet(Wrapper):
    """A network, called like it; a guide's two evaluations go through `run_branches`.

    Attributes:
        traffic: what this process has sent.
        about: number of processes, in words.
        branch: 0 or 1, of the two evaluations that this process computes.
    """

    fixed_batch = True

    def __init__(self, net: nn.Module, branch: int, pair: Group, about: str):
        super().__init__(net.spec)
        self.inner, self.traffic, self.about = net, Traffic(), about
        self.branch, self.pair = branch, pair
        self.mode: Literal["plain", "exchange", "recall", "done"] = "plain"
        self.outputs: Tensor | None = None  # [2, B, ...] of the first and of the second evaluation

    def run_branches(self, first: Callable[[], T], second: Callable[[], T]) -> tuple[T, T]:
        """Return what both calls return, of which this process evaluates the network for one.

        Args:
            first: calls the network once; computed by process 0, or the first half.
            second: the same, by the others.
        """
        if dist.get_world_size() == 1:
            return first(), second()
        calls = first, second
        try:
            self.mode = "exchange"
            own = calls[self.branch]()
            self.mode = "recall"
            other = calls[1 - self.branch]()
        finally:
            self.mode, self.outputs = "plain", None
        return (other, own) if self.branch else (own, other)

    @property
    def splits_samples(self) -> bool:
        """Return whether the processes of a branch share out its samples."""
        return members(self.inner).splits_samples

    @property
    def start_loop(self) -> Callable[[int, ContextualTap | None], ContextualTap] | None:
        """The inner network's method, or None."""
        return members(self.inner).start_loop

    def forward(self, x: Tensor, t: Tensor, cond: Cond, *, s: Tensor | None = None, tap: Tap | None = None) -> Tensor:
        if self.mode == "done":
            raise UserError("the engine 'branches': a branch evaluates its network more than once")
        if self.mode == "recall" and self.outputs is not None:
            self.mode = "done"
            return self.outputs[1 - self.branch]
        out: Tensor = self.inner(x, t, cond, s=s, tap=tap)
        if self.mode == "exchange":
            if out.requires_grad:
                raise UserError("the engine 'branches' passes no gradients on: sample under torch.no_grad()")
            self.outputs, self.mode = all_gather(out, self.pair, self.traffic), "done"
        elif self.start_loop is not None:  # the halves remember different branches: the output is that of the second
            out = all_gather(out, self.pair, self.traffic)[1]
        return out
