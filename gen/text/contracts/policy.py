"""The contract of a decoding policy: which of the tokens proposed at a step are committed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.text.vocabulary import entropy, likeliest

__all__ = ["CommitDecision", "DecodingPolicy", "RowState", "StepView"]

RowState = Mapping[str, Tensor]
"""What a policy or a stopping rule remembers of each text: tensors [B, ...]; rows leave it with their texts."""


@dataclass(eq=False)
class StepView:
    """Inputs of a decoding policy at one step: B texts, W queried positions of each.

    Attributes:
        logp: log p(token | committed tokens) at temperature 1, [B, W, V], float32 at least; the mask token's is -inf.
            A step overwrites those of the step before.
        tokens: ids that stand at the positions, int64 [B, W].
        sampled: ids proposed for the positions, int64 [B, W]: for masks, and for the rest if the policy `edits`.
        positions: indices on the canvas, int64 [B, W].
        masked: masks that may be committed at this step, bool [B, W].
        outside_window: masks outside of the window, bool [B, W].
        prompt_or_pad: positions that are not generated, bool [B, W].
        in_window: positions of the window, masked or not, bool [B, W].
        step: steps in this window before this one, int64 [B].
        mask_budget: masks in the window at its first step, int64 [B].
        prompt_end: first generated position, int64 [B]; fixed text may follow later, see gen.text.gaps.
        uniform: uniform(name) gives numbers [B, W] in [0, 1), a function of the text's seed, the step, the position
            and the name alone.
        resample: resample(logp) gives the ids int64 [B, W] that would have been proposed had logp [B, W, V] been this.
    """

    logp: Tensor
    tokens: Tensor
    sampled: Tensor
    positions: Tensor
    masked: Tensor
    outside_window: Tensor
    prompt_or_pad: Tensor
    in_window: Tensor
    step: Tensor
    mask_budget: Tensor
    prompt_end: Tensor
    uniform: Callable[[str], Tensor]
    resample: Callable[[Tensor], Tensor]

    @classmethod
    def of_block(
        cls,
        logp: Tensor,
        tokens: Tensor,
        mask_token_id: int,
        *,
        sampled: Tensor | None = None,
        resample: Callable[[Tensor], Tensor] | None = None,
        step: int = 0,
        prompt_or_pad: Tensor | None = None,
        uniform: Callable[[str], Tensor] | None = None,
        mask_budget: Tensor | None = None,
    ) -> StepView:
        """Return the view of blocks [B, L] that are whole texts, as engines hand them to a policy.

        Args:
            logp: see the class; W = L.
            tokens: see the class.
            mask_token_id: id of the mask token.
            sampled: None for resample(logp).
            resample: None takes the likeliest tokens.
            step: steps in the block before this one.
            prompt_or_pad: None: every position is generated.
            uniform: None: a policy that draws numbers raises UserError.
            mask_budget: None: the masks there are at step 0, else L.
        """
        masked, (b, n) = tokens == mask_token_id, tokens.shape
        none, zero = torch.zeros_like(masked), torch.zeros(b, dtype=torch.int64, device=tokens.device)

        def refuse(name: str) -> Tensor:
            raise UserError(f"this policy draws numbers ({name!r}), and here there are none")

        if mask_budget is None:
            mask_budget = masked.sum(1) if step == 0 else zero + n
        resample = resample or likeliest
        return cls(
            logp=logp,
            tokens=tokens,
            sampled=resample(logp) if sampled is None else sampled,
            positions=torch.arange(n, device=tokens.device).expand(b, n),
            masked=masked,
            outside_window=none,
            prompt_or_pad=none if prompt_or_pad is None else prompt_or_pad,
            in_window=~none,
            step=zero + step,
            mask_budget=mask_budget,
            prompt_end=zero,
            uniform=uniform or refuse,
            resample=resample,
        )

    @cached_property
    def top2(self) -> tuple[Tensor, Tensor]:
        """The two largest log-probabilities and their tokens, [B, W, 2] each; the lowest id first among equals."""
        # torch.topk promises no order among equals
        tokens = torch.stack([self.top_token, likeliest(self.logp, self.top_token)], -1)
        return self.logp.gather(-1, tokens), tokens

    @cached_property
    def top_token(self) -> Tensor:
        """The likeliest token, int64 [B, W]."""
        return likeliest(self.logp)

    @cached_property
    def confidence(self) -> Tensor:
        """The probability of the likeliest token, [B, W]: a function of the committed tokens alone."""
        return self._probability(self.top_token)

    @cached_property
    def margin(self) -> Tensor:
        """The difference of the two largest probabilities, [B, W]."""
        pair = self.top2[0].exp()
        return pair[..., 0] - pair[..., 1]

    @cached_property
    def entropy(self) -> Tensor:
        """-sum p log p in nats, [B, W]."""
        return entropy(self.logp)

    @cached_property
    def sampled_probability(self) -> Tensor:
        """The probability of the proposed token, [B, W]: an order by it is biased at temperature > 0."""
        return self.probability(self.sampled)

    def probability(self, tokens: Tensor) -> Tensor:
        """Return the probability of a token at each position, [B, W]."""
        return self.confidence if tokens is vars(self).get("top_token") else self._probability(tokens)

    def _probability(self, tokens: Tensor) -> Tensor:
        return self.logp.gather(-1, tokens[..., None])[..., 0].exp()


@dataclass(frozen=True, eq=False)
class CommitDecision:
    """Decision of a policy at one step; positions are those of the view.

    Attributes:
        commit: masks that are replaced by proposed tokens, bool [B, W].
        edit: generated tokens that are replaced by proposed ones, bool [B, W]; None for none.
        remask: generated tokens that become masks again, bool [B, W]; None for none.
        hold: texts that stay in a window without masks, bool [B]; None for none.
        tokens: ids that are written, int64 [B, W]; None for the proposed ones.
    """

    commit: Tensor
    edit: Tensor | None = None
    remask: Tensor | None = None
    hold: Tensor | None = None
    tokens: Tensor | None = None


@runtime_checkable
class DecodingPolicy(Protocol):
    """A rule that chooses the tokens which a step commits.

    Must hold: `select` is a pure function, and what it decides for a text depends on that text's row alone; it commits
    masked positions only, and unless `may_skip` at least one in every text that has any. The fields of the dataclass
    are its options: `gen decode --policy.k 2`.
    """

    @property
    def may_skip(self) -> bool:
        """True if a step may commit nothing; it then costs no evaluation of a text that did not change. Default False.

        Such a policy sees all generated positions, not the window's only, and goes without a KV plan.
        """
        return False

    @property
    def order_depends_on_samples(self) -> bool:
        """True if the chosen positions depend on the proposed tokens. Default False.

        At temperature > 0 even one token at a time is then no sample of the model's joint distribution;
        gen.text.worlds measures by how much.
        """
        return False

    @property
    def edits(self) -> bool:
        """True if committed tokens may be replaced by proposed ones, which are drawn for such policies only."""
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
    def select(self, view: StepView, state: RowState) -> tuple[CommitDecision, RowState]:
        """Choose what this step commits.

        Args:
            view: inputs of the step.
            state: what the last step returned, of the texts that are left.

        Returns:
            The decision, and the state for the next step.
        """
        ...
