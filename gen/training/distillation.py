"""`gen.distill(...)`: a student's run from its teacher's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.spec import build, override
from gen.pipeline import locate
from gen.text.decoding import Decoding
from gen.training.run import run_from
from gen.training.trainer import TrainResult, train

__all__ = ["distill"]


def distill(
    method: Any,
    teacher: str | Path,
    out: str | Path,
    *,
    changes: Mapping[str, Any] | None = None,
    resume: str = "auto",
    command: str | None = None,
    quiet: bool = False,
) -> TrainResult:
    """Distils the run in `teacher` into `out` by a method of gen.distill: a name, a spec or an object.

    changes: dotted keys of the student's run ({"steps": 700, "optim.lr": 5e-4, "objective.pairs": 4096}); all
    else is as it was for the teacher. A method of text models says so: `writes` is true. Raises UserError for unknown
    keys, for a teacher of the other kind and for a folder that holds another run.
    """
    given = dict(changes or {})
    own = {key.removeprefix("objective."): given.pop(key) for key in list(given) if key.startswith("objective.")}
    made = override(build("distillers", method), own)
    taught = run_from(checkpoints.read(locate(Path(teacher)), verify=False)["run"])
    if isinstance(taught.sampler, Decoding) and not getattr(made, "writes", False):
        raise UserError(
            f"{type(made).__name__} distils models that are sampled, and {teacher} is a text model: take dparallel, "
            "learn2pd or trajectory"
        )
    run = override(made.student(taught, Path(teacher), Path(out)), given)
    told = command or f"gen.distill({method!r}, {str(teacher)!r}, {str(out)!r}, changes={dict(changes or {})!r})"
    return train(run, out, resume=resume, command=told, quiet=quiet)
