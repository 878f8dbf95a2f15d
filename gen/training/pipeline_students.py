"""Students of a pipeline of diffusers: adapters beside its network, trained on its samples of prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gen.config.errors import UserError
from gen.config.spec import name_of, override
from gen.data.prompted import Prompted
from gen.training.pair_store import make_pairs, with_fixed_times
from gen.training.run import Run

__all__ = ["on_prompts", "pipeline_student"]

PER_PROMPT, LEAST = 1, 64  # samples of each prompt, and samples at least, where a method asks for no number


def pipeline_student(distiller: Any, teacher: Any, out: Path, changes: Mapping[str, object]) -> Run:
    """Return the run that trains the student of a pipeline.

    What a method leaves open is the pipeline's: the sampler of its pairs, the guide on the teacher. Unless there are
    other data it learns from samples of the pipeline's prompts, kept in the student's folder.

    Args:
        distiller: the method.
        teacher: a gen.PromptPipeline.
        out: folder of the student's run.
        changes: of the student's run, by dotted key.

    Raises:
        UserError: for a method that trains another network than the pipeline's, or on other data.
    """
    given = dict(changes)
    own = {key.removeprefix("objective."): given.pop(key) for key in list(given) if key.startswith("objective.")}
    name, run = name_of(type(distiller)), teacher.training_run()
    if distiller.for_text:
        raise UserError(
            f"{name} distils text models, and {teacher.name} is a pipeline of diffusers: take dmd2, ect or scm"
        )
    if not teacher.prompts and "data" not in given:
        raise UserError(f"{name}: the student of {teacher.name} learns by prompts: give --prompts FILE, in Python "
                        "gen.load_diffusers(folder, prompts=[...])")  # fmt: skip
    distiller = override(_with_defaults(distiller, teacher, run, own), own)
    if hasattr(distiller, "teacher_sampler"):
        distiller = replace(distiller, teacher_sampler=with_fixed_times(distiller.teacher_sampler, run.path))
    student = distiller.student(run, teacher.folder, out)
    if type(student.model) is not type(run.model):
        raise UserError(f"{name} trains another network than the pipeline's, a {name_of(type(student.model))}, which "
                        "the pipeline could not load")  # fmt: skip
    student = override(replace(student, teacher=None, init=None), given)
    if student.data is None:
        n = max(LEAST, PER_PROMPT * len(teacher.prompts))
        student = replace(student, data=make_pairs(teacher.pipeline, out / "pairs", n, teacher.pipeline.sampler))
    return on_prompts(student)


def on_prompts(run: Run) -> Run:
    """Return a run of a pipeline's network whose data are as that reads them.

    Args:
        run: of any model.
    """
    if not hasattr(run.model, "encode_prompts") or run.data is None or isinstance(run.data, Prompted):
        return run
    return replace(run, data=Prompted(run.data, run.model))


def _with_defaults(distiller: Any, teacher: Any, run: Run, own: Mapping[str, object]) -> Any:
    """Return a method with the pipeline's own sampler, guide and branches where it says nothing else."""
    changes: dict[str, Any] = {}
    stated = {key.partition(".")[0] for key in own}
    guide = teacher.pipeline.sampler.guide
    if hasattr(distiller, "teacher_sampler"):
        changes["teacher_sampler"] = teacher.pipeline.sampler
    learns = own.get("velocity", getattr(distiller, "velocity", "teacher")) == "teacher"
    if "guide" not in stated and getattr(distiller, "guide", guide) is None and learns:
        changes["guide"] = guide
    dropout = getattr(run.objective, "class_dropout", 0.0)  # 0 without a negative branch
    if "class_dropout" not in stated and not dropout and hasattr(distiller, "class_dropout"):
        changes["class_dropout"] = dropout
    return replace(distiller, **changes)
