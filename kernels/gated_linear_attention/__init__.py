"""Linear attention whose state forgets by a gate for each channel of the keys.

Back ends: pytorch.py, in chunks. reference.py is the recurrence in float64.
"""

from gen.kernels.gated_linear_attention.op import gated_linear_attention

__all__ = ["gated_linear_attention"]
