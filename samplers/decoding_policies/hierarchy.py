"""Hierarchy: every run of masks is divided at its surest token, so that commits lie far apart (dInfer)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gen.config.fields import check_fields
from gen.samplers.decoding_policies.lib.score import score, top_positions
from gen.text.contracts import CommitDecision, DecodingPolicy, RowState, StepView
from gen.text.ties import TIE

__all__ = ["Hierarchy"]


@dataclass(frozen=True)
class Hierarchy(DecodingPolicy):
    """Commits the likeliest token of each run of masks, all very likely ones, and the likeliest of all.

    Divide and conquer within the window: neighbours, which depend on one another most, are seldom committed together
    (Ma et al. 2025, arXiv 2510.08666).

    Attributes:
        threshold: probability above which any token is committed.
        low: probability above which the likeliest token of a run is.
    """

    threshold: float = 0.9
    low: float = 0.4

    def __post_init__(self) -> None:
        check_fields(self, low="[0, 1]", threshold="[low, 1]")

    def select(self, view: StepView, state: RowState) -> tuple[CommitDecision, RowState]:
        confidence = score(view, "confidence")
        commit = best_of_runs(confidence, view.masked) & (confidence > self.low)
        return CommitDecision(commit | (confidence > self.threshold) | top_positions(confidence)), state


def best_of_runs(value: Tensor, masked: Tensor) -> Tensor:
    """Return where the largest value of each contiguous run of masks lies, [B, W]; the lowest position among equals."""
    before = torch.nn.functional.pad(masked[:, :-1], (1, 0))
    run = (masked & ~before).long().cumsum(-1)  # 1, 2, ... within runs
    b, w = masked.shape
    most = torch.full((b, w + 1), -torch.inf, dtype=value.dtype, device=value.device)
    best = masked & (value >= most.scatter_reduce(1, run, value, "amax").gather(1, run) - TIE)
    column = torch.where(best, torch.arange(w, device=run.device), w)
    lowest = torch.full((b, w + 1), w, device=run.device).scatter_reduce(1, run, column, "amin")
    return best & (column == lowest.gather(1, run))
