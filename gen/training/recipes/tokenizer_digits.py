"""An autoencoder of digits whose latents are held to features, the smallest of VA-VAE's kind."""

from __future__ import annotations

from gen.config.spec import build
from gen.data.digits import Digits
from gen.training.ema import Classic
from gen.training.objectives.vf import VF
from gen.training.optim.adamw import AdamW
from gen.training.run import Run
from gen.training.schedules import Cosine

__all__ = ["tokenizer_digits"]


def tokenizer_digits() -> Run:
    """Train an autoencoder of 8 x 8 digits to latents of 2 x 4 x 4, held to the features of a CNN of digits, 600 steps.

    Measured (2026-12-01, one thread of two shared Intel Xeon cores at load 3 to 5, torch 2.13; three seeds): 50 seconds
    of processor time; held-out digits come back with 24.07 +- .24 dB, and their FID in the features of digits_cnn is
    .102 +- .011. `--objective reconstruct`, 34 seconds, has 24.35 +- .35 dB and .100 +- .012: held to features, and
    against a discriminator, .29 +- .12 dB are lost and nothing of the FID is won.
    """
    patches = build("models.discriminators", "patch_gan", width=16, layers=1)
    return Run(
        model={"name": "kl", "preset": "digits"},
        data=Digits(),
        objective=VF(discriminator=patches, gan_weight=0.1, gan_start=300, vf_weight=0.1),
        parameterisation="x0",
        optim=AdamW(lr=2e-3),
        schedule=Cosine(warmup=50),
        ema=(Classic(decay=0.99),),
        steps=600,
        batch_size=64,
        sample_every=0,
        validate_every=200,
        save_every=300,
    )
