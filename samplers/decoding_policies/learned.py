"""Learned: a small network tells from the confidences of a window which tokens are final (Learn2PD)."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from safetensors.torch import load
from torch import Tensor, nn

from gen.config import checkpoints
from gen.config.errors import MissingDependency, UserError
from gen.samplers.decoding_policies.lib.score import first, score
from gen.text.contracts import CommitDecision, RowState, StepView

__all__ = ["Learned", "Filter", "columns", "slots"]  # noqa: RUF022 - the plug-in comes first


class Filter(nn.Module):
    """Confidences [.., length] to logits [.., length] that a token is what it will be in the end.

    `layers` linear layers with ReLU between them; the paper's, of 32 tokens, has 2 and 2,112 parameters.
    """

    def __init__(self, length: int = 32, hidden: int = 32, layers: int = 2) -> None:
        super().__init__()
        if min(length, hidden, layers) < 1:
            raise UserError(f"Filter: length = {length}, hidden = {hidden}, layers = {layers}; all at least 1")
        widths = [length, *[hidden] * (layers - 1), length]
        self.length = length
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, confidences: Tensor) -> Tensor:
        h = confidences.to(self.layers[0].weight.dtype)  # type: ignore[arg-type]
        for i, layer in enumerate(self.layers):
            h = layer(h.relu() if i else h)
        return h

    @classmethod
    def read(cls, file: str | Path, sha256: str | None = None) -> Filter:
        """A filter from its state_dict as safetensors; raises UserError for another file than that."""
        if not Path(file).is_file():
            raise MissingDependency(f"Filter: there is no file {file}")
        content = Path(file).read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if sha256 is not None and found != sha256:
            raise UserError(f"{file} has sha256 {found[:16]}..., expected {sha256[:16]}...")
        tensors = load(content)
        weights = [tensors[f"layers.{i}.weight"] for i in range(len(tensors) // 2) if f"layers.{i}.weight" in tensors]
        if not weights or weights[0].ndim != 2:
            raise UserError(f"{file} holds no filter: its tensors are {', '.join(sorted(tensors)) or 'none'}")
        made = cls(weights[0].shape[1], weights[0].shape[0], len(weights))
        try:
            made.load_state_dict(tensors)
        except RuntimeError as error:
            raise UserError(f"{file} holds no filter: {' '.join(str(error).split())}") from error
        return made.requires_grad_(False).eval()


@dataclass(frozen=True)
class Learned:
    """Commits the tokens that a trained filter is sure of, and always the likeliest (Bao et al. 2025, Learn2PD).

    file, sha256: the filter's weights (safetensors), and what they must hash to. It is made for windows of one length:
    what is committed already, or lacks in a shorter one, has confidence 1. threshold: sigmoid(logit) must exceed it.
    """

    file: str
    sha256: str | None = None
    threshold: float = 0.96
    may_skip: ClassVar[bool] = False
    order_depends_on_samples: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise UserError(f"Learned: threshold = {self.threshold}; it must be in [0, 1]")

    @cached_property
    def filter(self) -> Filter:
        return Filter.read(self.file, self.sha256)

    def init(self, rows: int, length: int) -> RowState:
        return {}

    def select(self, view: StepView, state: RowState) -> tuple[CommitDecision, RowState]:
        final = self.filter.to(view.logp.device)(self.inputs(view)).sigmoid() > self.threshold
        inside, column = self.columns(view)
        commit = final.gather(1, column) & inside & view.masked
        return CommitDecision(commit | first(score(view, "confidence"), torch.ones_like(view.step))), state

    def inputs(self, view: StepView) -> Tensor:
        """What the filter sees: [B, length]."""
        if bool((view.in_window & ~self.columns(view)[0]).any()):
            raise UserError(
                f"Learned: {self.file} is for windows of {self.filter.length} tokens, and there is a longer one"
            )
        return slots(view, torch.where(view.masked, view.confidence, 1.0), 1.0, self.filter.length)

    def columns(self, view: StepView) -> tuple[Tensor, Tensor]:
        """Which places the filter sees, and as which of its inputs, [B, W] each."""
        return columns(view, self.filter.length)

    def beside(self, folder: Path) -> Learned:
        """The same, its file and hash those of a checkpoint, if that has a file of this name."""
        found = checkpoints.read(folder, verify=False)["files"].get(self.file)
        return self if found is None else replace(self, file=str(folder / self.file), sha256=found["sha256"])


def columns(view: StepView, length: int) -> tuple[Tensor, Tensor]:
    """Which places are among the first `length` of their window, and as which of them, [B, W] each."""
    far = torch.iinfo(torch.int64).max
    column = view.positions - torch.where(view.in_window, view.positions, far).amin(1, keepdim=True)
    inside = view.in_window & (column >= 0) & (column < length)
    return inside, torch.where(inside, column, 0)


def slots(view: StepView, values: Tensor, empty: float, length: int) -> Tensor:
    """values [B, W] of the first `length` places of each window, [B, length]; `empty` where it is shorter."""
    inside, column = columns(view, length)
    out = torch.full((len(values), length + 1), empty, dtype=values.dtype, device=values.device)
    return out.scatter(1, torch.where(inside, column, length), values)[:, :length]
