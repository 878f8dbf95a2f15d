"""The RMS norm of each head and the rotary embedding, in one pass.

norm_rope is the op. Back ends: pytorch.py, and Triton in triton_kernels.py and triton_launch.py. reference.py is the
formula in float64.
"""

from gen.kernels.rope.op import Pairs, checked, norm_rope, prepared

__all__ = ["Pairs", "checked", "norm_rope", "prepared"]
