"""Text: bytes of Python's help pages, in blocks."""

from __future__ import annotations

from gen.config.spec import Json
from gen.data.text import Text
from gen.text.decoding import Decoding
from gen.text.mask_path import LogLinear
from gen.text.tokenizers import id_fields
from gen.training.ema import Classic
from gen.training.objectives.bd3 import BD3
from gen.training.optim.adamw import AdamW
from gen.training.run import Run
from gen.training.schedules import WSD

__all__ = ["text"]


def text() -> Run:
    """Train a block-diffusion transformer of 0.9 million parameters on the bytes of pydoc_data.topics, blocks of 16.

    Measured (2026-11-28, one core of a 2.6 GHz AMD EPYC that other work shared, torch 2.13): 5 minutes of that core; a
    bound of 3.36 bits per byte on 184 held-out windows (2.33 nats), and still falling: 3.78 after 250 steps, 3.44 after
    500. It knows the frequent short words by then; it is here to show the way, not to write. `--data.path pairs.jsonl`
    trains on prompts and responses; tests/gen/training/test_memorised_pairs.py has numbers.
    """
    data = Text()
    tokenizer = data.tokenizer
    model: Json = {
        "name": "text",
        **id_fields(tokenizer),
        "tokenizer": tokenizer,
        "length": data.length,
        "width": 128,
        "depth": 4,
        "heads": 4,
        "qk_norm": True,
        "block_size": 16,
    }
    return Run(
        model=model,
        data=data,
        objective=BD3(),
        path=LogLinear(),
        parameterisation=None,
        optim=AdamW(lr=3e-3),
        schedule=WSD(warmup=100, decay=0.4),
        ema=(Classic(decay=0.99),),
        sampler=Decoding(),
        steps=600,
        batch_size=16,
        sample_every=500,
        validate_every=250,
        save_every=500,
    )
