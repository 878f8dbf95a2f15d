"""Prediction of what an engine of several processes saves, from a machine's figures; nothing is run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gen.config.fields import check_fields
from gen.kernels.sequence_parallel import gather_tokens_bytes, ring_attention_bytes, ulysses_attention_bytes
from gen.kernels.sequence_parallel.patches import patch_exchange_bytes, patch_window
from gen.models.engines.branches import Branches
from gen.models.engines.patches import Patches
from gen.models.engines.sequence import Sequence

__all__ = ["Machine", "TransformerSize", "loop_seconds", "predicted_speedup"]

METHODS = {"ulysses": ulysses_attention_bytes, "ring": ring_attention_bytes}


@dataclass(frozen=True)
class Machine:
    """One process's share of a machine.

    Attributes:
        flops: floating-point operations per second that it reaches in a transformer.
        bandwidth: bytes per second that it sends, while it receives as many.
        latency: seconds that an exchange takes whatever its size.
    """

    flops: float
    bandwidth: float
    latency: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, flops="(0, inf)", bandwidth="(0, inf)", latency="[0, inf)")

    def seconds(self, sent: int, exchanges: int) -> float:
        """Return the time of so many exchanges, of so many bytes together."""
        return sent / self.bandwidth + exchanges * self.latency


@dataclass(frozen=True)
class TransformerSize:
    """A transformer's evaluation on one sample, in the numbers that its costs depend on.

    Attributes:
        tokens, width, depth, heads: of its blocks.
        mlp_ratio: of the width, the MLP's hidden layer.
        state: numbers in x.
        dtype: of what is computed and sent.
    """

    tokens: int
    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    state: int = 0
    dtype: torch.dtype = torch.bfloat16

    def flops(self, queries: int, keys: int) -> float:
        """Return the operations of all blocks on some tokens, which attend to some keys.

        8 width^2 of q, k, v and their output, 4 mlp_ratio width^2 of the MLP and 4 keys width of the attention.
        """
        return self.depth * queries * self.width * ((8 + 4 * self.mlp_ratio) * self.width + 4 * keys)

    def heads_of(self, tokens: int, kinds: int) -> Tensor:
        """Return q, k, v or k, v of some tokens, without memory."""
        return torch.empty(1, tokens, kinds, self.heads, self.width // self.heads, dtype=self.dtype, device="meta")


def loop_seconds(
    size: TransformerSize,
    machine: Machine,
    steps: int,
    processes: int = 1,
    engine: Patches | Sequence | Branches | None = None,
    branches: int = 1,
) -> float:
    """Return the predicted seconds of one sample's loop of a solver of one evaluation a step.

    What travels while later layers are computed (stale keys, the ring) costs only what exceeds the computation. The
    slowest process counts.

    Args:
        size: of the network.
        machine: of each process.
        steps: of the loop.
        processes: how many compute each sample.
        engine: how they do; None for one process.
        branches: evaluations of a step, 2 under guidance.
    """
    whole = size.flops(size.tokens, size.tokens) / machine.flops
    if engine is None or processes == 1:
        return steps * branches * whole
    if isinstance(engine, Branches):
        exchange = machine.seconds(size.state * size.dtype.itemsize, 1) if branches == 2 else 0.0
        return steps * (whole + exchange)
    n = size.tokens // processes
    output = machine.seconds(gather_tokens_bytes(size.heads_of(n, 1), processes), 1)
    if isinstance(engine, Sequence):
        sent = size.depth * METHODS[engine.method](size.heads_of(n, 3), processes)
        exchange = machine.seconds(sent, size.depth * (2 if engine.method == "ulysses" else processes - 1))
        part = whole / processes
        return steps * branches * (output + (max(part, exchange) if engine.method == "ring" else part + exchange))
    kv = size.heads_of(n, 2)
    waited = machine.seconds(size.depth * gather_tokens_bytes(kv, processes), size.depth)
    synchronous = steps if engine.synchronous else min(steps, engine.warmup + 1)
    stale = 0.0
    for part in range(processes):
        keys = len(patch_window(part, processes, size.tokens, engine.portion))
        sent = size.depth * patch_exchange_bytes(kv, part, processes, engine.portion)
        stale = max(stale, size.flops(n, keys) / machine.flops, machine.seconds(sent, size.depth))
    waiting = synchronous * (whole / processes + waited)
    return branches * (waiting + (steps - synchronous) * stale + steps * output)


def predicted_speedup(
    size: TransformerSize,
    machine: Machine,
    steps: int,
    processes: int,
    engine: Patches | Sequence | Branches,
    branches: int = 1,
) -> float:
    """Return how many times as fast as one process the loop is predicted to be.

    Args:
        size, machine, steps, processes, engine, branches: as of `loop_seconds`.
    """
    alone = loop_seconds(size, machine, steps, branches=branches)
    return alone / loop_seconds(size, machine, steps, processes, engine, branches)
