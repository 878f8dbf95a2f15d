"""Linear layers whose weights may be packed once for oneDNN, with the activation in the same pass.

linear is the op, pack makes packed weights, unpackable says why it cannot. Back ends: onednn.py, pytorch.py.
reference.py is the formula in float64.
"""

from gen.kernels.linear.onednn import Packed, unpackable
from gen.kernels.linear.op import Activation, linear, pack

__all__ = ["Activation", "Packed", "linear", "pack", "unpackable"]
