"""Attention over the tokens of all processes, of which each holds an equal share, in their order.

Every process calls with its own share and gets its own share of the result. ulysses.py exchanges heads, ring.py keys
and values, usp.py both, lasp2.py the states of linear attention; patches.py has attention to keys of an earlier
evaluation, stages.py passes tokens through blocks of several processes, collectives.py has what they exchange by, and
the gathering of tokens. Beside each op stands a function that predicts its bytes; Traffic counts them. Gradients, but
for patches.py and stages.py, are those of the sum of all processes' losses.
"""

from gen.kernels.sequence_parallel.collectives import Traffic, gather_tokens, gather_tokens_bytes, local_tokens
from gen.kernels.sequence_parallel.lasp2 import lasp2_attention, lasp2_attention_bytes
from gen.kernels.sequence_parallel.ring import ring_attention, ring_attention_bytes
from gen.kernels.sequence_parallel.ulysses import ulysses_attention, ulysses_attention_bytes
from gen.kernels.sequence_parallel.usp import ProcessGrid, process_grid, usp_attention, usp_attention_bytes

__all__ = [
    "ProcessGrid",
    "Traffic",
    "gather_tokens",
    "gather_tokens_bytes",
    "lasp2_attention",
    "lasp2_attention_bytes",
    "local_tokens",
    "process_grid",
    "ring_attention",
    "ring_attention_bytes",
    "ulysses_attention",
    "ulysses_attention_bytes",
    "usp_attention",
    "usp_attention_bytes",
]
