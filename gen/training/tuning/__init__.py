"""Controllers outside the trainer: each trains runs part by part, and writes a plan that needs no controller."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from gen.config import checkpoints
from gen.config.errors import UserError
from gen.training.distributed import processes
from gen.training.run import Run, run_from

__all__ = ["Tuner", "check_parts", "newest_run"]


class Tuner(Protocol):
    """A plug-in of this folder: a frozen dataclass of settings."""

    def tune(self, run: Run, out: Path, quiet: bool = False) -> Run:
        """Train, and return the run with the plan that was found, which trained anew gives the same weights.

        Args:
            run: what to train.
            out: the folder of what is trained.
            quiet: no progress on the terminal.
        """
        ...


def check_parts(run: Run, every: int) -> None:
    """Check that a run can be trained part by part, by one process.

    Args:
        run: what is to be trained.
        every: steps of a part.

    Raises:
        UserError: for several processes, and for a schedule that depends on the number of steps.
    """
    if processes()[1] > 1:
        raise UserError("gen tune trains part by part in one process: start it without a launcher")
    factor, total = run.schedule.factor, run.steps
    ends = [min(total, (update // every + 1) * every) for update in range(total)]
    if any(factor(update, end) != factor(update, total) for update, end in enumerate(ends)):
        raise UserError(
            f"schedule {type(run.schedule).__name__} depends on the number of steps, and a plan is found part by part;"
            " allowed are such as constant and inverse_sqrt"
        )


def newest_run(folder: Path) -> tuple[Run, int] | None:
    """Return the run of a folder's newest checkpoint, with its plans, and its steps; None if there is none.

    Args:
        folder: of the run.
    """
    newest = checkpoints.newest(folder / "checkpoints")
    if newest is None:
        return None
    manifest = checkpoints.read(newest, verify=False)
    return run_from(manifest["run"], newest), manifest["step"]
