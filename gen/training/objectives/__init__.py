"""Objectives: what is trained, one file each, for data here and for teachers in gen.distill.

An objective is a frozen dataclass with

    roles(net, teacher) -> {role: nn.Module}     the trained networks; the first is the one that samples
    __call__(roles, batch) -> iterator of (role, loss, logs)
    validate(roles, batch) -> 0-d tensor         the loss at fixed times, on fixed noise
    observe(roles, logs) -> None                 optional: told the logs of every step, the same in every process
    rates -> {role: factor}                      optional: on the run's learning rate, for roles that differ

where `roles` given to the last three maps names to Denoisers, the teacher's among them. The trainer steps a role's
optimiser at each yield before it asks for the next, so critics and alternation need nothing in the trainer. A role may
be a tuple of roles that one loss trains, such as a network and a head upon its features (roles["head"].net). A role
without parameters is memory: its buffers are saved and resumed with the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from gen.diffusion.denoiser import Cond, DenoiserLike
from gen.diffusion.noise import Noise

__all__ = ["Batch", "Objective", "Roles", "Step"]

Roles = Mapping[str, Any]  # Denoisers; a teacher may be any denoiser
Step = tuple[str | tuple[str, ...], Tensor, dict[str, Tensor]]


@dataclass(frozen=True)
class Batch:
    """x [B, ...], its condition, this step's noise by sample, and for pairs the noise that x was made from.

    step: how many updates were made before this one.
    """

    x: Tensor
    cond: Cond
    noise: Noise
    origin: Noise | None = None
    step: int = 0

    def normal(self, name: str) -> Tensor:
        """Unit noise shaped as x."""
        return self.noise.normal(name, self.x.shape[1:]).to(self.x)


class Objective(Protocol):
    """See the package's docstring."""

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]: ...

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]: ...

    def validate(self, roles: Roles, batch: Batch) -> Tensor: ...
