"""The convolution kernel of a diagonal state space (S4D).

s4d_kernel is the op. Back ends: pytorch.py, direct and factored, and Triton in triton_kernels.py and triton_launch.py.
reference.py is the formula in float64.
"""

from gen.kernels.s4d.op import s4d_kernel

__all__ = ["s4d_kernel"]
