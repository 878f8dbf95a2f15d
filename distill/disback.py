"""DisBack: any distiller of scores, with a teacher that goes back from the student's score to its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import part
from gen.diffusion.denoiser import DenoiserLike
from gen.distillers.degradation import Degradation
from gen.distillers.dmd2 import DMD2
from gen.distillers.lib.score import ScoreDistillation
from gen.distillers.lib.sequence import TeacherSequence, degradation_checkpoints, load_matching
from gen.training.distillation import Distiller
from gen.training.log import ProgressBar
from gen.training.objectives import Batch, Roles, Step
from gen.training.run import Run
from gen.training.trainer import train

__all__ = ["DisBack"]


@dataclass(frozen=True)
class DisBack(Distiller):
    """Distribution backtracking (Zhang et al. 2024) around another distiller of scores.

    First the teacher degrades to the score of its own few-step samples, which leaves checkpoints
    (gen.distillers.degradation). The fake score begins as the last of them, and the student's target is the one before,
    then the one before that, and at last the teacher itself, which stays.

    Attributes:
        method: DMD2, f-distill, SiD: whatever has a fake score.
        records: number of checkpoints, at least 1.
        every: updates of the degradation between two of them, at least 1.
        hold: updates of the student with each target, at least 1.
        degradation: folder of a degradation there is already; None makes one beside the student.
    """

    method: ScoreDistillation = part("distillers", default=DMD2())
    records: int = 4
    every: int = 50
    hold: int = 50
    degradation: str | None = None

    def __post_init__(self) -> None:
        check_fields(self, records="[1, inf)", every="[1, inf)", hold="[1, inf)")

    def student(self, run: Run, teacher: Path, folder: Path) -> Run:
        """Return the method's run of the student, after the degradation; report which weights the fake score gets."""
        student, place = self.method.student(run, teacher, folder), Path(self.degradation or folder / "degradation")
        if not self.degradation:
            m = self.method
            stage = Degradation(self.records, self.every, m.steps, m.grid, m.critic_times, m.weighting)
            train(stage.student(run, teacher, place), place, command=f"gen.distill('degradation', {str(teacher)!r})")
        last = degradation_checkpoints(place)[-1]
        match = load_matching(run.model.build(), _weights(last))
        ProgressBar("disback", 1).say(f"{last}: {match}")
        return replace(student, objective=replace(self, degradation=str(place)))

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        roles = self.method.roles(net, teacher)
        if self.degradation is None:
            raise UserError("DisBack needs a degradation: gen distill disback makes it, or name its folder")
        load_matching(roles["fake"], _weights(degradation_checkpoints(Path(self.degradation))[-1]))
        return roles

    @property
    def rates(self) -> dict[str, float]:
        return self.method.rates

    @property
    def delays(self) -> Mapping[str, int]:
        return self.method.delays

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        sequence = self.sequence()
        target = sequence.at(batch.step, roles["teacher"], str(batch.x.device))
        index = torch.tensor(float(sequence.index(batch.step)))
        for role, loss, logs in self.method({**roles, "teacher": target}, batch):
            yield role, loss, {**logs, "target": index}

    def sequence(self) -> TeacherSequence:
        """Return the targets before the teacher, from the most degraded but one."""
        return TeacherSequence(degradation_checkpoints(Path(str(self.degradation)))[-2::-1], self.hold)

    def observe(self, roles: Roles, logs: dict[str, float]) -> None:
        self.method.observe(roles, logs)

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        return self.method.validate(roles, batch)

    def validate_all(self, roles: Roles, batches: Sequence[Batch]) -> float:
        return self.method.validate_all(roles, batches)


def _weights(folder: Path) -> dict[str, Tensor]:
    return checkpoints.read_tensors(folder, "net.safetensors", checkpoints.read(folder))
