"""Distillation: a student's run from its teacher's, by a method of gen.distillers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from gen.config import checkpoints
from gen.config.errors import UserError, shown
from gen.config.fields import build_with, check_arguments
from gen.config.hub import local_folder
from gen.config.spec import Spec, override
from gen.config.trust import allowing, external_names
from gen.text.decoding import Decoding
from gen.training.objectives import Objective
from gen.training.result import TrainResult
from gen.training.run import Run, run_from, run_spec
from gen.training.run_folder import lock_of
from gen.training.trainer import train_locked

__all__ = ["Distiller", "distill", "teacher_run"]


class Distiller(Objective, Protocol):
    """A plug-in of gen.distillers: an objective that also derives the student's run from the teacher's.

    One that names this class as its base inherits the defaults.
    """

    for_text: ClassVar[bool] = False  # True for a method whose teachers are decoded, not sampled

    @abstractmethod
    def student(self, run: Run, teacher: Path, folder: Path) -> Run:
        """Return the run that trains the student, usually from the teacher's weights (Run.init).

        Args:
            run: the teacher's.
            teacher: the folder of its run.
            folder: of the student's run, in which a method may store what it generates first.

        Raises:
            UserError: for a teacher from which this method cannot learn, before any work.
        """
        ...


@check_arguments()
def distill(
    method: Spec | Distiller,
    teacher: object,
    out: str | Path,
    *,
    changes: Mapping[str, object] | None = None,
    resume: str = "auto",
    command: str | None = None,
    quiet: bool = False,
    allow: Sequence[str] = (),
) -> TrainResult:
    """Distil the run of a teacher into a student's.

    Args:
        method: of gen.distillers: a name, a spec or an object.
        teacher: folder of the teacher's run, or a name as of gen.load; or a pipeline of diffusers with its prompts,
            gen.load_diffusers(folder, prompts=[...]), whose student is trained as adapters.
        out: folder of the student's run.
        changes: dotted keys of the student's run ({"steps": 700, "optim.lr": 5e-4, "objective.pairs": 4096}); all else
            is as the method derives it from the teacher's.
        resume: see gen.train.
        command: recorded in run.json; None for this call.
        quiet: whether no progress is shown.
        allow: packages whose names in the teacher's folder are followed, see gen.load.

    Returns:
        The student's folder and how its training ended.

    Raises:
        UserError: for unknown keys, for a teacher of the other kind and for a folder that holds another run.
    """
    from gen.training.pipeline_students import pipeline_student  # whose store of pairs imports this package

    with allowing(allow):
        distiller = build_with("distillers", method, "student", "distill: method")
        if not isinstance(teacher, (str, Path)) and not hasattr(teacher, "training_run"):
            raise UserError(
                f"distill: teacher = {shown(teacher)}; allowed: a folder, or what gen.load_diffusers returns"
            )
        call = f"gen.distill({method!r}, {str(teacher)!r}, {str(out)!r}, changes={dict(changes or {})!r})"
        with lock_of(Path(out)) as lock:  # a method may write there before the training does
            given = dict(changes or {})
            if isinstance(teacher, (str, Path)):
                run = _student_run(distiller, local_folder(teacher), Path(out), given)
            else:
                run = pipeline_student(distiller, teacher, Path(out), given)
            with allowing(external_names(run_spec(run))):
                return train_locked(run, Path(out), resume, command or call, quiet, lock)


def _student_run(distiller: Any, teacher: Path, out: Path, given: dict[str, object]) -> Run:
    """Return the run that trains the student."""
    own = {key.removeprefix("objective."): given.pop(key) for key in list(given) if key.startswith("objective.")}
    distiller = override(distiller, own)
    run = teacher_run(teacher)
    if isinstance(run.sampler, Decoding) and not distiller.for_text:
        raise UserError(
            f"{type(distiller).__name__} distils models that are sampled, and {teacher} is a text model: take "
            "dparallel, learn2pd, trajectory or diffu_grpo"
        )
    return override(distiller.student(run, teacher, out), given)


def teacher_run(folder: str | Path) -> Run:
    """Return the Run by which a folder's model was trained.

    Args:
        folder: of a run, or of one of its checkpoints.

    Raises:
        UserError: for a pipeline of diffusers, which no run trained.
    """
    from gen.pipeline import is_pipeline_folder  # which imports this package

    if is_pipeline_folder(folder):
        raise UserError(
            f"{folder} is a pipeline of diffusers: its students learn by prompts, gen distill METHOD --teacher "
            f"{folder} --prompts FILE, in Python from gen.load_diffusers(folder, prompts=[...])"
        )
    return run_from(checkpoints.manifest_of(folder).get("run"), folder)
