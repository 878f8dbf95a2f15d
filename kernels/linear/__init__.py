"""Linear layers whose weights may be packed once for oneDNN, with the activation in the same pass.

linear is the op; pack makes a PackedWeight, and unpackable says why it cannot (packed_weight.py). Back ends: onednn.py,
pytorch.py. reference.py is the formula in float64.
"""

from gen.kernels.linear.call import Activation
from gen.kernels.linear.op import linear
from gen.kernels.linear.packed_weight import PackedWeight, pack, unpackable

__all__ = ["Activation", "PackedWeight", "linear", "pack", "unpackable"]
