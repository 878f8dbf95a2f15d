"""Times of the loop that a pipeline of diffusers makes."""

from __future__ import annotations

import torch
from torch import Tensor

from gen.diffusion.foreign_schedule import read_schedule, read_times, start_std
from gen.models.interop.pipelines.listening import Heard, listen

__all__ = ["begins_later", "start_of", "times_of", "with_steps"]


def times_of(heard: Heard, steps: int | None = None) -> Tensor:
    """Return the grid of the pipeline's own scheduler, with the shift that the pipeline gave it for its size.

    Args:
        heard: of the pipeline.
        steps: of the loop; None for those of the call that was heard. For others the pipeline is called again.

    Returns:
        float64 [steps + 1], falling; above 0 at the end where the scheduler ends above clean data, or its loop is left
        to a refiner (denoising_end).
    """
    heard = with_steps(heard, steps)
    schedule = read_schedule(heard.scheduler)
    times = read_times(heard.scheduler, schedule.path)
    timesteps = schedule.path.t_to_network(times[:-1]) * schedule.time_scale
    if begins_later(heard):  # to edit an image
        begin = int((timesteps - float(heard.timesteps[0])).abs().argmin())
        times, timesteps = times[begin:], timesteps[begin:]
    end = heard.call.get("denoising_end")
    if isinstance(end, float) and 0 < end < 1:
        total = heard.scheduler.config.num_train_timesteps
        times = times[: int((timesteps > round(total - end * total) - 0.5).sum()) + 1]
    return times


def begins_later(heard: Heard) -> bool:
    """Return whether a pipeline's loop leaves out the first steps, as those do that edit an image.

    Args:
        heard: of the pipeline.
    """
    return float(heard.timesteps[0]) != float(torch.as_tensor(heard.scheduler.timesteps)[0])


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
