"""CLIP score: how well images fit their prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.eval.metrics import Column, Estimate, blocks

__all__ = ["CLIPScore"]


@dataclass(frozen=True)
class CLIPScore:
    """100 times the mean over samples of the cosine, where positive, of image and prompt (Hessel et al. 2021).

    The paper's own factor is 2.5 in place of 100.
    """

    columns: ClassVar = (
        Column(
            "clip_score",
            "CLIP score",
            higher_is_better=True,
            perfect=100.0,
            note="100 times the cosine of the embeddings of a sample and its prompt",
            priority=18,
        ),
    )
    needs: ClassVar = "text"
    default: ClassVar = False

    def __call__(self, samples: Tensor, reference: Tensor) -> Estimate:
        """Compute it from embeddings [N, D] of samples and those of their prompts."""
        if samples.ndim != 2 or samples.shape != reference.shape or not len(samples):
            raise UserError(f"clip_score: embeddings {list(samples.shape)} and {list(reference.shape)}")
        pairs = zip(blocks(samples), blocks(reference), strict=True)
        cosines = torch.cat([torch.cosine_similarity(a, b, dim=1, eps=1e-12) for a, b in pairs])
        scores, n = 100 * cosines.clamp(min=0), len(samples)
        return Estimate(float(scores.mean()), float(scores.std()) / n**0.5 if n > 1 else None, n)
