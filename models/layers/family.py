"""Shared parts of all families of denoisers: sizes by name, checks of fields and arguments, the null condition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from gen.config.errors import UserError, nearest
from gen.config.fields import check_fields
from gen.config.spec import Json
from gen.diffusion.denoiser import Cond
from gen.diffusion.net import NetSpec, shape_of, sides, takes_shape

__all__ = [
    "Family",
    "FamilyNet",
    "Presets",
    "at_least",
    "check",
    "divisible",
    "join_image",
    "labels",
    "one_number_for_squares",
    "vectors",
]

Presets = Mapping[str, Json]  # fields by the preset's name


class Family:
    """Base of the specs of networks: published sizes by name; see gen.diffusion.net.NetSpec.

    A subclass is a frozen dataclass with `presets` and `build`, and for images with size, channels and classes.

    Attributes:
        presets: published sizes by name.
        size_step: what the sides of another x than one of `size` are multiples of, pixels; None where `size` alone is
            taken (gen.diffusion.net.Net).
        time_range: the largest time that the waves of the time embedding were designed for, so that time_scale becomes
            this over the largest time of the path.
    """

    presets: ClassVar[Presets]
    time_range: ClassVar[float] = 1.0

    @property
    def size_step(self) -> int | None:
        return None

    @classmethod
    def preset(cls, name: str, **changes: object) -> Self:
        """Return the spec of a preset, with fields changed; "DiT-XL/2" is also called "XL/2"."""
        return cls(**{**cls.preset_fields(name), **changes})

    @classmethod
    def preset_fields(cls, name: str) -> Json:
        """Return the fields that a preset states."""
        short = {full.rpartition("-")[2]: full for full in reversed(list(cls.presets))}  # of two alike the first wins
        full = name if name in cls.presets else short.get(name, name)
        if full not in cls.presets:
            raise UserError(f"unknown preset {name!r} of {cls.__name__}. {nearest(full, cls.presets)}")
        return dict(cls.presets[full])


class FamilyNet(nn.Module):
    """Base of the networks of families; keeps the contract gen.diffusion.net.Net.

    net(x [B, C, H, W], t [B], {"y": int64 [B]}) -> [B, C, H, W]. The label `spec.classes` is "no class"; a caption
    (gen.models.layers.captions) is none where its mask has no token.
    """

    spec: Any
    compute_dtypes = (torch.bfloat16, torch.float64)

    @property
    def conditions(self) -> tuple[str, ...]:
        """Keys of cond besides "y" that are read; all zeros of each stand for none."""
        return ("image",) if getattr(self.spec, "cond_channels", 0) else ()

    def null(self, cond: Cond) -> Cond:
        """Return cond with the label "no class", the one after the last, a grey picture and no caption."""
        cond = {**cond, **{key: torch.zeros_like(cond[key]) for key in self.conditions if key in cond}}
        if not self.spec.classes:
            return cond
        if not getattr(self.spec, "null_class", True):
            raise UserError(f"this {type(self.spec).__name__} has no class that means none: it cannot be guided by one")
        return {**cond, "y": torch.full_like(labels(self.spec, cond), self.spec.classes)}


def at_least(spec: object, **lowest: int) -> None:
    """Check all fields, see `gen.config.fields.check_fields`, and that some are not below their lowest value.

    Args:
        spec: the dataclass.
        **lowest: lowest allowed value by field name.
    """
    check_fields(spec, **{name: f"[{low}, inf)" for name, low in lowest.items()})


def one_number_for_squares(spec: Any) -> None:
    """Set a size of two equal sides to one number, so that a square has one spec.

    Args:
        spec: the dataclass, whose size is checked.
    """
    height, width = sides(spec)
    if height == width:
        object.__setattr__(spec, "size", height)


def divisible(spec: object, name: str, by: int, meaning: str = "") -> None:
    """Raise UserError for a field that is no multiple of a number.

    Args:
        spec: the dataclass.
        name: the field.
        by: the divisor.
        meaning: where the divisor comes from, such as "4 * heads".
    """
    values = getattr(spec, name)
    if any(value % by for value in (values if isinstance(values, tuple) else (values,))):
        divisor = f"{meaning}, {by}" if meaning else by
        raise UserError(f"{type(spec).__name__}.{name} {getattr(spec, name)} must be divisible by {divisor}")


def check(spec: NetSpec, x: Tensor, t: Tensor, cond: Cond, s: Tensor | None = None) -> None:
    """Raise UserError unless the arguments fit; only shapes and kinds, since values would wait for the device.

    Args:
        spec: the network's spec.
        x: must be [B, channels, height, width], or [B, *shape] of a spec with a shape; pictures of other sides than the
            spec's only if that has a size_step.
        t: must be [B].
        cond: must have "y" if there are classes.
        s: must be None: the network takes no target time.
    """
    family = type(spec).__name__
    expected = shape_of(spec) or ()
    if tuple(x.shape[1:]) != expected and not takes_shape(spec, x.shape[1:]):
        step = getattr(spec, "size_step", None)
        others = f", and other heights and widths that are multiples of {step}" if step else ""
        raise UserError(
            f"x has shape {list(x.shape)}; this {family} takes [B, {', '.join(map(str, expected))}]{others}"
        )
    if t.shape != x.shape[:1]:
        raise UserError(f"t has shape {list(t.shape)}; for this x it must be [{len(x)}]")
    if s is not None:
        raise UserError(f"a target time s was given, but this {family} is no flow map and takes only t")
    if spec.classes:
        labels(spec, cond, len(x))


def join_image(spec: Any, x: Tensor, cond: Cond) -> Tensor:
    """Return x with the channels of cond["image"] behind its own; x itself without cond_channels.

    Args:
        spec: the network's spec.
        x: [B, C, H, W].
        cond: must have "image" [B, cond_channels, H, W], floating, if there are such channels.

    Raises:
        UserError: for a picture that is missing or of another shape.
    """
    channels = getattr(spec, "cond_channels", 0)
    if not channels:
        return x
    image, wanted = cond.get("image"), [len(x), channels, *x.shape[2:]]
    if image is None or list(image.shape) != wanted or not image.is_floating_point():
        given = (
            f"given: {', '.join(cond) or 'nothing'}" if image is None else f"it is {image.dtype} {list(image.shape)}"
        )
        raise UserError(f"this {type(spec).__name__} needs cond['image'], floats {wanted}; {given}")
    return torch.cat([x, image.to(x.dtype)], 1)


def labels(spec: NetSpec, cond: Cond, rows: int | None = None) -> Tensor:
    """Return cond["y"], int64 [B]; UserError without it.

    Args:
        spec: the network's spec.
        cond: the condition.
        rows: how many labels there must be; None for any number.
    """
    if "y" not in cond:
        given = ", ".join(cond) or "nothing"
        raise UserError(f"this {type(spec).__name__} has {spec.classes} classes and needs cond['y']; given: {given}")
    y = cond["y"]
    if y.ndim != 1 or y.dtype not in (torch.int64, torch.int32) or rows not in (None, len(y)):
        many = "B" if rows is None else rows
        raise UserError(f"cond['y'] is {y.dtype} {list(y.shape)}; for this x it must be torch.int64 [{many}]")
    return y


def vectors(spec: Any, cond: Cond, rows: int) -> Tensor:
    """Return cond["vector"], floats [B, vector_width]; UserError without it, and for another shape.

    Args:
        spec: the network's, with a `vector_width` of at least 1.
        cond: the condition.
        rows: how many there must be.
    """
    vector, wanted = cond.get("vector"), [rows, spec.vector_width]
    if vector is None or list(vector.shape) != wanted or not vector.is_floating_point():
        given = (
            f"given: {', '.join(cond) or 'nothing'}" if vector is None else f"it is {vector.dtype} {list(vector.shape)}"
        )
        raise UserError(f"this {type(spec).__name__} needs cond['vector'], floats {wanted}; {given}")
    return vector
