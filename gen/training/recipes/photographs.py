"""Photographs: the smallest model of colour pictures."""

from __future__ import annotations

from gen.config.spec import Json
from gen.data.photographs import Photographs
from gen.diffusion.times import LogitNormal
from gen.training.ema import Classic
from gen.training.objectives.denoise import Denoising
from gen.training.optim.adamw import AdamW
from gen.training.run import Run, Sampler
from gen.training.schedules import Cosine

__all__ = ["photographs", "transformer"]


def photographs() -> Run:
    """Train a U-Net of 1.4 million parameters on 32 x 32 crops of nine photographs: rectified flow, label = photograph.

    It needs gen[vision].
    """
    return Run(
        model={
            "name": "unet",
            "size": 32,
            "channels": 3,
            "classes": 9,
            "width": 32,
            "multipliers": [1, 2, 2],
            "blocks": 1,
            "attention": [8],
            "head_width": 16,
            "groups": 8,
            "time_scale": 1000.0,
        },
        data=Photographs(),
        objective=Denoising(times=LogitNormal()),
        optim=AdamW(lr=1e-3),
        schedule=Cosine(warmup=50),
        ema=(Classic(decay=0.995),),
        sampler=Sampler("heun", steps=10),
        steps=1000,
        batch_size=32,
        sample_every=500,
        validate_every=500,
        save_every=250,
    )


def transformer() -> Json:
    """Return the changes that make it a DiT of 1.3 million parameters."""
    return {
        "model": {
            "name": "dit",
            "size": 32,
            "patch": 4,
            "channels": 3,
            "classes": 9,
            "width": 128,
            "depth": 4,
            "heads": 4,
            "time_scale": 1000.0,
            "freq_shift": 1,
        },
        "steps": 2000,
    }
