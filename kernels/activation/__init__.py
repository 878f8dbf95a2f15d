"""Activations between the products of an MLP.

swiglu, gelu_tanh (with its bias) and rational (GR-KAN's learned rational functions). Back ends: pytorch.py, and Triton
in triton_kernels.py (the kernels) and triton_launch.py (their operators). reference.py is the formula in float64.
"""

from gen.kernels.activation.op import gelu_tanh, rational, swiglu

__all__ = ["gelu_tanh", "rational", "swiglu"]
