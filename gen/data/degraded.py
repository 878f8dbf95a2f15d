"""Degraded: pictures of another source, each with what a degradation leaves of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import digest, name_of, part, spec_of
from gen.data.lib.tensors import content_hash
from gen.diffusion.noise import derive
from gen.operators.lib.operator import OperatorSpec
from gen.operators.real_esrgan import RealESRGAN

__all__ = ["Degraded"]

DELEGATED = ("caption", "groups", "groups_at_once", "keep", "where")


@dataclass(frozen=True)
class Degraded:
    """Pictures x, and as "low" what an operator leaves of each: y = A x + noise, as a picture in [-1, 1].

    What is random of an item depends on its index and the seed; in training it is drawn anew in each epoch. A y that is
    no picture is one by its pseudo-inverse: missing pixels are 0, grey.

    Attributes:
        data: the pictures, see gen.data.
        operator: of gen.operators; one with a seed, such as real_esrgan, gfpgan, or inpaint with a mask, gets another
            seed for each item.
        noise: standard deviation of the noise of y.
        fixed: whether the operator keeps its own seed, the same for all items.
        seed: of all that is random.
    """

    data: Any = part("data")
    operator: Any = part("operators", kinds=(OperatorSpec,), default=RealESRGAN())
    noise: float = 0.0
    fixed: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, noise="[0, inf)", seed="[0, inf)")
        if not getattr(self.data, "pictures", True) or len(self.shape) != 3:
            raise UserError(f"Degraded: {name_of(type(self.data))} {list(self.shape)} holds no pictures [C, H, W]")
        self.operator.on(self.shape)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape)

    @property
    def classes(self) -> int:
        return int(self.data.classes)

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of the labels; () for none."""
        return tuple(getattr(self.data, "label_names", ()))

    def open(self, split: str) -> DegradedItems:
        """Open "train" or "test"."""
        data = self.data.open(split)
        if getattr(data, "buckets", None) is not None:
            raise UserError("Degraded: the pictures must have one size: leave out the data's buckets")
        return DegradedItems(self, data)


class DegradedItems:
    """The items of a data set, each with "low".

    Args:
        spec: of the degradation.
        data: with pictures.
    """

    def __init__(self, spec: Degraded, data: Any) -> None:
        self.spec, self.data = spec, data

    def __len__(self) -> int:
        return len(self.data)

    def __getattr__(self, name: str) -> Any:
        if name in DELEGATED:
            return getattr(self.data, name)
        raise AttributeError(name)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the pictures' and of the degradation."""
        spec = self.spec
        return content_hash(
            "degraded", self.data.fingerprint, digest(spec_of(spec.operator)), f"{spec.noise} {spec.fixed} {spec.seed}"
        )

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return self._with_low(self.data[i], derive("degraded", self.spec.seed, i))

    def draw(self, i: int, key: int) -> dict[str, Tensor]:
        """Return item i under the random choices of a key, those of `data` and of the degradation.

        Args:
            i: index in [0, len(data)).
            key: of the choices.
        """
        item = self.data.draw(i, key) if hasattr(self.data, "draw") else self.data[i]
        return self._with_low(item, derive("degraded", self.spec.seed, key))

    def draw_batch(self, rows: Sequence[int], keys: Sequence[int]) -> dict[str, Tensor]:
        """Return items under the random choices of their keys, stacked.

        Args:
            rows: indices.
            keys: one each.
        """
        stacked: dict[str, Tensor] = default_collate([self.draw(i, key) for i, key in zip(rows, keys, strict=True)])
        return stacked

    @cached_property
    def _fixed(self) -> Any:
        return self.spec.operator.on(self.spec.shape)

    def _with_low(self, item: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
        spec = self.spec
        if spec.fixed or not hasattr(spec.operator, "seed"):
            operator = self._fixed
        else:
            operator = replace(spec.operator, seed=seed).on(spec.shape)
        y = operator.A(item["x"][None])
        if spec.noise:
            draw = torch.Generator().manual_seed(derive("noise", seed))
            y = y + spec.noise * torch.randn(y.shape, generator=draw, dtype=y.dtype)
        return {**item, "low": operator.picture(y)[0]}
