"""The noise schedule of a scheduler object of diffusers: path, parameterisation, unit of time, times of a loop.

Read from the object's public attributes (config, alphas_cumprod, sigmas, timesteps), so nothing is imported. In its
flow schedulers sigma is our t; elsewhere sigma is sigma / alpha of our path, whose x is theirs divided by
sqrt(1 + sigma^2) where theirs has an exploding variance.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.diffusion.parameterisation import X0, EDMPrecond, Eps, Parameterisation, V, Velocity
from gen.diffusion.path import DDPM, EDM, Flow, NoisePath, Table

__all__ = ["ForeignSchedule", "is_edm", "is_flow", "read_schedule", "read_times", "start_std"]

PREDICTIONS: dict[str, Parameterisation] = {
    "epsilon": Eps(),
    "flow_prediction": Velocity(),
    "sample": X0(),
    "v_prediction": V(),
}


SPACINGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
ENDS: dict[str, Callable[[Any], float]] = {  # alpha^2 of the end, whatever set_alpha_to_one says
    "LCMScheduler": lambda scheduler: 1.0,
    "TCDScheduler": lambda scheduler: float(scheduler.alphas_cumprod[0]),
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


def is_edm(scheduler: Any) -> bool:
    """Return whether a scheduler's network is EDM's: it gets x / sqrt(sigma^2 + sd^2) and ln(sigma) / 4.

    Args:
        scheduler: of diffusers.
    """
    config = scheduler.config
    continuous = config.get("timestep_type") == "continuous" and config.get("prediction_type") == "v_prediction"
    return continuous or "sigma_data" in config


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
        UserError: for a scheduler without a noise schedule that is known here, for one whose loop rises, and for one
            whose levels are not those of its timesteps.
    """
    if isinstance(ours := getattr(scheduler, "schedule", None), ForeignSchedule):  # of gen.as_scheduler
        return ours
    kind, config = type(scheduler).__name__, dict(getattr(scheduler, "config", {}))
    if config.get("invert_sigmas"):
        raise UserError(f"{kind} has invert_sigmas, under which its sigmas rise: allowed are schedulers without it")
    if "Inverse" in kind:
        raise UserError(f"{kind} goes from data to noise: allowed are schedulers that sample")
    if config.get("interpolation_type") == "log_linear" and not any(config.get(name) for name in SPACINGS):
        raise UserError(
            f"{kind} has interpolation_type 'log_linear', whose levels are not those of its timesteps; allowed: linear"
        )
    if is_flow(scheduler):
        return ForeignSchedule(Flow(), Velocity(), float(config.get("num_train_timesteps", 1000)))
    if kind.startswith("EDM"):
        toward: Literal["data", "noise"] = "noise" if config.get("prediction_type") == "v_prediction" else "data"
        return ForeignSchedule(EDM(float(config["sigma_max"])), EDMPrecond(float(config["sigma_data"]), toward), 1.0)
    predicted = config.get("prediction_type", "epsilon")
    table = getattr(scheduler, "alphas_cumprod", None)
    if table is not None and is_edm(scheduler):  # Stable Video Diffusion
        highest = config.get("sigma_max") or float(_levels_of(table)[-1])
        return ForeignSchedule(EDM(float(highest)), EDMPrecond(1.0, "noise"), 1.0)
    if table is None or predicted not in PREDICTIONS or "beta_start" not in config:
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
    kind, levels = type(scheduler).__name__, getattr(scheduler, "sigmas", None)
    if levels is None:
        entries = torch.as_tensor(getattr(scheduler, "_timesteps", scheduler.timesteps)).double().cpu().flatten()
        times = entries.unique().flip(0) + 1
        final = torch.tensor([float(getattr(scheduler, "final_alpha_cumprod", 1.0))], dtype=torch.float64)
        if kind in ENDS:
            final = torch.tensor([ENDS[kind](scheduler)], dtype=torch.float64)
        end = _whole(path.t_from_lambda(torch.logit(final) / 2)) if final < 1 else torch.zeros_like(final)
        return torch.cat([times, end]) if end < times[-1] else times
    sigmas = torch.as_tensor(levels).double().cpu().flatten().unique().flip(0)
    if isinstance(path, (Flow, EDM)):
        return sigmas
    if sigmas[0] > 1.001 * (highest := float(_levels_of(scheduler.alphas_cumprod)[-1])):
        raise UserError(
            f"{kind} begins at sigma {sigmas[0]:g}, above its table: sigma_max of at most {highest:g} allowed"
        )
    clean = sigmas == 0
    times = path.t_from_lambda(-sigmas.clamp(min=1e-30).log()).clamp(0, path.t1)
    return torch.where(clean, torch.zeros_like(times), _whole(times))


def start_std(scheduler: Any, path: NoisePath) -> float:
    """Return the standard deviation of the x of our path that a pipeline begins with.

    Args:
        scheduler: of diffusers, after its set_timesteps.
        path: `read_schedule`'s.
    """
    own = float(getattr(scheduler, "init_noise_sigma", 1.0))
    if isinstance(path, EDM) or not hasattr(scheduler, "scale_model_input"):
        return own
    first = scheduler.timesteps[0]  # the sample of one with an exploding variance is sqrt(1 + sigma^2) ours
    return own * float(copy.deepcopy(scheduler).scale_model_input(torch.ones(1, dtype=torch.float64), first))


def _levels_of(table: Tensor) -> Tensor:
    """Return sigma / alpha of each entry of a table of alpha^2, float64."""
    squared = table.double().cpu()
    return ((1 - squared) / squared).sqrt()


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
