"""Attention over the tokens of all processes, of which each holds an equal share, in their order.

ulysses.py: DeepSpeed Ulysses' two all-to-alls, LASP-2's linear attention, and the gathering of tokens. ring.py: ring
attention. Beside each op stands a function that foretells its bytes; Traffic counts them.
"""

from gen.kernels.sequence_parallel.ring import ring_attention, ring_attention_bytes
from gen.kernels.sequence_parallel.ulysses import (
    Traffic,
    gather_tokens,
    gather_tokens_bytes,
    linear_attention,
    linear_attention_bytes,
    own_tokens,
    ulysses_attention,
    ulysses_attention_bytes,
)

__all__ = [
    "Traffic",
    "gather_tokens",
    "gather_tokens_bytes",
    "linear_attention",
    "linear_attention_bytes",
    "own_tokens",
    "ring_attention",
    "ring_attention_bytes",
    "ulysses_attention",
    "ulysses_attention_bytes",
]
