"""Lists in blocks: the same text model with a KV cache that is exact."""

from __future__ import annotations

from dataclasses import replace

from gen.training.objectives.fast_dllm import FastDLLM
from gen.training.recipes.lists import lists
from gen.training.run import Run

__all__ = ["lists_blocks"]


def lists_blocks() -> Run:
    """Train the transformer of `lists` block-causally, in blocks of four, so that its KV cache is exact.

    Measured as there: 26 minutes. Greedy, one token a step, most certain first: .953 of all answers, 1.00 on every task
    but shuffle, .97, and replace_random, .58: where nothing was replaced so far, the last item must be, and that is
    learned last (.45 after 3000 steps), for FastDLLM counts a nearly clean text less than LLaDA does. With the KV
    plan "block" the same texts, token for token, for 36 computed positions each instead of 87. Threshold .9: the same
    share at 3.4 evaluations. BD3 instead gets .867 in 5000 steps (.47 on shuffle and on replace_random).
    """
    run = lists()
    return replace(run, model=replace(run.model, block_size=4), objective=FastDLLM(), steps=4200, batch_size=32)
