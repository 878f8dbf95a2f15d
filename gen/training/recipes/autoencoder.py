"""An autoencoder of colour pictures, whose latents a diffusion model is then trained on."""

from __future__ import annotations

from gen.data.photographs import Photographs
from gen.training.ema import Classic
from gen.training.objectives.reconstruct import Reconstruction
from gen.training.optim.adamw import AdamW
from gen.training.run import Run
from gen.training.schedules import Cosine

__all__ = ["autoencoder"]


def autoencoder() -> Run:
    """Train an autoencoder of 32 x 32 pictures to latents of 4 x 8 x 8: L1 and a divergence of weight 1e-6.

    `gen train autoencoder --data ./photos --size 64` is that of your own pictures. It needs gen-diffusion[diffusers]
    and, for the photographs, gen-diffusion[vision].

    Measured (2026-11-30, one thread of a shared AMD EPYC at load 20, torch 2.13): 6.4 minutes; held-out crops are
    reconstructed with 26.6 dB. One seed; docs/latents.md has what a model of its latents reaches.
    """
    return Run(
        model={"name": "kl", "size": 32, "channels": 3, "classes": 9, "width": 16, "attention": False},
        data=Photographs(),
        objective=Reconstruction(),
        parameterisation="x0",
        optim=AdamW(lr=1e-3),
        schedule=Cosine(warmup=50),
        ema=(Classic(decay=0.99),),
        steps=1500,
        batch_size=32,
        sample_every=0,
        validate_every=500,
        save_every=500,
    )
