"""Attention whose weights are a softmax of each channel over the tokens, in linear time.

Back ends: pytorch.py, and Triton in triton_kernels.py and triton_launch.py. reference.py is the formula in float64.
"""

from gen.kernels.linear_attention.op import linear_attention

__all__ = ["linear_attention"]
