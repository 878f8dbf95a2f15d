"""Times of the loop that a pipeline of diffusers makes."""

from __future__ import annotations

from torch import Tensor

from gen.diffusion.foreign_schedule import read_schedule, read_times
from gen.models.interop.pipelines.listening import Heard, listen

__all__ = ["times_of"]


def times_of(heard: Heard, steps: int | None = None) -> Tensor:
    """Return the grid of the pipeline's own scheduler, with the shift that the pipeline gave it for its size.

    Args:
        heard: of the pipeline.
        steps: of the loop; None for those of the call that was heard. For others the pipeline is called again.

    Returns:
        float64 [steps + 1], falling; above 0 at the end where the scheduler ends above clean data.
    """
    if steps is not None and steps != len(heard.scheduler.timesteps):
        heard = listen(heard.pipe, family=heard.family, **{**heard.call, "num_inference_steps": steps})
    times = read_times(heard.scheduler, read_schedule(heard.scheduler).path)
    begin = len(times) - 1 - len(heard.timesteps.unique())  # a pipeline that edits an image begins later
    return times[max(begin, 0) :]
