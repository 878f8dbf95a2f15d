"""Prediction of what an engine of several processes saves, from a machine's figures; nothing is run.

On two processes of a CPU it is within 18 % of what was measured (two quiet cores of an Intel Xeon, gloo,
2026-11-30; the table and the machine's figures are in docs/processes.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.kernels.sequence_parallel import gather_tokens_bytes, ring_attention_bytes, ulysses_attention_bytes
from gen.kernels.sequence_parallel.patches import patch_exchange_bytes, patch_window
from gen.kernels.sequence_parallel.stages import stage_blocks
from gen.models.engines.branches import Branches
from gen.models.engines.lib.machine import Machine
from gen.models.engines.lib.unet_cost import UNetSize
from gen.models.engines.patches import Patches
from gen.models.engines.pipefusion import PipeFusion
from gen.models.engines.sequence import Sequence

__all__ = ["Engine", "TransformerSize", "loop_seconds", "predicted_speedup"]

Engine = Patches | Sequence | PipeFusion | Branches
PRODUCTS = 5  # of a transformer's block: q, k and v, attention, its output, and two of the MLP


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

    @property
    def products(self) -> int:
        """Products of matrices, and attentions, of all blocks."""
        return PRODUCTS * self.depth

    def heads_of(self, tokens: int, kinds: int) -> Tensor:
        """Return q, k, v or k, v of some tokens, without memory."""
        return torch.empty(1, tokens, kinds, self.heads, self.width // self.heads, dtype=self.dtype, device="meta")


def loop_seconds(
    size: TransformerSize | UNetSize,
    machine: Machine,
    steps: int,
    processes: int = 1,
    engine: Engine | None = None,
    branches: int = 1,
) -> float:
    """Return the predicted seconds of one sample's loop of a solver of one evaluation a step.

    What travels while later layers or patches are computed (stale keys, the ring, tokens between stages) costs only
    what exceeds the computation where the machine overlaps the two. The slowest process counts.

    Args:
        size: of the network.
        machine: of each process.
        steps: of the loop.
        processes: how many compute each sample.
        engine: how they do; None for one process.
        branches: evaluations of a step, 2 under guidance.

    Raises:
        UserError: for an engine that does not take a U-Net.
    """
    if engine is None or processes == 1:
        return steps * branches * machine.alone(*whole_work(size))
    if isinstance(engine, Branches):
        exchange = machine.exchange(size.state * size.dtype.itemsize, 1) if branches == 2 else 0.0
        return steps * (machine.together(*whole_work(size)) + exchange)
    if isinstance(size, UNetSize):
        if not isinstance(engine, Patches):
            raise UserError(f"the engine '{type(engine).__name__.lower()}' takes no U-Net; allowed: patches, branches")
        synchronous, stale = rows_seconds(size, machine, processes, engine)
    else:
        synchronous, stale = SECONDS[type(engine)](size, machine, processes, engine)
    waiting = steps if getattr(engine, "synchronous", False) else min(steps, warm_up(engine))
    return branches * (waiting * synchronous + (steps - waiting) * stale)


def whole_work(size: TransformerSize | UNetSize) -> tuple[float, int]:
    """Return the operations of an evaluation in one process, and the products that they are in."""
    return size.flops() if isinstance(size, UNetSize) else size.flops(size.tokens, size.tokens), size.products


def warm_up(engine: Patches | Sequence | PipeFusion) -> int:
    """Return the number of steps that an engine computes synchronously before others."""
    return engine.warmup + 1 if isinstance(engine, Patches) else max(1, getattr(engine, "warmup", 0))


def rows_seconds(size: UNetSize, machine: Machine, processes: int, engine: Patches) -> tuple[float, float]:
    """Return the seconds of a synchronous evaluation and of another, of a U-Net by rows.

    Args:
        size, machine, processes, engine: as of `loop_seconds`; more than one process.
    """
    synchronous = stale = 0.0
    for part in range(processes):
        work, waited = machine.together(size.flops(part, processes), size.products), size.sent(part, processes)
        synchronous = max(synchronous, work + machine.exchange(waited, size.exchanges))
        work = machine.together(size.flops(part, processes, engine.portion), size.products)
        sent = machine.exchange(size.sent(part, processes, engine.portion), size.exchanges)
        stale = max(stale, machine.beside(work, sent))
    output = machine.exchange(size.output_sent(processes), 1)
    return synchronous + output, stale + output


def patches_seconds(size: TransformerSize, machine: Machine, processes: int, engine: Patches) -> tuple[float, float]:
    """Return the seconds of a synchronous evaluation and of another.

    Args:
        size, machine, processes, engine: as of `loop_seconds`; more than one process.
    """
    n = size.tokens // processes
    kv, output = size.heads_of(n, 2), gathered_output(size, machine, processes)
    waited = machine.exchange(size.depth * gather_tokens_bytes(kv, processes), size.depth)
    stale = 0.0
    for part in range(processes):
        keys = len(patch_window(part, processes, size.tokens, engine.portion))
        sent = size.depth * patch_exchange_bytes(kv, part, processes, engine.portion)
        work = machine.together(size.flops(n, keys), size.products)
        stale = max(stale, machine.beside(work, machine.exchange(sent, size.depth)))
    return machine.together(size.flops(n, size.tokens), size.products) + waited + output, stale + output


def sequence_seconds(size: TransformerSize, machine: Machine, processes: int, engine: Sequence) -> tuple[float, float]:
    """Return the seconds of an evaluation, twice, as `patches_seconds` does."""
    ulysses = {"ulysses": processes, "ring": 1}.get(engine.method, engine.ulysses or 1)
    ring, n = processes // ulysses, size.tokens // processes
    qkv = size.heads_of(n, 3)
    heads = machine.exchange(size.depth * ulysses_attention_bytes(qkv, ulysses), size.depth * 2 * (ulysses > 1))
    passed = machine.exchange(size.depth * ring_attention_bytes(qkv, ring), size.depth * (ring - 1))
    work = machine.together(size.flops(n, size.tokens), size.products)
    if ring > 1:
        work += size.depth * size.heads * n * size.tokens * machine.score
    seconds = heads + machine.beside(work, passed) + gathered_output(size, machine, processes)
    return seconds, seconds


def pipefusion_seconds(
    size: TransformerSize, machine: Machine, processes: int, engine: PipeFusion
) -> tuple[float, float]:
    """Return the seconds of a synchronous evaluation and of another, as `patches_seconds` does."""
    patches = engine.patches or processes
    share = max(len(stage_blocks(stage, processes, size.depth)) for stage in range(processes)) / size.depth
    patch = machine.together(size.flops(size.tokens // patches, size.tokens) * share, size.products * share)
    tokens = size.tokens * size.width * size.dtype.itemsize
    hop = machine.exchange(tokens // patches, 1)
    output = machine.exchange((processes - 1) * size.state * size.dtype.itemsize, 1)
    synchronous = machine.alone(*whole_work(size)) + (processes - 1) * machine.exchange(tokens, 1)
    return synchronous + output, (processes - 1) * (patch + hop) + patches * machine.beside(patch, hop) + output


def gathered_output(size: TransformerSize, machine: Machine, processes: int) -> float:
    """Return the seconds in which each process sends its share of the last tokens to all."""
    share = size.heads_of(size.tokens // processes, 1)
    return machine.exchange(gather_tokens_bytes(share, processes), 1)


SECONDS: dict[type, Callable[..., tuple[float, float]]] = {
    Patches: patches_seconds,
    Sequence: sequence_seconds,
    PipeFusion: pipefusion_seconds,
}


def predicted_speedup(
    size: TransformerSize | UNetSize,
    machine: Machine,
    steps: int,
    processes: int,
    engine: Engine,
    branches: int = 1,
) -> float:
    """Return how many times as fast as one process the loop is predicted to be.

    Args:
        size, machine, steps, processes, engine, branches: as of `loop_seconds`.
    """
    alone = loop_seconds(size, machine, steps, branches=branches)
    return alone / loop_seconds(size, machine, steps, processes, engine, branches)
