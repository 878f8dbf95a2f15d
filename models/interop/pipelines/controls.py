"""ControlNets of a pipeline: their own call is heard, and made before each of the network's.

A ControlNet gets the state, the time and a picture, and its residuals are arguments of the network. Which argument is
which of its results is seen by stand-ins for them in the network's call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.models.interop.pipelines.families import FAMILIES, Family, plain_module

__all__ = ["CONTROL", "Control", "Residual", "control_family", "controls_of", "residuals", "window_of"]

CONTROL = "control."  # before the keys of a ControlNet's own arguments
_SCALES = ("conditioning_scale", "controlnet_mode")  # a number, or a list with one for each of several ControlNets
_UNET = replace(FAMILIES["UNet2DConditionModel"], constants=_SCALES)
_FLUX = replace(FAMILIES["FluxTransformer2DModel"], constants=("img_ids", "txt_ids", *_SCALES))
_SD3 = replace(FAMILIES["SD3Transformer2DModel"], constants=_SCALES)

FAMILIES_OF_CONTROLS: Mapping[str, Family] = {
    "ControlNetModel": _UNET,
    "MultiControlNetModel": _UNET,
    "FluxControlNetModel": _FLUX,
    "FluxMultiControlNetModel": _FLUX,
    "SD3ControlNetModel": _SD3,
    "SD3MultiControlNetModel": _SD3,
}


@dataclass(frozen=True)
class Residual:
    """A stand-in for one of a ControlNet's results.

    Attributes:
        index: among them.
    """

    index: int


@dataclass(frozen=True, eq=False)
class Control:
    """A ControlNet and its call; a deep copy shares the module, which is not trained.

    Attributes:
        module: of diffusers.
        family: of the call.
        constants: arguments that are no rows of a batch, by name.
        keys: arguments that are rows: name -> key of the condition.
        results: arguments of the network: name -> index of the ControlNet's result.
        dtype: of the state as the ControlNet gets it.
        until: timestep at and below which it is not called.
    """

    module: Any
    family: Family
    constants: Mapping[str, Any]
    keys: Mapping[str, str]
    results: Mapping[str, int]
    dtype: torch.dtype
    until: float

    def __deepcopy__(self, memo: dict[int, Any]) -> Control:
        return self

    def active(self, step: Tensor) -> Tensor:
        """Return the rows in which it is called, bool [B].

        Args:
            step: timesteps [B].
        """
        return step > self.until


def controls_of(pipe: Any) -> dict[str, Any]:
    """Return the ControlNets that a pipeline evaluates beside its network, by their name in it.

    Args:
        pipe: of diffusers.

    Raises:
        UserError: for kinds that are not known, and for more than one component of them.
    """
    components = {name: value for name, value in pipe.components.items() if isinstance(value, nn.Module)}
    found = {name: value for name, value in components.items() if "controlnet" in name}
    for name, module in found.items():
        if _row(module) is None:
            raise UserError(
                f"{type(pipe).__name__} evaluates a {type(plain_module(module)).__name__} as its {name}, which is not "
                f"known; known are {', '.join(FAMILIES_OF_CONTROLS)}"
            )
    if len(found) > 1:
        raise UserError(f"{type(pipe).__name__} has {', '.join(found)}; one ControlNet, or one of several, is known")
    return found


def control_family(module: Any) -> Family:
    """Return the convention by which pipelines call a ControlNet.

    Args:
        module: of `controls_of`.
    """
    family = _row(module)
    assert family is not None
    return family


def _row(module: Any) -> Family | None:
    kinds = (kind.__name__ for kind in type(plain_module(module)).__mro__)
    return next((FAMILIES_OF_CONTROLS[kind] for kind in kinds if kind in FAMILIES_OF_CONTROLS), None)


def residuals(arguments: Mapping[str, Any]) -> tuple[Residual, Residual]:
    """Return stand-ins for a ControlNet's results: of a UNet's levels and its middle, or of blocks of two kinds.

    Args:
        arguments: of its call; UserError where it guesses without the prompt.
    """
    if arguments.get("guess_mode"):
        raise UserError("guess_mode leaves the ControlNet out of the branch without the prompt: allowed here is False")
    return Residual(0), Residual(1)


def window_of(call: Mapping[str, Any], timesteps: Tensor) -> float:
    """Return the timestep at and below which a pipeline no longer uses its ControlNet.

    Args:
        call: arguments of its call.
        timesteps: of the loop.

    Raises:
        UserError: for a ControlNet that begins later, and for several that end at different steps.
    """
    start, end = call.get("control_guidance_start", 0.0), call.get("control_guidance_end", 1.0)
    starts, ends = ({*v} if isinstance(v, Sequence) else {v} for v in (start, end))
    if starts != {0.0} or len(ends) > 1:
        raise UserError(
            f"control_guidance_start = {start}, control_guidance_end = {end}: a ControlNet is used from the first step "
            "on here, and several up to one step: start 0 and one end are allowed"
        )
    n, last = len(timesteps), float(ends.pop())
    dropped = [float(t) for i, t in enumerate(timesteps) if (i + 1) / n > last]
    return max(dropped, default=-1.0)
