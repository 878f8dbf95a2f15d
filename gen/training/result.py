"""The outcome of a training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

__all__ = ["TrainResult"]


@dataclass(frozen=True)
class TrainResult:
    """The outcome of a training.

    Attributes:
        folder: the run folder.
        step: number of updates done.
        val_loss: the last validation loss; None if the run has no validation.
        names: that the run has of other packages, "my_pkg.mod:Class".
        model: the module that the run was given; None for a spec.
    """

    folder: Path
    step: int
    val_loss: float | None
    names: tuple[str, ...] = ()
    model: nn.Module | None = None

    def pipeline(self) -> Any:
        """Load the trained model."""
        from gen.pipeline import load

        return load(self.folder, allow=self.names, model=self.model)
