"""A decoding policy as a remasking policy of vLLM's dllm plugin: one block in, the next block out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from gen.config.errors import UserError
from gen.text.contracts import DecodingPolicy, StepView

__all__ = ["Remasked", "Remasking"]


class Remasked(NamedTuple):
    """The result of `apply`.

    committed_token_ids: the block once it is full, else nothing. next_input_block: what to run next; all masks after a
    full block.
    """

    committed_token_ids: tuple[int, ...]
    next_input_block: tuple[int, ...]


@dataclass(frozen=True)
class Remasking:
    """A function `apply` of the block alone, as the plugin's RemaskingPolicy has it; greedy.

    Attributes:
        policy: one without memory that draws no numbers; others are refused.
        mask_token_id: id of the mask token.
    """

    policy: DecodingPolicy
    mask_token_id: int

    def __post_init__(self) -> None:
        if self.policy.init(1, 1) or self.policy.may_skip:
            raise UserError(
                f"{type(self.policy).__name__} has a memory or skips steps, and a remasking policy is a pure function"
            )

    def apply(
        self,
        *,
        input_block: Sequence[int] | None = None,
        input_draft: Sequence[int] | None = None,
        logits: Any = None,
        remasking_config: Mapping[str, Any] | None = None,
    ) -> Remasked:
        """Commit what the policy selects in one block.

        Args:
            input_block: L ids; input_draft in older versions of the plugin.
            input_draft: see input_block.
            logits: [L, V], a tensor or rows of numbers.
            remasking_config: "denoise_step_index" is the step within the block, "mask_token_id" another mask.
        """
        given = input_block if input_block is not None else input_draft
        if given is None or logits is None:
            raise UserError("apply needs input_block and logits")
        config = dict(remasking_config or {})
        mask, block = int(config.get("mask_token_id", self.mask_token_id)), torch.tensor([list(given)])
        scores = torch.as_tensor(logits).float()[None]
        if scores.shape[:2] != block.shape:
            raise UserError(f"logits have shape {list(scores.shape[1:])} for a block of {block.shape[1]} tokens")
        if scores.ndim != 3 or not 0 <= mask < scores.shape[2]:
            raise UserError(f"logits have shape {list(scores.shape[1:])}, and the mask is token {mask}")
        if bool((block == mask).any()):
            logp = scores.index_fill(-1, torch.tensor([mask]), -torch.inf).log_softmax(-1)
            view = StepView.of_block(logp, block, mask, step=int(config.get("denoise_step_index", 0)))
            decision, _ = self.policy.select(view, {})
            block = torch.where(decision.commit & view.masked, view.sampled, block)
        ids = tuple(block[0].tolist())
        return Remasked((), ids) if mask in ids else Remasked(ids, (mask,) * len(ids))
