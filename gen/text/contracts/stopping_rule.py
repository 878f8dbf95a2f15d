"""The contract of a stopping rule: when a text is finished before its last mask is."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from gen.text.contracts.policy import RowState, StepView
from gen.text.contracts.predictor import Predictor

__all__ = ["StopDecision", "StoppingRule"]


@dataclass(frozen=True, eq=False)
class StopDecision:
    """Decision of a stopping rule after one step.

    Attributes:
        done: texts that are finished, bool [B].
        fill: texts whose masks are first filled with their likeliest tokens, bool [B]; None for none.
        text_end: new end of each generated text, int64 [B], at most the old one; None for the old one.
    """

    done: Tensor
    fill: Tensor | None = None
    text_end: Tensor | None = None


@runtime_checkable
class StoppingRule(Protocol):
    """A rule that ends texts before their last mask is filled.

    Must hold: `check` is a pure function, and what it decides for a text depends on that text's row alone.
    """

    @property
    def whole_text(self) -> bool:
        """True if the view has to hold all positions that are generated, not only the window's. Default False."""
        return False

    def init(self, rows: int, length: int) -> RowState:
        """Return the state before the first step; {} by default.

        Args:
            rows: texts that are decoded together.
            length: tokens of a canvas, prompt included.

        Returns:
            Tensors [rows, ...] by name.
        """
        return {}

    @abstractmethod
    def check(
        self, view: StepView, tokens: Tensor, text_end: Tensor, predictor: Predictor, state: RowState
    ) -> tuple[StopDecision, RowState]:
        """Decide after a commit which texts are finished.

        Args:
            view: inputs of the policy at this step, from before the commit.
            tokens: ids of the canvas after it, int64 [B, N].
            text_end: end of the generated part, int64 [B]; it begins at view.prompt_end.
            predictor: only its `mask_token_id` and `eos_token_ids` are read.
            state: what the last step returned, of the texts that are left.

        Returns:
            The decision, and the state for the next step.
        """
        ...
