"""Path, parameterisation and times of a scheduler of diffusers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.diffusion.parameterisation import X0, Eps, Parameterisation, V, Velocity
from gen.diffusion.path import DDPM, Flow, NoisePath, Table
from gen.models.interop.pipelines.listening import Heard, listen

__all__ = ["is_flow", "parameterisation_of", "path_of", "times_of"]

PREDICTION_TYPES = {"epsilon": Eps, "v_prediction": V, "sample": X0}


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


def path_of(scheduler: Any) -> NoisePath:
    """Return the path that a scheduler's noise levels lie on.

    Args:
        scheduler: of diffusers.

    Raises:
        UserError: for one without a table of alphas that is no flow.
    """
    if is_flow(scheduler):
        return Flow()
    config, table = scheduler.config, getattr(scheduler, "alphas_cumprod", None)
    if table is None:
        raise UserError(f"{type(scheduler).__name__} is no flow and has no table alphas_cumprod: give the path")
    table = table.double().cpu()
    schedule = {"squaredcos_cap_v2": "cosine"}.get(config.get("beta_schedule"), config.get("beta_schedule"))
    if schedule in ("linear", "scaled_linear", "cosine"):
        path = DDPM(schedule, len(table), config.beta_start, config.beta_end)
        if torch.allclose(path.alpha(torch.arange(1, len(table) + 1.0).double()) ** 2, table, rtol=1e-4):
            return path
    return Table(tuple(table.tolist()))


def parameterisation_of(scheduler: Any) -> Parameterisation:
    """Return what the network of a scheduler predicts.

    Args:
        scheduler: of diffusers.
    """
    if is_flow(scheduler):
        return Velocity()
    kind = scheduler.config.get("prediction_type", "epsilon")
    if kind not in PREDICTION_TYPES:
        allowed = ", ".join(PREDICTION_TYPES)
        raise UserError(f"{type(scheduler).__name__}: prediction_type {kind!r}; known are {allowed}")
    return PREDICTION_TYPES[kind]()


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
    scheduler = heard.scheduler
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is not None:
        begin = len(scheduler.timesteps) - len(heard.timesteps)
        sigmas = torch.as_tensor(sigmas).double().cpu()[begin:]
    if is_flow(scheduler) and sigmas is not None:
        times = sigmas
    elif sigmas is None:
        last = 0.0 if float(getattr(scheduler, "final_alpha_cumprod", 1.0)) == 1 else 1.0  # the table's first entry
        times = torch.cat([heard.timesteps.double() + 1, torch.tensor([last], dtype=torch.float64)])
    else:
        path = path_of(scheduler)
        times = path.t_from_lambda(-sigmas[sigmas > 0].log()).clamp(max=path.t1)
        times = torch.cat([times, times.new_zeros(len(sigmas) - len(times))])
    return torch.cat([times[:1], times[1:][times.diff() < 0]])
