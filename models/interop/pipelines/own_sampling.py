"""A pipeline's own way to sample in our parts: the solver that is its scheduler, the guide, the number of steps."""

from __future__ import annotations

import copy
import inspect
from typing import Any, NamedTuple

import torch

from gen.config.spec import Json, spec_of
from gen.diffusion.foreign_schedule import is_flow, read_schedule
from gen.models.interop.pipelines.families import is_kind

__all__ = ["OwnSampling", "own_sampling"]

EXACT = {  # schedulers of diffusers whose rule is that of a solver, on the same times
    "CogVideoXDDIMScheduler": "ddim",
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ancestral",
    "EDMEulerScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "ancestral",
    "EulerDiscreteScheduler": "euler",
    "FlowMatchEulerDiscreteScheduler": "euler",
    "FlowMatchHeunDiscreteScheduler": "heun",
    "LCMScheduler": "renoise",
    "PNDMScheduler": "pndm",
    "TCDScheduler": "tcd",
}
MULTISTEP = {  # with a solver_order
    "DEISMultistepScheduler": "deis",
    "DPMSolverMultistepScheduler": "dpmpp",
    "DPMSolverSinglestepScheduler": "dpmpp_single",
    "UniPCMultistepScheduler": "unipc",
}
NEAREST: dict[str, Json] = {  # measured on six steps of a random U-Net, or of the same name
    "CogVideoXDPMScheduler": {"name": "dpmpp_sde"},
    "KDPM2DiscreteScheduler": {"name": "midpoint"},
    "HeunDiscreteScheduler": {"name": "heun"},
    "LMSDiscreteScheduler": {"name": "deis", "solver_order": 3},
}
JUMPING = ("CogVideoXDDIMScheduler", "DDIMScheduler", "PNDMScheduler")  # k - T // N, not the next of their list
FOLLOWED = {  # options that times, path, parameterisation or the solver's spec contain; others name a difference
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type"),
    *("timestep_spacing", "steps_offset", "rescale_betas_zero_snr", "set_alpha_to_one", "snr_shift_scale"),
    *("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas"),
    *("sigma_min", "sigma_max", "sigma_data", "sigma_schedule", "rho", "timestep_type", "flow_shift", "shift"),
    *("use_dynamic_shifting", "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len", "shift_terminal"),
    *("time_shift_type", "stochastic_sampling", "skip_prk_steps", "solver_order", "solver_type", "algorithm_type"),
    *("original_inference_steps", "timestep_scaling", "clip_sample", "thresholding"),
    *("clip_sample_range", "sample_max_value", "dynamic_thresholding_ratio"),  # of the two before
}
VARIANCES = {"fixed_large": "beta", "learned_range": "learned"}
STEPS, SCALE = 50, 1.0  # where a pipeline's call has no default


class OwnSampling(NamedTuple):
    """A pipeline's own way to sample.

    Attributes:
        solver: a spec of gen.samplers.solvers.
        differs: options of the scheduler in which the solver is only the nearest to its rule, "rule" for all; () where
            it is the same rule on the same times.
        steps: default of its call.
        guide: a spec of gen.samplers.guides; None for none.
    """

    solver: Json
    differs: tuple[str, ...]
    steps: int
    guide: Json | None


def own_sampling(pipe: Any, call: Json, guided: bool) -> OwnSampling:
    """Return how a pipeline samples by itself.

    Args:
        pipe: of diffusers.
        call: arguments of its call, in place of the defaults.
        guided: whether its call evaluates a negative branch, too.
    """
    given = {**_defaults(pipe), **{key: value for key, value in call.items() if value is not None}}
    steps = int(given.get("num_inference_steps") or STEPS)
    solver, differs = solver_of(pipe.scheduler, steps, given.get("eta"))
    boundary = getattr(pipe.config, "boundary_ratio", None)
    guide = guide_of(pipe, given, boundary) if guided else None
    if guide is not None and guide["name"] == "rescale":  # of the network's outputs
        guide["space"] = spec_of(read_schedule(pipe.scheduler).parameterisation)
    return OwnSampling(solver, differs, steps, guide)


def solver_of(scheduler: Any, steps: int = STEPS, eta: float | None = None) -> tuple[Json, tuple[str, ...]]:
    """Return the spec of the solver that a scheduler of diffusers is, and the options in which their rules differ.

    Args:
        scheduler: of a pipeline; not changed.
        steps: of the loop.
        eta: that the pipeline gives to its steps; None for none, where the scheduler takes its own default.

    Returns:
        (spec, differs), the latter as of OwnSampling.
    """
    if hasattr(scheduler, "timetable"):  # of gen.as_scheduler
        return spec_of(scheduler.solver), ()
    kind, config = type(scheduler).__name__, scheduler.config
    if kind in MULTISTEP:
        spec = _multistep(kind, config)
    elif kind in ("DDIMScheduler", "DDPMScheduler"):
        spec = {"name": EXACT[kind], "clip": bool(config.get("clip_sample", False))}
        if variance := VARIANCES.get(config.get("variance_type", "")):
            spec["variance"] = variance
    elif kind == "TCDScheduler":
        own = inspect.signature(scheduler.step).parameters["eta"].default
        spec = {"name": "tcd", "eta": float(own if eta is None else eta), "whole": True}
    elif kind == "FlowMatchEulerDiscreteScheduler" and config.get("stochastic_sampling"):
        spec = {"name": "renoise"}
    else:
        spec = {"name": EXACT[kind]} if kind in EXACT else dict(NEAREST.get(kind, {"name": "euler"}))
    if kind not in EXACT and kind not in ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler"):
        return spec, ("rule",)
    return spec, tuple(dict.fromkeys([*_not_followed(scheduler, spec), *_of_rule(scheduler, steps)]))


