"""Convolution of each channel with a few taps, along any order of the tokens.

Back ends: pytorch.py, and Triton in triton_kernels.py and triton_launch.py. reference.py is the sum in float64.
"""

from gen.kernels.short_convolution.op import short_convolution

__all__ = ["short_convolution"]
