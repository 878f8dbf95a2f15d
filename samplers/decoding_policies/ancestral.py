"""Ancestral: the reverse process of masked diffusion on a grid of times (MDLM)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from gen.config.fields import check_fields
from gen.config.spec import part
from gen.text.contracts import CommitDecision, DecodingPolicy, RowState, StepView
from gen.text.mask_path import LogLinear, MaskPath

__all__ = ["Ancestral"]


@dataclass(frozen=True)
class Ancestral(DecodingPolicy):
    """Commits each token by itself with probability 1 - m(s) / m(t), m = path.masked_fraction, from t = 1 to s = 0.

    The last step commits all (Sahoo et al. 2024, section 3.2). Steps that commit nothing evaluate nothing, which is
    right for networks that do not take the time; of L tokens under LogLinear, steps (1 - (1 - 1/steps)^L) evaluations
    are expected. The steps are those of a window: with the block schedule `whole` this is MDLM's sampler.

    Attributes:
        steps: even steps of t from 1 to 0.
        path: masked fraction as a function of t; None for that of the model, and MDLM's where a predictor comes without
            one, as an exact joint distribution does.
    """

    steps: int = 128
    path: MaskPath | None = part("text.mask_path", default=None)
    may_skip: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self, steps="[1, inf)")

    def on(self, path: MaskPath) -> Ancestral:
        """Return the policy for a model of a path, unless it has its own."""
        return self if self.path is not None else replace(self, path=path)

    def commit_probability(self, step: Tensor) -> Tensor:
        """Return the probability that a masked token is committed at a step, of step's shape, float64."""
        t = ((self.steps - step).clamp(min=1).double()) / self.steps
        s = t - 1 / self.steps
        path = self.path or LogLinear()
        p = 1 - path.masked_fraction(s) / path.masked_fraction(t)
        return torch.where(step >= self.steps - 1, 1.0, p)

    def select(self, view: StepView, state: RowState) -> tuple[CommitDecision, RowState]:
        p = self.commit_probability(view.step)[:, None]
        return CommitDecision(view.masked & (view.uniform("order") < p)), state
