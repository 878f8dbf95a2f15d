"""A verifiable reward: 1 for a right answer, 0 for a wrong one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import part
from gen.data import DataSource
from gen.diffusion.denoiser import Cond
from gen.distillers.lib.answers import is_correct

__all__ = ["Correct"]


@dataclass(frozen=True)
class Correct:
    """The reward 1 for a right answer to a prompt and 0 for another, as the data tell by right(prompt, answer).

    Attributes:
        data: data with such a method, as `lists` have; None for those that are trained on.
    """

    data: DataSource | None = part("data", default=None)

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, x: Tensor, cond: Cond) -> Tensor:
        """Return 1 or 0 for each text; cond has "prompt" and "length", where the answers begin and end, [B]."""
        data: Any = self.data
        if not hasattr(data, "right"):
            raise UserError(f"Correct: the data, {type(data).__name__}, have no right(prompt, answer) to check by")
        rows = zip(x.tolist(), cond["prompt"].tolist(), cond["length"].tolist(), strict=True)
        return torch.tensor([float(is_correct(data, row[:a], row[a:b])) for row, a, b in rows], dtype=torch.float64)

    def features(self, x: Tensor) -> Tensor:
        return x.detach().double().flatten(1)
