"""Lists: the smallest text model whose every answer can be checked."""

from __future__ import annotations

from gen.config.spec import Json, build
from gen.data.lists import Lists
from gen.text.decoding import Decoding
from gen.text.mask_path import LogLinear
from gen.text.tokenizers import id_fields
from gen.training.ema import Classic
from gen.training.objectives.llada import LLaDA
from gen.training.optim.adamw import AdamW
from gen.training.run import Run
from gen.training.schedules import WSD

__all__ = ["lists"]


def lists() -> Run:
    """Train a transformer of 0.8 million parameters to copy, sort, shuffle and edit lists of three to six letters.

    Measured (2026-11-28, one core of a 2.6 GHz AMD EPYC that other work shared, torch 2.13): 20 minutes; 1000 held-out
    prompts, the share of right answers over all ten tasks. Greedy, one token a step, most certain first: 1.00 on every
    task at 8 evaluations; already .97 after 2000 steps. In random order .995. Two tokens a step .70, everything at once
    .68: copy, sort, reverse and *_index stay 1.00, shuffle falls to .11 and .03, replace_random to .12 and .01,
    insert_random to .09 and .01. Threshold .9: .999 at 2.7 evaluations. Validation loss .150 nats per token, where a
    perfect model would have .129.
    """
    data = Lists()
    tokenizer = data.tokenizer
    model: Json = {
        "name": "text",
        **id_fields(tokenizer),
        "length": data.shape[0],
        "width": 128,
        "depth": 4,
        "heads": 4,
        "qk_norm": True,
    }
    return Run(
        model=model,
        data=data,
        objective=LLaDA(stratified=True),
        path=LogLinear(),
        parameterisation=None,
        optim=AdamW(lr=2e-3),
        schedule=WSD(warmup=200, decay=0.3),
        ema=(Classic(decay=0.999),),
        sampler=Decoding(policy=build("samplers.decoding_policies", "topk")),
        steps=6000,
        batch_size=64,
        log_every=100,
        sample_every=1000,
        validate_every=500,
        save_every=1000,
    )
