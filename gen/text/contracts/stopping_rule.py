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
        ends: positions of the canvas that are the last of their gap, bool [B, N]: an end-of-text token stands there, or
            will; what follows in the gap is dropped (gen.text.gaps.end_gaps). None for none.
    """

    done: Tensor
    fill: Tensor | None = None
    ends: Tensor | None = None


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
        self, view: StepView, tokens: Tensor, gap_start: Tensor, predictor: Predictor, state: RowState
    ) -> tuple[StopDecision, RowState]:
        """Decide after a commit which texts are finished.

        Args:
            view: inputs of the policy at this step, from before the commit.
            tokens: ids of the canvas after it, int64 [B, N].
            gap_start: first position of the gap that a position lies in, negative where it is not generated, int64
                [B, N]; a prompt without gaps is followed by one, the text.
            predictor: only its `mask_token_id` and `eos_token_ids` are read.
            state: what the last step returned, of the texts that are left.

        Returns:
            The decision, and the state for the next step.
        """
        ...
