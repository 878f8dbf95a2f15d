"""Captioned digits: text to image in minutes, with a small text transformer trained jointly."""

from __future__ import annotations

from gen.data.captioned_digits import CaptionedDigits, caption_words
from gen.data.captions import Captions
from gen.diffusion.times import LogitNormal
from gen.text.tokenizers.sentences import Sentences
from gen.training.ema import Classic
from gen.training.objectives.denoise import Denoising
from gen.training.optim.adamw import AdamW
from gen.training.run import Run, Sampler
from gen.training.schedules import Cosine

__all__ = ["captioned_digits"]


def captioned_digits() -> Run:
    """Train a PixArt of 0.5 million parameters on 16 x 16 digits with sentences: rectified flow, logit-normal times."""
    return Run(
        model={
            "name": "pixart",
            "patch": 4,
            "width": 96,
            "depth": 4,
            "heads": 4,
            "text_width": 64,
            "text_depth": 1,
        },
        data=Captions(CaptionedDigits(), Sentences(caption_words()), length=12),
        objective=Denoising(times=LogitNormal()),
        optim=AdamW(lr=2e-3),
        schedule=Cosine(warmup=50),
        ema=(Classic(decay=0.999),),
        sampler=Sampler("euler", steps=20, guide={"name": "cfg", "scale": 3.0}),
        steps=4000,
        batch_size=64,
        sample_every=1000,
        validate_every=500,
        save_every=1000,
    )
