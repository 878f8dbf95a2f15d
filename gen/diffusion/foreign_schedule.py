"""The noise schedule of a scheduler object of diffusers: path, parameterisation, unit of time, times of a loop.

Read from the object's public attributes (config, alphas_cumprod, sigmas, timesteps), so nothing is imported. In its
flow schedulers sigma is our t; elsewhere sigma is sigma / alpha of our path, whose x is theirs divided by
sqrt(1 + sigma^2) where theirs has an exploding variance.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.diffusion.parameterisation import X0, EDMPrecond, Eps, Parameterisation, V, Velocity
from gen.diffusion.path import DDPM, EDM, Flow, NoisePath, Table

__all__ = ["ForeignSchedule", "is_flow", "read_schedule", "read_times"]

PREDICTIONS: dict[str, Parameterisation] = {
    "epsilon": Eps(),
    "flow_prediction": Velocity(),
    "sample": X0(),
    "v_prediction": V(),
}


class ForeignSchedule(NamedTuple):
    """The noise schedule of another library's scheduler in our terms.

    Attributes:
        path: x_t = alpha x0 + sigma eps.
        parameterisation: of the network's output.
        time_scale: the network's time is path.t_to_network(t) times this: 1000 on flow, 1 on tables and EDM.
    """

    path: NoisePath
    parameterisation: Parameterisation
    time_scale: float


def is_flow(scheduler: Any) -> bool:
    """Return whether a scheduler's noise levels are those of flow matching.

    Args:
        scheduler: of diffusers.
    """
    config = scheduler.config
    return (
        type(scheduler).__name__.startswith("FlowMatch")
        or bool(config.get("use_flow_sigmas"))
        or config.get("prediction_type") == "flow_prediction"
    )


def read_schedule(scheduler: Any) -> ForeignSchedule:
    """Return the noise schedule that a scheduler of diffusers assumes of the network.

    Args:
        scheduler: of a pipeline; not changed.

    Raises:
        UserError: for a scheduler without a noise schedule that is known here, and for one that inverts its sigmas.
    """
    if isinstance(ours := getattr(scheduler, "schedule", None), ForeignSchedule):  # of gen.as_scheduler
        return ours
    kind, config = type(scheduler).__name__, dict(getattr(scheduler, "config", {}))
    if config.get("invert_sigmas"):
        raise UserError(f"{kind} has invert_sigmas, under which its sigmas rise: allowed are schedulers without it")
    if is_flow(scheduler):
        return ForeignSchedule(Flow(), Velocity(), float(config.get("num_train_timesteps", 1000)))
    if kind.startswith("EDM"):
        return ForeignSchedule(EDM(float(config["sigma_max"])), EDMPrecond(float(config["sigma_data"])), 1.0)
    predicted = config.get("prediction_type", "epsilon")
    table = getattr(scheduler, "alphas_cumprod", None)
    if table is None or predicted not in PREDICTIONS:
        raise UserError(
            f"{kind} with prediction_type {predicted!r}: allowed are schedulers of flow matching, of EDM, and of a "
            f"table alphas_cumprod with one of {', '.join(PREDICTIONS)}"
        )
    return ForeignSchedule(_path_of_table(config, table.double().cpu()), PREDICTIONS[predicted], 1.0)


def read_times(scheduler: Any, path: NoisePath) -> Tensor:
    """Return the times of the loop that a scheduler's set_timesteps has prepared.

    Args:
        scheduler: of diffusers, after its set_timesteps.
        path: `read_schedule`'s.

    Returns:
        Falling times, float64 [steps + 1] on the CPU; the last is 0, or that of the lowest noise level at which the
        scheduler ends. Evaluations inside of a step are left out, as are steps that stay at a time.
    """
    if isinstance(getattr(scheduler, "schedule", None), ForeignSchedule):
        times: Tensor = scheduler.times
        return times
    levels = getattr(scheduler, "sigmas", None)
    if levels is None:
        entries = torch.as_tensor(getattr(scheduler, "_timesteps", scheduler.timesteps)).double().cpu().flatten()
        times = entries.unique().flip(0) + 1
        final = torch.tensor([float(getattr(scheduler, "final_alpha_cumprod", 1.0))], dtype=torch.float64)
        end = _whole(path.t_from_lambda(torch.logit(final) / 2)) if final < 1 else torch.zeros_like(final)
        return torch.cat([times, end]) if end < times[-1] else times
    sigmas = torch.as_tensor(levels).double().cpu().flatten().unique().flip(0)
    if isinstance(path, (Flow, EDM)):
        return sigmas
    clean = sigmas == 0
    times = path.t_from_lambda(-sigmas.clamp(min=1e-30).log()).clamp(0, path.t1)
    return torch.where(clean, torch.zeros_like(times), _whole(times))


def _whole(times: Tensor) -> Tensor:
    """Return times with those near an entry of the table, up to the rounding of float32 levels, set to it."""
    near = times.round()
    return torch.where((times - near).abs() < 2e-3, near, times)


def _path_of_table(config: Mapping[str, Any], table: Tensor) -> NoisePath:
    """Return the path of a table: DDPM where its betas are those of a published formula."""
    schedule = {"squaredcos_cap_v2": "cosine"}.get(config["beta_schedule"], config["beta_schedule"])
    if schedule in ("linear", "scaled_linear", "cosine"):
        path = DDPM(schedule, len(table), float(config["beta_start"]), float(config["beta_end"]))
        if torch.allclose(path.alpha(torch.arange(1, len(table) + 1).double()) ** 2, table, rtol=1e-4):
            return path
    return Table(tuple(table.tolist()))
