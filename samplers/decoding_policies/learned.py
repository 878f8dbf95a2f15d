"""Learned: a small network tells from the confidences of a window which tokens are final (Learn2PD)."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from gen.config import checkpoints
from gen.config.errors import MissingDependency, UserError
from gen.config.fields import check_fields
from gen.samplers.decoding_policies.lib.score import score, top_positions
from gen.text.contracts import CommitDecision, DecodingPolicy, RowState, StepView

__all__ = ["Learned", "Filter", "window_columns", "window_values"]  # noqa: RUF022 - the plug-in comes first


class Filter(nn.Module):
    """A network from confidences [.., length] to logits [.., length] that a token is what it will be in the end.

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
        h = confidences.to(next(self.parameters()).dtype)
        for i, layer in enumerate(self.layers):
            h = layer(h.relu() if i else h)
        return h

    @classmethod
    def read(cls, file: str | Path, sha256: str | None = None) -> Filter:
        """Return a filter from its state_dict as safetensors; UserError for another file than that.

        Args:
            file: the file; in a checkpoint it may lie in shards.
            sha256: that it must have; None for any, and for shards, which the checkpoint verifies.
        """
        tensors = _from_shards(Path(file)) or _from_file(Path(file), sha256)
        weights = [tensors[f"layers.{i}.weight"] for i in range(len(tensors) // 2) if f"layers.{i}.weight" in tensors]
        if not weights or weights[0].ndim != 2:
            raise UserError(f"{file} holds no filter: its tensors are {', '.join(sorted(tensors)) or 'none'}")
        filter_ = cls(weights[0].shape[1], weights[0].shape[0], len(weights))
        try:
            filter_.load_state_dict(tensors)
        except RuntimeError as error:
            raise UserError(f"{file} holds no filter: {' '.join(str(error).split())}") from error
        return filter_.requires_grad_(False).eval()


def _from_shards(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a file that a checkpoint keeps in shards; none of any other."""
    if file.exists() or not (file.parent / "manifest.json").is_file():
        return {}
    manifest = checkpoints.read(file.parent, verify=False)
    sharded = file.name in checkpoints.file_names(manifest)
    return checkpoints.read_tensors(file.parent, file.name, manifest) if sharded else {}


def _from_file(file: Path, sha256: str | None) -> dict[str, Tensor]:
    if not file.is_file():
        raise MissingDependency(f"Filter: there is no file {file}")
    content = file.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if sha256 is not None and digest != sha256:
        raise UserError(f"{file} has sha256 {digest[:16]}..., expected {sha256[:16]}...")
    try:
        return load(content)
    except SafetensorError as error:
        raise UserError(f"{file} is damaged, or no safetensors file ({error})") from None


@dataclass(frozen=True)
class Learned(DecodingPolicy):
    """Commits the tokens that a trained filter is sure of, and always the likeliest (Bao et al. 2025, Learn2PD).

    The filter is made for windows of one length: what is committed already, or lacks in a shorter one, has
    confidence 1.

    Attributes:
        file: the filter's weights (safetensors).
        sha256: hash that the file must have; None for any.
        threshold: a token is committed if sigmoid(logit) exceeds it.
    """

    file: str
    sha256: str | None = None
    threshold: float = 0.96

    def __post_init__(self) -> None:
        check_fields(self, threshold="[0, 1]")

    @cached_property
    def filter(self) -> Filter:
        return Filter.read(self.file, self.sha256)

    def select(self, view: StepView, state: RowState) -> tuple[CommitDecision, RowState]:
        length = self.filter.length
        inside, column = window_columns(view, length)
        if bool((view.in_window & ~inside).any()):
            raise UserError(f"Learned: {self.file} is for windows of {length} tokens, and there is a longer one")
        confidence = window_values(view, torch.where(view.masked, view.confidence, 1.0), 1.0, length)
        final = self.filter.to(view.logp.device)(confidence).sigmoid() > self.threshold  # [B, length]
        commit = final.gather(1, column) & inside & view.masked
        return CommitDecision(commit | top_positions(score(view, "confidence"))), state

    def with_files_in(self, folder: Path) -> Learned:
        """Return the same, its file and hash those of a checkpoint, if that has a file of this name."""
        manifest = checkpoints.read(folder, verify=False)
        if self.file not in checkpoints.file_names(manifest):
            return self
        sha256 = manifest["files"].get(self.file, {}).get("sha256")
        return replace(self, file=str(folder / self.file), sha256=sha256)


def window_columns(view: StepView, length: int) -> tuple[Tensor, Tensor]:
    """Return which positions are among the first of their window, and their index in it, [B, W] each.

    Args:
        view: inputs of the step.
        length: how many positions of a window count.
    """
    far = torch.iinfo(torch.int64).max
    column = view.positions - torch.where(view.in_window, view.positions, far).amin(1, keepdim=True)
    inside = view.in_window & (column >= 0) & (column < length)
    return inside, torch.where(inside, column, 0)


def window_values(view: StepView, values: Tensor, empty: float, length: int) -> Tensor:
    """Return values of the first positions of each window, [B, length].

    Args:
        view: inputs of the step.
        values: a number for each queried position, [B, W].
        empty: the number where a window is shorter.
        length: how many positions of a window count.
    """
    inside, column = window_columns(view, length)
    out = torch.full((len(values), length + 1), empty, dtype=values.dtype, device=values.device)
    return out.scatter(1, torch.where(inside, column, length), values)[:, :length]
