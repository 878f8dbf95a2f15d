"""The spec of decoding, and its result."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import name_of, part
from gen.text.contracts import BlockSchedule, DecodingPolicy, KvPlan, StepView, StoppingRule
from gen.text.gaps import DROPPED
from gen.text.mask_path import MaskPath
from gen.text.vocabulary import draw, likeliest

__all__ = ["Decoded", "Decoding", "DecodingStep", "TokenSampling", "step_counts"]


@dataclass(frozen=True)
class TokenSampling:
    """The choice of a position's token from its distribution.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_p: draws from the fewest likeliest tokens that together hold p, the one that crosses p included.
        top_k: draws from the k likeliest tokens, and those as likely as the k-th; None for all.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, temperature="[0, inf)", top_p="(0, 1]", top_k="[1, inf)")

    def draw(self, logp: Tensor, u: Tensor | None, where: Tensor | None = None) -> Tensor:
        """Return token ids [B, W] from logp [B, W, V] by one uniform number each, [B, W]; any where none is needed."""
        if self.temperature == 0 or u is None:
            return likeliest(logp)
        return draw(logp, u, self.temperature, self.top_p, self.top_k, where)


@dataclass(frozen=True)
class Decoding:
    """A way to decode: independent choices, each a name, a spec or an object that keeps its contract.

    Attributes:
        policy: which of the proposed tokens are committed (gen.samplers.decoding_policies).
        block_schedule: where one may commit (gen.samplers.block_schedules).
        kv_plan: which positions are computed anew (gen.samplers.kv_plans); None for all of them at every step.
        stopping_rules: when a text is finished early (gen.samplers.stopping_rules); one or several, None for none.
        sampling: how tokens are drawn.
        cfg_scale: classifier-free guidance, logits u + (cfg_scale + 1) (c - u), u those with the prompt, or all that is
            fixed, masked (LLaDA); 0 for none.
        suppress_tokens: ids that are never predicted.
    """

    policy: DecodingPolicy = part("samplers.decoding_policies", default="threshold")
    block_schedule: BlockSchedule = part("samplers.block_schedules", default="semi_ar")
    kv_plan: KvPlan | None = part("samplers.kv_plans", default=None)
    stopping_rules: tuple[StoppingRule, ...] = part("samplers.stopping_rules", default=("eos",))
    sampling: TokenSampling = field(default_factory=TokenSampling)
    cfg_scale: float = 0.0
    suppress_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        rules: Any = self.stopping_rules
        rules = () if rules is None else rules if isinstance(rules, (list, tuple)) else (rules,)
        object.__setattr__(self, "stopping_rules", rules)
        check_fields(self)
        if self.kv_plan is None:
            return
        if self.cfg_scale:
            raise UserError("Decoding: guidance needs two prompts' keys and values, so it goes without a kv_plan")
        if self.policy.may_skip:
            raise UserError(f"Decoding: {name_of(type(self.policy))} may skip steps: a kv_plan has nothing to save")
        for rule in self.stopping_rules:
            if rule.whole_text and not self.kv_plan.to_text_end:
                raise UserError(
                    f"Decoding: {name_of(type(rule))} looks at the whole text, and the kv_plan "
                    f"{name_of(type(self.kv_plan))} does not compute it"
                )

    def on(self, path: MaskPath | None) -> Decoding:
        """Return the same for a model that was trained on a path, which the policy may follow; None: not known."""
        follow = getattr(self.policy, "on", None)
        return self if path is None or follow is None else dataclasses.replace(self, policy=follow(path))

    def with_files_in(self, folder: Path) -> Decoding:
        """Return the same for the model of a checkpoint, in whose folder a file that the policy reads lies."""
        located = getattr(self.policy, "with_files_in", None)
        return self if located is None else dataclasses.replace(self, policy=located(folder))


@dataclass(eq=False)
class DecodingStep:
    """Texts after one step of the decoding loop.

    Attributes:
        rows: numbers of the texts that were active in it, R of them.
        tokens: their canvases, int64 [R, N], masks where nothing is committed.
        gap_start: first position of the gap that a position lies in, negative outside (gen.text.gaps), int64 [R, N].
        text_end: end of each text, int64 [R]; what lies behind is none of it.
        view: what the policy was given; the next step overwrites its log-probabilities.
        mask_token_id: id of the mask token.
    """

    rows: list[int]
    tokens: Tensor
    gap_start: Tensor
    text_end: Tensor
    view: StepView
    mask_token_id: int

    @property
    def guess(self) -> Tensor:
        """The tokens, with proposed ones instead of the masks that were queried."""
        view, n = self.view, self.tokens.shape[1]
        slots = torch.where(view.masked | view.outside_window, view.positions, n)
        proposed = pad(self.tokens, (0, 1)).scatter(1, slots, view.sampled)[:, :n]
        return torch.where(self.tokens == self.mask_token_id, proposed, self.tokens)


@dataclass(eq=False)
class Decoded:
    """Decoded texts, and what they took.

    Attributes:
        tokens: canvases of prompt, text and padding, int64 [B, N].
        gap_start: first position of the gap that a position was generated in, int64 [B, N]; gen.text.gaps.FIXED
            elsewhere, DROPPED where it is no longer text. A prompt without gaps is followed by one, its text.
        prompt_end: first generated position, int64 [B].
        text_end: end of each text, int64 [B]: after its end-of-text token, or after the fixed tokens behind its gaps.
        commit_step: the text's evaluation that committed a position, int64 [B, N]; -1 where none did.
        confidence: probability of a token when it was committed, [B, N].
        nfe: evaluations of the network for each text, int64 [B].
        nfe_full: evaluations that computed the whole canvas, int64 [B].
        computed: positions that all of them computed, int64 [B].
        reasons: what ended each text: "full", or a stopping rule's name.
        steps: steps of the loop.
        forwards: calls of the predictor.
        seconds: duration of the loop.
    """

    tokens: Tensor
    gap_start: Tensor
    prompt_end: Tensor
    text_end: Tensor
    commit_step: Tensor
    confidence: Tensor
    nfe: Tensor
    nfe_full: Tensor
    computed: Tensor
    reasons: list[str]
    steps: int = 0
    forwards: int = 0
    seconds: float = 0.0

    def text(self, i: int) -> Tensor:
        """Return the ids of text i from its first generated one on, fixed ones behind gaps included."""
        text = slice(int(self.prompt_end[i]), int(self.text_end[i]))
        return self.tokens[i, text][self.gap_start[i, text] != DROPPED]

    def fill(self, index: Sequence[int], columns: Mapping[str, Tensor], reasons: Sequence[str]) -> None:
        """Write down some texts.

        Args:
            index: numbers of the texts.
            columns: tensors of them by the names of fields.
            reasons: what ended each.
        """
        for name, column in columns.items():
            getattr(self, name)[torch.tensor(index, device=column.device)] = column
        for i, reason in zip(index, reasons, strict=True):
            self.reasons[i] = reason


def step_counts(policy: object) -> int:
    """Return the sum of the whole numbers among a policy's settings: no window takes more steps beyond its tokens.

    Args:
        policy: the policy; settings that are dataclasses are counted too.
    """
    fields = dataclasses.fields(policy) if dataclasses.is_dataclass(policy) else ()
    values = [getattr(policy, field.name) for field in fields]
    return sum(value for value in values if isinstance(value, int)) + sum(map(step_counts, values))
