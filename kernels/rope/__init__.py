"""The RMS norm of each head and the rotary embedding, in one pass.

norm_rope is the op. Back ends: pytorch.py, and Triton in triton_kernels.py and triton_launch.py. reference.py is the
formula in float64.
"""

from gen.kernels.rope.call import Pairs
from gen.kernels.rope.op import check_norm_rope, norm_rope

__all__ = ["Pairs", "check_norm_rope", "norm_rope"]
