"""Norms, their modulation by a condition (adaLN), gates and residual sums.

modulated_norm, gated_residual, and gated_residual_norm, which is one after the other in one pass. Back ends:
pytorch.py, and Triton in triton_kernels.py and triton_launch.py. reference.py has the formulas in float64.
"""

from gen.kernels.norm.call import NormKind
from gen.kernels.norm.op import gated_residual, gated_residual_norm, modulated_norm

__all__ = ["NormKind", "gated_residual", "gated_residual_norm", "modulated_norm"]
