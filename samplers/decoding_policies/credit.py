"""Credit: tokens that were predicted again and again count for more (CreditDecoding)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import name_of, part
from gen.samplers.decoding_policies.threshold import Threshold
from gen.text.contracts import CommitDecision, DecodingPolicy, RowState, StepView

__all__ = ["Credit"]


@dataclass(frozen=True)
class Credit(DecodingPolicy):
    """Another policy on logits to which each token's credit is added: alpha log(1 + credit).

    At each evaluation all credit decays, and the likeliest token of each mask gains p^gamma (Wang et al. 2025,
    arXiv 2510.06133; dInfer). Tokens are drawn from the fused logits too, so that the joint distribution is no longer
    the model's even one token at a time. Its memory is a table [rows, window, vocabulary].

    Attributes:
        inner: the policy that sees the fused logits.
        alpha: weight of log(1 + credit).
        decay: factor of all credit at each evaluation.
        gamma: exponent of the probability that a token gains.
    """

    inner: DecodingPolicy = part("samplers.decoding_policies", default=Threshold())
    alpha: float = 0.7
    decay: float = 0.8
    gamma: float = 0.2

    def __post_init__(self) -> None:
        check_fields(self, alpha="[0, inf)", decay="[0, 1)", gamma="[0, inf)")
        if self.inner.may_skip:
            raise UserError(f"Credit: counts evaluations, and {name_of(type(self.inner))} may skip some")

    @property
    def order_depends_on_samples(self) -> bool:
        return self.inner.order_depends_on_samples

    @property
    def edits(self) -> bool:
        return self.inner.edits

    def init(self, rows: int, length: int) -> RowState:
        inner = {f"inner.{key}": value for key, value in self.inner.init(rows, length).items()}
        return {"credit": torch.zeros(rows, 0, 0), "first": torch.zeros(rows, dtype=torch.int64), **inner}

    def select(self, view: StepView, state: RowState) -> tuple[CommitDecision, RowState]:
        gain = view.confidence**self.gamma * view.masked
        credit = self.decay * _moved(state["credit"], state["first"], view)
        credit = credit.scatter_add(2, view.top_token[..., None], gain[..., None])
        fused = (view.logp + self.alpha * credit.log1p()).log_softmax(-1)
        fused = torch.where(view.masked[..., None], fused, view.logp)
        fused_view = replace(view, logp=fused, sampled=view.resample(fused))
        inner = {key.removeprefix("inner."): value for key, value in state.items() if key.startswith("inner.")}
        decision, after = self.inner.select(fused_view, inner)
        tokens = fused_view.sampled if decision.tokens is None else decision.tokens
        inner = {f"inner.{key}": value for key, value in after.items()}
        return replace(decision, tokens=tokens), {"credit": credit, "first": view.positions[:, 0], **inner}


def _moved(credit: Tensor, first: Tensor, view: StepView) -> Tensor:
    """Return credit [B, W', V] of positions from `first` [B] on as that of the view's, [B, W, V]; new ones have
    none.
    """
    if credit.shape[-1] == 0:
        return torch.zeros_like(view.logp)
    old = view.positions - first[:, None]
    none = credit.shape[1]
    index = torch.where((old >= 0) & (old < none), old, none)[..., None].expand(-1, -1, credit.shape[-1])
    return torch.nn.functional.pad(credit, (0, 0, 0, 1)).gather(1, index)
