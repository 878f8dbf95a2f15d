"""Credit: tokens that were guessed again and again count for more (CreditDecoding)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.spec import name_of, part
from gen.samplers.decoding_policies.threshold import Threshold
from gen.text.contracts import CommitDecision, RowState, StepView

__all__ = ["Credit"]


@dataclass(frozen=True)
class Credit:
    """Another policy on logits to which each token's credit is added: alpha log(1 + credit), as are the tokens drawn.

    At each evaluation all credit decays by `decay`, and the likeliest token of each mask gains p^gamma (Wang et al.
    2025, arXiv 2510.06133; dInfer). What is drawn is then no longer the model's own, so that the joint is changed even
    one token at a time. Its memory is a table [rows, window, vocabulary].
    """

    inner: Any = part("samplers.decoding_policies", default=Threshold())
    alpha: float = 0.7
    decay: float = 0.8
    gamma: float = 0.2
    may_skip: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.alpha >= 0 or not 0 <= self.decay < 1 or not self.gamma >= 0:
            raise UserError(f"Credit: alpha = {self.alpha}, decay = {self.decay}, gamma = {self.gamma}; "
                            f"alpha >= 0, 0 <= decay < 1 and gamma >= 0")  # fmt: skip
        if self.inner.may_skip:
            raise UserError(f"Credit: counts evaluations, and {name_of(type(self.inner))} may wait without one")

    @property
    def order_depends_on_samples(self) -> bool:
        return bool(self.inner.order_depends_on_samples)

    def init(self, rows: int, length: int) -> RowState:
        inner = {f"inner.{key}": value for key, value in self.inner.init(rows, length).items()}
        return {"credit": torch.zeros(rows, 0, 0), "place": torch.zeros(rows, dtype=torch.int64), **inner}

    def select(self, view: StepView, state: RowState) -> tuple[CommitDecision, RowState]:
        gain = view.confidence**self.gamma * view.masked
        credit = self.decay * _moved(state["credit"], state["place"], view)
        credit = credit.scatter_add(2, view.top_token[..., None], gain[..., None])
        fused = (view.logp + self.alpha * credit.log1p()).log_softmax(-1)
        fused = torch.where(view.masked[..., None], fused, view.logp)
        seen = replace(view, logp=fused, sampled=view.resample(fused))
        inner = {key.removeprefix("inner."): value for key, value in state.items() if key.startswith("inner.")}
        choice, inner = self.inner.select(seen, inner)
        mine = {"credit": credit, "place": view.positions[:, 0]}
        tokens = seen.sampled if choice.tokens is None else choice.tokens
        return replace(choice, tokens=tokens), mine | {f"inner.{key}": value for key, value in inner.items()}


def _moved(credit: Tensor, place: Tensor, view: StepView) -> Tensor:
    """Credit [B, W', V] of places from `place` [B] on, as that of the view's places [B, W, V]; new ones have none."""
    if credit.shape[-1] == 0:
        return torch.zeros_like(view.logp)
    old = view.positions - place[:, None]
    none = credit.shape[1]
    index = torch.where((old >= 0) & (old < none), old, none)[..., None].expand(-1, -1, credit.shape[-1])
    return torch.nn.functional.pad(credit, (0, 0, 0, 1)).gather(1, index)
