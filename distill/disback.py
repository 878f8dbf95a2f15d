"""DisBack: any distiller of scores, whose teacher first goes back the way from the student's score to its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.spec import build, part
from gen.diffusion.denoiser import DenoiserLike
from gen.distillers.degradation import Degradation
from gen.distillers.dmd2 import DMD2
from gen.distillers.lib.sequence import TeacherSequence, fill, recorded
from gen.training.log import Progress
from gen.training.objectives import Batch, Roles, Step
from gen.training.run import Run
from gen.training.trainer import train

__all__ = ["DisBack"]


@dataclass(frozen=True)
class DisBack:
    """Distribution backtracking (Zhang et al. 2024) around `method`: DMD2, f-distill, SiD, whatever has a fake score.

    First the teacher degrades to the score of its own few-step samples: `records` checkpoints, one every `every`
    updates (gen.distillers.degradation). The fake score begins as the last of them, and the student's target is the one
    before, for `hold` of the student's updates, then the one before that, and at last the teacher itself, which stays.
    record: the folder of a degradation there is already; None makes one beside the student.
    """

    method: Any = part("distillers", default=DMD2())
    records: int = 4
    every: int = 50
    hold: int = 50
    record: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "method", build("distillers", self.method))
        for key in ("records", "every", "hold"):
            if getattr(self, key) < 1:
                raise UserError(f"DisBack: {key} = {getattr(self, key)}; it must be at least 1")
        if isinstance(self.method, DisBack) or not hasattr(self.method, "critic_steps"):
            raise UserError(f"DisBack: method = {type(self.method).__name__} has no fake score that could go back")

    def student(self, run: Run, teacher: Path, folder: Path) -> Run:
        """The run of the student, after the degradation has been recorded; says which weights were found."""
        made: Run = self.method.student(run, teacher, folder)
        place = Path(self.record) if self.record else folder / "degradation"
        if not self.record:
            method = self.method
            degrade = Degradation(
                self.records, self.every, method.steps, method.grid, method.critic_times, method.weighting
            )
            train(degrade.student(run, teacher, place), place, command=f"gen.distill('degradation', {str(teacher)!r})")
        last = recorded(place)[-1]
        match = fill(run.model.build(), _weights(last))
        Progress("disback", 1).say(f"{last}: {match}")
        return replace(made, objective=replace(self, record=str(place)))

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        roles: dict[str, nn.Module] = self.method.roles(net, teacher)
        if self.record is None:
            raise UserError(
                "DisBack needs a record of the degradation: gen distill disback makes it, or name its folder"
            )
        fill(roles["fake"], _weights(recorded(Path(self.record))[-1]))
        return roles

    @property
    def rates(self) -> dict[str, float]:
        return getattr(self.method, "rates", {})

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        sequence = self.sequence()
        target = sequence.at(batch.step, roles["teacher"], str(batch.x.device))
        turn = torch.tensor(float(sequence.turn(batch.step)))
        for role, loss, logs in self.method({**roles, "teacher": target}, batch):
            yield role, loss, {**logs, "target": turn}

    def sequence(self) -> TeacherSequence:
        """The targets before the teacher, from the most degraded but one."""
        return TeacherSequence(recorded(Path(str(self.record)))[-2::-1], self.hold)

    def observe(self, roles: Roles, logs: dict[str, float]) -> None:
        if hasattr(self.method, "observe"):
            self.method.observe(roles, logs)

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """As of the method."""
        return self.method.validate(roles, batch)


def _weights(folder: Path) -> dict[str, Tensor]:
    return checkpoints.read_tensors(folder, "net.safetensors", checkpoints.read(folder))
