"""Softmax attention under a mask rule, over packed or separate q, k and v.

attention takes qkv as one product of a linear layer lays it out, attention_qkv three tensors, with shared heads and a
cache of keys and values. rules.py has the mask rules. Back ends, in the order in which they are asked: bmm.py (two
products by oneDNN, for a CPU), sdpa.py (PyTorch's scaled_dot_product_attention), our Triton kernels in
triton_kernels.py (launched by triton_launch.py), flex_attention.py, xformers_attention.py. reference.py is the formula
in float64.
"""

from gen.kernels.attention.op import attention, attention_qkv
from gen.kernels.attention.rules import EVERYONE, Bidirectional, BlockCausal, BlockDiffusion, Causal, Rule, ScaleCausal

__all__ = [
    "EVERYONE",
    "Bidirectional",
    "BlockCausal",
    "BlockDiffusion",
    "Causal",
    "Rule",
    "ScaleCausal",
    "attention",
    "attention_qkv",
]
