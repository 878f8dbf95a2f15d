"""Checks of a pipeline's call before it is made: names of arguments, sizes, caches; and its errors in one line."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from gen.config.errors import UserError, nearest, shown
from gen.config.fields import THEIRS
from gen.models.interop.pipelines.families import Family, is_kind, networks_of, plain_module

__all__ = ["check_call", "check_no_cache", "check_size", "in_one_line", "parameters_of"]

T = TypeVar("T")
PACKED = ("Flux", "QwenImage")  # classes of pipelines that pack 2 x 2 latents
OWN = ("num_inference_steps", "guidance_scale", "guidance_rescale", "true_cfg_scale", "negative_prompt")  # kept
OURS = {"prompt": "prompt", "callback": "callback"} | {  # arguments of pipelines that are given to `sample` here
    key: ours[0] for key, ours in THEIRS.items() if key not in (*OWN, "prompt")
}


def parameters_of(pipe: Any) -> Mapping[str, inspect.Parameter]:
    """Return the arguments of a pipeline's call.

    Args:
        pipe: of diffusers.
    """
    return inspect.signature(type(pipe).__call__).parameters


def check_call(pipe: Any, call: Mapping[str, Any]) -> None:
    """Refuse arguments that a pipeline's call has not, or that `sample` gives it.

    Args:
        pipe: of diffusers.
        call: its arguments.
    """
    allowed, name = parameters_of(pipe), type(pipe).__name__
    for key, value in call.items():
        if key in OURS and key in allowed and value is not None:
            raise UserError(f"load_diffusers: {key} is given to sample, as {OURS[key]}")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"load_diffusers: {key} = {value}; it must be finite")
        if key not in allowed:
            raise UserError(f"{name} has no argument {key!r}. {nearest(key, [*allowed][1:])}")


def check_size(pipe: Any, call: Mapping[str, Any], family: Family | None = None) -> None:
    """Refuse sizes of which a pipeline would take others instead.

    Args:
        pipe: of diffusers.
        call: its arguments.
        family: of a network that the table has not.
    """
    name = type(pipe).__name__
    binned = "use_resolution_binning" in parameters_of(pipe) and call.get("use_resolution_binning", True)
    step = _size_step(pipe, family)
    for side in ("height", "width"):
        value = call.get(side)
        if value is None:
            continue
        if not isinstance(value, int) or value < 1:
            raise UserError(f"{side} = {shown(value)}; it must be a positive whole number of pixels")
        if value % step and not binned:
            near = sorted({max(step, value // step * step), (value // step + 1) * step})
            raise UserError(
                f"{side} = {value}: {name} takes multiples of {step}, such as {' or '.join(map(str, near))}"
            )
    frames, step = call.get("num_frames"), _frame_step(pipe)
    if frames is not None and (not isinstance(frames, int) or frames < 1 or (frames - 1) % step):
        raise UserError(
            f"num_frames = {shown(frames)}: {name} takes 1, {step + 1}, {2 * step + 1}, {3 * step + 1}, ..."
        )


def _size_step(pipe: Any, family: Family | None) -> int:
    """Return the number of pixels whose multiples a pipeline's height and width are."""
    names = ("vae_scale_factor_spatial", "vae_spatial_compression_ratio", "vae_scale_factor")
    scale = next((int(value) for key in names if (value := getattr(pipe, key, None))), 1)
    patch = 2
    if not is_kind(pipe, *PACKED):
        config = plain_module(next(iter(networks_of(pipe, family).values()))).config
        patch = config.get("patch_size", 1) or 1
        patch = patch if isinstance(patch, int) else patch[-1]
    checks = inspect.getsource(type(pipe).check_inputs) if hasattr(type(pipe), "check_inputs") else ""
    return math.lcm(scale * patch, *map(int, re.findall(r"height % (\d+) != 0", checks)))


def _frame_step(pipe: Any) -> int:
    names = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio")
    return next((int(value) for key in names if (value := getattr(pipe, key, None))), 1)


def check_no_cache(pipe: Any, family: Family | None = None) -> None:
    """Refuse a cache beside one of diffusers' own.

    Args:
        pipe: of diffusers.
        family: of a network that the table has not.
    """
    for name, module in networks_of(pipe, family).items():
        if getattr(plain_module(module), "is_cache_enabled", False):
            raise UserError(f"a cache of diffusers is on, and two caches spoil each other: pipe.{name}.disable_cache()")


def in_one_line(pipe: Any, run: Callable[[], T]) -> T:
    """Return what a function returns, or raise the error of a pipeline's own checks as UserError.

    Args:
        pipe: of diffusers, for the message.
        run: calls it.
    """
    try:
        return run()
    except UserError:
        raise
    except (ValueError, TypeError, AttributeError, KeyError, IndexError, RuntimeError) as error:
        raise UserError(f"{type(pipe).__name__} refuses this call: {shown(str(error), 300)}") from error
