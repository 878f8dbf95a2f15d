"""A pipeline's own way to sample in our parts: the solver that is its scheduler, the guide, the number of steps."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

from gen.config.spec import Json, spec_of

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
    "TCDScheduler": {"name": "renoise"},
}
STEPS, SCALE = 50, 1.0  # where a pipeline's call has no default


class OwnSampling(NamedTuple):
    """A pipeline's own way to sample.

    Attributes:
        solver: a spec of gen.samplers.solvers.
        exact: whether the solver is the scheduler's rule, or only the nearest to it.
        steps: default of its call.
        guide: a spec of gen.samplers.guides; None for none.
    """

    solver: Json
    exact: bool
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
    solver, exact = solver_of(pipe.scheduler)
    guide = guide_of(type(pipe).__name__, given) if guided else None
    return OwnSampling(solver, exact, int(given.get("num_inference_steps") or STEPS), guide)


def solver_of(scheduler: Any) -> tuple[Json, bool]:
    """Return the spec of the solver that a scheduler of diffusers is, and whether it is the same rule.

    Args:
        scheduler: of a pipeline.
    """
    if hasattr(scheduler, "timetable"):  # of gen.as_scheduler
        return spec_of(scheduler.solver), True
    kind, config = type(scheduler).__name__, scheduler.config
    if kind in MULTISTEP:
        spec: Json = {"name": MULTISTEP[kind], "solver_order": int(config.get("solver_order", 2))}
        exact = kind in ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler") and spec["solver_order"] < 3
        exact = exact and not config.get("thresholding", False) and config.get("predict_x0", True)
        algorithm = config.get("algorithm_type", "dpmsolver++")
        if kind == "DPMSolverMultistepScheduler":
            spec |= {"kind": config.get("solver_type", "midpoint")}
            spec |= {"name": "dpmpp_sde"} if algorithm.startswith("sde") else {}
            spec |= {"compat": "diffusers"} if spec["solver_order"] == 3 else {}
            exact = exact and algorithm.endswith("++")
        if kind == "UniPCMultistepScheduler":
            spec |= {"kind": config.get("solver_type", "bh2")}
        return spec, bool(exact)
    if kind in ("DDIMScheduler", "DDPMScheduler"):
        return {"name": EXACT[kind], "clip": bool(config.get("clip_sample", False))}, True
    if kind == "FlowMatchEulerDiscreteScheduler" and config.get("stochastic_sampling"):
        return {"name": "renoise"}, True
    if kind in EXACT:
        return {"name": EXACT[kind]}, kind != "PNDMScheduler" or bool(config.get("skip_prk_steps"))
    return NEAREST.get(kind, {"name": "euler"}), False


def guide_of(pipeline: str, given: Json) -> Json | None:
    """Return the spec of the guide that a pipeline's arguments stand for; None for none.

    Args:
        pipeline: name of its class.
        given: arguments of its call, with the defaults.
    """
    scale = given.get("true_cfg_scale", given.get("guidance_scale")) or SCALE
    if pipeline.startswith("ZImage"):  # c + w (c - u)
        cap = given.get("cfg_normalization")
        return _cfg(1 + (given.get("guidance_scale") or 0.0), {"over": "sample", "cap": float(cap)} if cap else None)
    if pipeline.startswith("QwenImage"):
        return _cfg(scale, {"over": "tokens"})
    if pipeline.startswith("Lumina"):
        return _cfg(scale, {"over": "rows"} if given.get("cfg_normalization", True) else None)
    if (phi := given.get("guidance_rescale") or 0.0) and scale > 1:
        return {"name": "rescale", "scale": float(scale), "phi": float(phi)}
    if given.get("use_dynamic_cfg"):
        return {"name": "dynamic", "scale": 1.0 + float(scale)} if scale > 1 else None
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
