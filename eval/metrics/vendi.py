"""The Vendi score: the effective number of different samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gen.eval.metrics import Column, Estimate, blocks, check_rows
from gen.eval.metrics.lib.rows import unit

__all__ = ["Vendi"]


@dataclass(frozen=True)
class Vendi:
    """exp of the entropy of the eigenvalues of X X^T / N, rows of X of length 1 (Friedman & Dieng 2023).

    Between 1, all samples alike, and min(N, D). It says nothing of quality, and uses no reference. The eigenvalues are
    those of X^T X / N, [D, D]. The standard error is the delta method's: of -x^T log(X^T X / N) x over the samples.
    """

    columns: ClassVar = (
        Column(
            "vendi",
            "Vendi",
            higher_is_better=True,
            perfect=1.0,
            note="effective number of different samples in feature space, whatever their quality; 1 is the least",
            priority=24,
        ),
    )
    needs: ClassVar = "features"
    default: ClassVar = False

    def __call__(self, samples: Tensor, reference: Tensor) -> Estimate:
        """Compute it from rows [N, D]; those of the reference are not used."""
        check_rows("vendi", samples, reference)
        n, d = samples.shape
        second = torch.zeros(d, d, dtype=torch.float64)
        for part in blocks(samples):
            rows = unit(part)
            second.addmm_(rows.T, rows)
        values, vectors = torch.linalg.eigh(second / n)
        keep = values > d * torch.finfo(torch.float64).eps
        logs, vectors = values[keep].log(), vectors[:, keep]
        surprise = torch.cat([-((unit(part) @ vectors) ** 2 * logs).sum(1) for part in blocks(samples)])
        value = float(surprise.mean().exp())  # the mean is the entropy
        return Estimate(value, value * float(surprise.std()) / n**0.5, n)
