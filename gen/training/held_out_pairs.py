"""Degraded pictures that samples restore: those of the held-out data of the run, beside what they were."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from gen.config.errors import UserError
from gen.config.spec import build
from gen.data.lib.tensors import content_hash
from gen.diffusion.denoiser import Cond
from gen.diffusion.noise import Noise, sample_seeds
from gen.training.objectives import Batch
from gen.training.run import run_from

__all__ = ["HeldOutPairs", "held_out_pairs"]


@dataclass(frozen=True, eq=False)
class HeldOutPairs:
    """Held-out pictures and what is left of them: sample i restores picture i // each.

    Attributes:
        data: opened.
        objective: of the run, which degrades the pictures of data without "low".
        each: samples of a picture, one after another.
        seed: of the noise of what the objective degrades.
    """

    data: Any
    objective: Any
    each: int = 1
    seed: int = 0

    def __len__(self) -> int:
        return len(self.data) * self.each

    @property
    def fingerprint(self) -> str:
        """A hash of all that decides which sample restores what."""
        return content_hash("held-out pairs", self.data.fingerprint, repr(self.objective), f"{self.each} {self.seed}")

    def check(self, n: int) -> None:
        """Raise UserError if there are no pictures for n samples.

        Args:
            n: from the first on.
        """
        if n > len(self):
            raise UserError(
                f"{n} samples, and there are {len(self.data)} held-out pictures to restore, {self.each} samples each"
            )

    def rows(self, start: int, n: int) -> tuple[Cond, Tensor]:
        """Return the condition of n samples from sample `start` on, and the pictures that they should be.

        Args:
            start: index of the first sample.
            n: number of samples.
        """
        self.check(start + n)
        pictures = torch.arange(start, start + n) // self.each
        first, last = int(pictures[0]), int(pictures[-1])
        items = default_collate([self.data[i] for i in range(first, last + 1)])
        x = items.pop("x")
        if "low" not in items:
            noise = Noise(tuple(sample_seeds(self.seed, len(x), first)))
            items = dict(self.objective.degraded(Batch(x, items, noise)).cond)
        return {key: value[pictures - first] for key, value in items.items()}, x[pictures - first]


def held_out_pairs(pipeline: Any, data: Callable[[], object], each: int = 1, seed: int = 0) -> HeldOutPairs | None:
    """Return the pairs that samples of a model restore; None for a model that sees no degraded picture.

    Args:
        pipeline: whose samples they are.
        data: returns the spec of the data that the model learned.
        each: samples of a picture.
        seed: of the noise of degraded pictures.

    Raises:
        UserError: for a model whose held-out data are not there, or have no degraded pictures.
    """
    if "low" not in getattr(getattr(pipeline, "net", None), "conditions", ()):
        return None
    why = f'{pipeline.name} restores: in Python give cond={{"low": pictures}}; its held-out data'
    try:
        held_out = build("data", data()).open("test")
    except UserError as error:
        raise UserError(f"{why} cannot be read: {error}") from None
    objective = None if pipeline.info is None else run_from(pipeline.info["run"], pipeline.folder).objective
    if "low" not in held_out[0] and getattr(objective, "operator", None) is None:
        raise UserError(f"{why} have no degraded pictures")
    return HeldOutPairs(held_out, objective, each, seed)
