"""Convolution of each channel with a kernel as long as the sequence.

Back ends: pytorch.py, by Fourier transforms and by Toeplitz matrices, and Triton in triton_kernels.py and
triton_launch.py. reference.py is the sum in float64.
"""

from gen.kernels.long_convolution.op import long_convolution

__all__ = ["long_convolution"]
