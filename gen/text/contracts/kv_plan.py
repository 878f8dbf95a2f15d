"""The contract of a KV plan: whose keys and values are computed anew at a step."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from gen.text.contracts.block_schedule import Window
from gen.text.contracts.predictor import Predictor

__all__ = ["KvPlan", "KvStep"]


@dataclass(frozen=True, eq=False)
class KvStep:
    """Inputs of a KV plan at one step of B texts.

    Attributes:
        window: where one may commit now.
        prompt_end: first generated position, int64 [B].
        text_end: end of the text, fixed text behind what is generated included, int64 [B].
        index: steps in this window before this one, int64 [B].
        new_window, new_block: True at the first step of a window, of a block; bool [B].
        clean_until: positions before it were computed when they, and all that they attend to, had no mask left,
            int64 [B]; 0 unless the predictor is block-causal.
        masked: masks of the generated part, bool [B, N].
    """

    window: Window
    prompt_end: Tensor
    text_end: Tensor
    index: Tensor
    new_window: Tensor
    new_block: Tensor
    clean_until: Tensor
    masked: Tensor


@runtime_checkable
class KvPlan(Protocol):
    """A rule that chooses the positions which a step computes; keys and values of all others come from the KV cache.

    Must hold: `span` is a pure function, and a text's span depends on that text's row alone.
    """

    @property
    def to_text_end(self) -> bool:
        """True if the computed positions always reach from the window to the end of the text. Default False."""
        return False

    @property
    def within_blocks(self) -> bool:
        """True if a span never begins before `clean_until` nor ends behind its window's block. Default False.

        It is then bounded without a look at it: no host waits for a device to know how wide it is.
        """
        return False

    def check(self, predictor: Predictor) -> None:
        """Raise UserError for a predictor that the plan does not fit; by default it fits all.

        Args:
            predictor: a network or its spec; only its `block_size` and `shift` may be read.
        """
        return

    @abstractmethod
    def span(self, step: KvStep) -> tuple[Tensor, Tensor]:
        """Return the first position that is computed and the one after the last, int64 [B] each.

        Args:
            step: inputs of the step; the span has to hold its window.
        """
        ...
