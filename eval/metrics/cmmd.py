"""CMMD: a kernel distance between CLIP embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gen.config.fields import check_fields
from gen.eval.metrics import Column, Estimate, check_rows
from gen.eval.metrics.lib.kernels import kernel_sums, own_kernel_sums
from gen.eval.metrics.lib.rows import unit

__all__ = ["CMMD"]

SCALE = 1000.0  # as published


@dataclass(frozen=True)
class CMMD:
    """1000 times the squared MMD of unit rows with the kernel exp(-|x - y|^2 / (2 sigma^2)), diagonals included.

    Jayasumana et al. 2024, for projected image embeddings of CLIP ViT-L/14 at 336 px. 1 - k is computed by expm1 in
    float64: in float32, as published code has it, small values lose a percent. The standard error is the delta
    method's over the samples. The diagonals bias it upward as 1/N + 1/M: compare equal numbers only.

    Attributes:
        sigma: width of the kernel; 10 as published.
    """

    columns: ClassVar = (
        Column(
            "cmmd",
            "CMMD",
            note="1000 times the squared kernel distance of unit embeddings, with a wide Gaussian kernel",
            priority=88,
        ),
    )
    needs: ClassVar = "features"
    default: ClassVar = False

    sigma: float = 10.0

    def __post_init__(self) -> None:
        check_fields(self, sigma="(0, inf)")

    def __call__(self, samples: Tensor, reference: Tensor) -> Estimate:
        """Compute it from embeddings [N, D] and those of the reference [M, D], of any length above 0."""
        check_rows("cmmd", samples, reference)
        n, m = len(samples), len(reference)
        within = own_kernel_sums(samples, self._below_one, unit) / n  # [N], of 1 - k
        across = kernel_sums(samples, reference, self._below_one, unit) / m
        real = own_kernel_sums(reference, self._below_one, unit).mean() / m
        value = 2 * across.mean() - within.mean() - real
        return Estimate(SCALE * float(value), SCALE * 2 * float((across - within).std()) / n**0.5, n)

    def _below_one(self, products: Tensor) -> Tensor:
        """Return 1 - k of inner products of unit rows, |x - y|^2 = 2 - 2 x.y."""
        return -torch.expm1(products.sub_(1).div_(self.sigma**2))
