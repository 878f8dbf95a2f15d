"""Softmax attention under a mask rule, over packed or separate q, k and v.

packed_attention takes qkv as one product of a linear layer lays it out; attention takes three tensors, k and v perhaps
with fewer heads or as a cache. rules.py has the mask rules, call.py the arguments that all back ends share. Back ends,
in order of preference: bmm.py (two products by oneDNN, for a CPU), tiles.py (what a rule allows, for a CPU, from
SHORTEST positions on), sdpa.py
(PyTorch's scaled_dot_product_attention), our Triton kernels in triton_kernels.py (launched by triton_launch.py),
flex_attention.py, xformers_attention.py. reference.py is the formula in float64.
"""

from gen.kernels.attention.op import attention, packed_attention
from gen.kernels.attention.rules import (
    BIDIRECTIONAL,
    Bidirectional,
    BlockCausal,
    BlockDiffusion,
    Causal,
    MaskRule,
    ScaleCausal,
)
from gen.kernels.attention.tiles import SHORTEST

__all__ = [
    "BIDIRECTIONAL",
    "SHORTEST",
    "Bidirectional",
    "BlockCausal",
    "BlockDiffusion",
    "Causal",
    "MaskRule",
    "ScaleCausal",
    "attention",
    "packed_attention",
]
