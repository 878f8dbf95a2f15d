"""Attention over the tokens of all processes, of which each holds an equal share, in their order.

Every process calls with its own share and gets its own share of the result. ulysses.py exchanges heads, ring.py keys
and values, lasp2.py the states of linear attention; patches.py has attention to keys of an earlier evaluation,
collectives.py what they exchange by, and the gathering of tokens. Beside each op stands a function that predicts its
bytes; Traffic counts them. Gradients, but for patches.py, are those of the sum of all processes' losses.
"""

from gen.kernels.sequence_parallel.collectives import Traffic, gather_tokens, gather_tokens_bytes, local_tokens
from gen.kernels.sequence_parallel.lasp2 import lasp2_attention, lasp2_attention_bytes
from gen.kernels.sequence_parallel.ring import ring_attention, ring_attention_bytes
from gen.kernels.sequence_parallel.ulysses import ulysses_attention, ulysses_attention_bytes

__all__ = [
    "Traffic",
    "gather_tokens",
    "gather_tokens_bytes",
    "lasp2_attention",
    "lasp2_attention_bytes",
    "local_tokens",
    "ring_attention",
    "ring_attention_bytes",
    "ulysses_attention",
    "ulysses_attention_bytes",
]
