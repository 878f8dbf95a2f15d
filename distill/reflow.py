"""Reflow: retrain on the teacher's own noise-data pairs, whose paths cross no more and can be walked in one step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gen.denoise import Denoise, Denoiser
from gen.distill._pairs import make_pairs
from gen.errors import UserError
from gen.objectives import Batch, Roles, Step
from gen.objectives.denoise import check_state
from gen.pipeline import load
from gen.run import Run, Sampler
from gen.spec import part
from gen.times import UShaped

__all__ = ["Reflow"]


@dataclass(frozen=True)
class Reflow:
    """Regression of the network's output along the straight line between each pair (Liu et al. 2022; rf++, 2024).

    Loss (sqrt(|error|^2 + c^2) - c) / d with c = huber d, the pseudo-Huber of rf++ (section 4.2), d the number of
    elements. times: rf++'s U-shape trains all steps; Point(1) trains nothing but the first, a one-step student.
    pairs, teacher_sampler: how many pairs are made before training, and how.
    """

    pairs: int = 16_384
    teacher_sampler: Sampler = field(default_factory=lambda: Sampler(steps=16))
    times: Any = part("times", default=UShaped())
    huber: float = 0.00054

    def __post_init__(self) -> None:
        if self.pairs < 1 or not self.huber > 0:
            raise UserError(f"Reflow: pairs = {self.pairs}, huber = {self.huber}; both must be positive")

    def student(self, run: Run, teacher: Path, folder: Path) -> Run:
        """The run of the student: the teacher's, on its pairs, from its weights."""
        taught = load(teacher)
        if isinstance(taught.denoiser, Denoiser):
            check_state(taught.denoiser.net, "reflow")
        data = make_pairs(taught, folder / "pairs", self.pairs, self.teacher_sampler)
        return replace(run, objective=self, data=data, init=str(teacher), sampler=Sampler("euler", steps=1))

    def roles(self, net: nn.Module, teacher: Denoise | None) -> dict[str, nn.Module]:
        return {"net": net}

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        f = roles["net"]
        t = self.times.at(batch.noise.uniform("t"), f.path).to(batch.x.device)
        yield "net", self.losses(f, batch, t).mean(), {}

    def losses(self, f: Denoiser, batch: Batch, t: Tensor) -> Tensor:
        """The loss of each pair, [B], at times t [B]."""
        if batch.origin is None:
            raise UserError("Reflow needs pairs, items with an origin: this data has none")
        z = batch.origin.normal("start", batch.x.shape[1:]).to(batch.x)
        out = f.output(f.path.mix(batch.x, z, t), t, batch.cond)
        square = ((out - f.param.target(f.path, batch.x, z, t)) ** 2).flatten(1).sum(1)
        c = self.huber * batch.x[0].numel()
        return ((square + c**2).sqrt() - c) / batch.x[0].numel()

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """The mean loss at 8 fixed times on pairs held out."""
        f = roles["net"]
        at = self.times.fixed(f.path).to(batch.x.device)
        return torch.stack([self.losses(f, batch, t.expand(len(batch.x))).mean() for t in at]).mean()
