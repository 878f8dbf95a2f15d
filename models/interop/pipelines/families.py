"""The table of the networks that diffusers' pipelines evaluate: one row for each class, of what its callers know.

What a row does not say is the same for all, and read from the call itself: names, shapes, types and sizes of all other
arguments, and that the state comes first in the output's dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from gen.config.errors import UserError, nearest
from gen.config.fields import check_fields

__all__ = ["FAMILIES", "Family", "family_given", "family_of", "is_kind", "networks_of", "plain_module"]


@dataclass(frozen=True)
class Family:
    """Convention by which pipelines call the networks of one class.

    Attributes:
        x, t: names of the arguments that hold state and time.
        unit: of the time: "step", the scheduler's timestep, which is 1000 sigma for flows; "sigma", a thousandth of it;
            "clean", 1 - sigma.
        time_factor: entry of the network's configuration that times are multiplied by; "" for none.
        rounded: whether pipelines cast the timestep to the dtype of latents and network before anything else.
        sign: of the output: -1 where the network predicts the velocity toward the data.
        branches: of classifier-free guidance: one batch with the negative rows first, one with the positive rows first,
            or separate calls, the positive one first.
        doubled: whether the state that the scheduler steps has the rows of both branches.
        constants: arguments that are no rows of a batch though their first dimension may be as long.
        interleaved: arguments whose rows alternate, negative and positive, in a batch of both.
        mask: argument that says which text tokens are real, by which shorter texts may be padded; "" for none.
        none_for_whole: whether pipelines leave out a mask by which all tokens are real.
        lists: arguments that are lists of rows of unequal length; the state then is a list of rows, each with an axis
            of one frame after its channels.
        label: argument that holds a class for each row, of as many as the configuration's num_embeds_ada_norm; "" for
            networks of texts.
    """

    x: str = "hidden_states"
    t: str = "timestep"
    unit: Literal["step", "sigma", "clean"] = "step"
    time_factor: str = ""
    rounded: bool = False
    sign: Literal[-1, 1] = 1
    branches: Literal["negative_first", "positive_first", "calls"] = "negative_first"
    doubled: bool = False
    constants: tuple[str, ...] = ()
    interleaved: tuple[str, ...] = ()
    mask: str = ""
    none_for_whole: bool = False
    lists: tuple[str, ...] = ()
    label: str = ""

    def __post_init__(self) -> None:
        check_fields(self)


FAMILIES: Mapping[str, Family] = {
    "UNet2DConditionModel": Family(x="sample", interleaved=("added_cond_kwargs.time_ids",)),
    "SD3Transformer2DModel": Family(),
    "FluxTransformer2DModel": Family(
        unit="sigma", rounded=True, branches="calls", constants=("img_ids", "txt_ids")
    ),
    "Flux2Transformer2DModel": Family(unit="sigma", rounded=True, branches="calls"),
    "PixArtTransformer2DModel": Family(mask="encoder_attention_mask"),
    "SanaTransformer2DModel": Family(time_factor="timestep_scale", mask="encoder_attention_mask"),
    "Lumina2Transformer2DModel": Family(unit="clean", sign=-1, branches="calls", mask="encoder_attention_mask"),
    "QwenImageTransformer2DModel": Family(
        unit="sigma", rounded=True, branches="calls", mask="encoder_hidden_states_mask", none_for_whole=True
    ),
    "ZImageTransformer2DModel": Family(
        x="x", t="t", unit="clean", sign=-1, branches="positive_first", lists=("cap_feats",)
    ),
    "WanTransformer3DModel": Family(branches="calls"),
    "HunyuanVideoTransformer3DModel": Family(rounded=True, branches="calls", mask="encoder_attention_mask"),
    "LTXVideoTransformer3DModel": Family(mask="encoder_attention_mask"),
    "CogVideoXTransformer3DModel": Family(),
    "DiTTransformer2DModel": Family(branches="positive_first", doubled=True, label="class_labels"),
}  # fmt: skip


def family_given(given: Family | Mapping[str, Any] | str | None) -> Family | None:
    """Return the convention that a user gives for the network of a class that the table has not.

    Args:
        given: a Family; its fields; the class of the table that is called alike; None for the table's own.

    Raises:
        UserError: for other names.
    """
    if given is None or isinstance(given, Family):
        return given
    if isinstance(given, str):
        if given not in FAMILIES:
            raise UserError(f"family = {given!r}; {nearest(given, FAMILIES)}")
        return FAMILIES[given]
    return Family(**given)


def is_kind(pipe: object, *prefixes: str) -> bool:
    """Return whether the name of a pipeline's class, or of one that it inherits from, begins with one of some words.

    Args:
        pipe: of diffusers, or of a user's subclass.
        prefixes: "Flux", "QwenImage", ...
    """
    return any(kind.__name__.startswith(prefixes) for kind in type(pipe).__mro__)


def plain_module(module: Any) -> Any:
    """Return the network itself, without torch.compile's or peft's wrapper around it.

    Args:
        module: a component of a pipeline.
    """
    while True:
        inner = getattr(module, "_orig_mod", None)
        if inner is None and hasattr(module, "get_base_model"):
            inner = module.get_base_model()
        if inner is None:
            return module
        module = inner


def family_of(module: object) -> Family:
    """Return the row of a network's class, or of the nearest class that it inherits from.

    Args:
        module: a network of diffusers.

    Raises:
        UserError: for a class that the table has not.
    """
    family = _row(module)
    if family is None:
        raise UserError(f"unknown network {type(plain_module(module)).__name__}; {_known()}")
    return family


def _row(module: object) -> Family | None:
    """Return the row of a network; None if the table has none."""
    return next(
        (FAMILIES[kind.__name__] for kind in type(plain_module(module)).__mro__ if kind.__name__ in FAMILIES), None
    )


def networks_of(pipe: Any, family: Family | None = None) -> dict[str, Any]:
    """Return the networks that a pipeline evaluates at its steps, by their name in it.

    Args:
        pipe: a pipeline of diffusers.
        family: of its unet or transformer, where the table has none; None for the table's.

    Raises:
        UserError: for what is no pipeline, and one without a network that is known.
    """
    components = getattr(pipe, "components", None)
    if not isinstance(components, Mapping) or not hasattr(pipe, "scheduler"):
        raise UserError(f"a {type(pipe).__name__} is no pipeline of diffusers with components and a scheduler")
    modules = {name: value for name, value in components.items() if isinstance(value, nn.Module)}
    if family is None:
        known = {name: value for name, value in modules.items() if _row(value) is not None}
    else:
        known = {name: v for name, v in modules.items() if name.startswith(("unet", "transformer"))}
    if not known:
        kinds = ", ".join(f"{name} {type(plain_module(value)).__name__}" for name, value in modules.items())
        raise UserError(f"{type(pipe).__name__} has no network that is known, only {kinds or 'none'}; {_known()}")
    return known


def _known() -> str:
    return (
        f"known are {', '.join(FAMILIES)}; for another give family=Family(x=..., t=..., unit=...), or one of these "
        "that is called alike"
    )