def _multistep(kind: str, config: Any) -> Json:
    """Return the spec of a multistep solver."""
    spec: Json = {"name": MULTISTEP[kind], "solver_order": int(config.get("solver_order", 2))}
    if kind == "DPMSolverSinglestepScheduler" and spec["solver_order"] == 1:
        return {"name": "ddim"}
    if kind == "DPMSolverMultistepScheduler":
        spec |= {"kind": config.get("solver_type", "midpoint")}
        spec |= {"name": "dpmpp_sde"} if str(config.get("algorithm_type")).startswith("sde") else {}
        spec |= {"compat": "diffusers"} if spec["solver_order"] == 3 else {}
    if kind == "UniPCMultistepScheduler":
        spec |= {"kind": config.get("solver_type", "bh2")}
    return spec


def _not_followed(scheduler: Any, spec: Json) -> list[str]:
    """Return the options that are not at their class's default and that nothing here follows."""
    config = scheduler.config
    defaults = {name: one.default for name, one in inspect.signature(type(scheduler).__init__).parameters.items()}
    followed = FOLLOWED | ({"variance_type"} if "variance" in spec else set())
    return [
        name
        for name, default in defaults.items()
        if name in config and name not in followed and (config[name] or None) != (default or None)
    ]


def _of_rule(scheduler: Any, steps: int) -> list[str]:
    """Return the options under which a scheduler's rule is not its solver's."""
    kind, config = type(scheduler).__name__, scheduler.config
    respaced = [name for name in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
                if config.get(name)]  # fmt: skip
    table = getattr(scheduler, "alphas_cumprod", None)
    differs = {
        "clip_sample": config.get("clip_sample")
        and (kind != "DDPMScheduler" or config.get("clip_sample_range", 1.0) != 1),
        "thresholding": config.get("thresholding"),
        "skip_prk_steps": kind == "PNDMScheduler" and not config.get("skip_prk_steps"),
        "solver_order": kind in MULTISTEP and config.solver_order > 2,
        "algorithm_type": kind.startswith("DPM") and not config.algorithm_type.endswith("++"),
        "shift_terminal": kind in MULTISTEP and config.get("shift_terminal"),  # its last whole step is cut otherwise
        "solver_type": kind == "UniPCMultistepScheduler" and config.solver_type != "bh2",  # theirs ends in nan
    }
    named = [name for name, does in differs.items() if does]
    if kind in JUMPING and not differs["skip_prk_steps"] and not _jumps_to_the_next(scheduler, steps):
        named += ["timestep_spacing"]
    if kind in MULTISTEP and not is_flow(scheduler):
        named += respaced  # the network's time is cut to whole steps
    if respaced and table is not None and config.get("sigma_min"):
        least = float(((1 - table[0]) / table[0]) ** 0.5)
        named += ["sigma_min"] if config.sigma_min < least and config.get("timestep_type") != "continuous" else []
    return named


def _jumps_to_the_next(scheduler: Any, steps: int) -> bool:
    """Return whether each step of a loop ends where the next one begins, and the last one at the end or below."""
    copied = copy.deepcopy(scheduler)
    copied.set_timesteps(steps)
    listed = torch.as_tensor(copied.timesteps).cpu().unique().flip(0)
    jump = copied.config.num_train_timesteps // steps
    return bool((listed[:-1] - jump == listed[1:]).all()) and int(listed[-1]) - jump < 0


def guide_of(pipe: Any, given: Json, boundary: float | None = None) -> Json | None:
    """Return the spec of the guide that a pipeline's arguments stand for; None for none.

    Args:
        pipe: of diffusers.
        given: arguments of its call, with the defaults.
        boundary: between the networks of Wan 2.2, as a share of all timesteps; None for one network.
    """
    scale = given.get("true_cfg_scale", given.get("guidance_scale")) or SCALE
    if is_kind(pipe, "ZImage"):  # c + w (c - u)
        cap = given.get("cfg_normalization")
        return _cfg(1 + (given.get("guidance_scale") or 0.0), {"over": "sample", "cap": float(cap)} if cap else None)
    if is_kind(pipe, "QwenImage"):
        return _cfg(scale, {"over": "tokens"})
    if is_kind(pipe, "Lumina"):
        return _cfg(scale, {"over": "rows"} if given.get("cfg_normalization", True) else None)
    if (phi := given.get("guidance_rescale") or 0.0) and scale > 1:
        return {"name": "rescale", "scale": float(scale), "phi": float(phi)}
    if given.get("use_dynamic_cfg"):
        return {"name": "dynamic", "scale": 1.0 + float(scale)} if scale > 1 else None
    if boundary is not None and scale > 1 and (low := given.get("guidance_scale_2")) not in (None, scale):
        return {"name": "staged", "scale": float(scale), "low_scale": float(low), "boundary": float(boundary)}
    return _cfg(scale, None)


def _cfg(scale: float, renorm: Json | None) -> Json | None:
    """Return classifier-free guidance, with norms as the pipeline's, or None where its call does not guide."""
    if scale <= 1:
        return None
    return (
        {"name": "cfg", "scale": float(scale)}
        if renorm is None
        else {"name": "renorm", "scale": float(scale), **renorm}
    )


def _defaults(pipe: Any) -> Json:
    """Return the defaults of the call of a pipeline."""
    parameters = inspect.signature(type(pipe).__call__).parameters
    return {name: one.default for name, one in parameters.items() if one.default not in (inspect.Parameter.empty, None)}
