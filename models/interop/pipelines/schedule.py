"""Times of the loop that a pipeline of diffusers makes."""

from __future__ import annotations

from torch import Tensor

from gen.diffusion.foreign_schedule import read_schedule, read_times, start_std
from gen.models.interop.pipelines.listening import Heard, listen

__all__ = ["start_of", "times_of", "with_steps"]


def times_of(heard: Heard, steps: int | None = None) -> Tensor:
    """Return the grid of the pipeline's own scheduler, with the shift that the pipeline gave it for its size.

    Args:
        heard: of the pipeline.
        steps: of the loop; None for those of the call that was heard. For others the pipeline is called again.

    Returns:
        float64 [steps + 1], falling; above 0 at the end where the scheduler ends above clean data.
    """
    heard = with_steps(heard, steps)
    times = read_times(heard.scheduler, read_schedule(heard.scheduler).path)
    begin = len(times) - 1 - len(heard.timesteps.unique())  # a pipeline that edits an image begins later
    return times[max(begin, 0) :]


def start_of(heard: Heard) -> float:
    """Return what the pipeline multiplies unit noise by for x of the first step, as our path has it.

    Args:
        heard: of the pipeline.
    """
    return start_std(heard.scheduler, read_schedule(heard.scheduler).path)


def with_steps(heard: Heard, steps: int | None) -> Heard:
    """Return what the pipeline's call of so many steps was heard with.

    Args:
        heard: of the pipeline, which is called again if that was another number.
        steps: of the loop; None for any.
    """
    if steps is None or steps == len(heard.scheduler.timesteps):
        return heard
    return listen(heard.pipe, family=heard.family, **{**heard.call, "num_inference_steps": steps})
