"""ResShift on digits: half the resolution and noise are undone, by a diffusion of the residual."""

from __future__ import annotations

from gen.data.low_digits import LowDigits
from gen.diffusion.parameterisation import EDMPrecond
from gen.diffusion.path import Shift
from gen.training.ema import Classic
from gen.training.objectives.restore import Restoration
from gen.training.optim.adamw import AdamW
from gen.training.run import Run, Sampler
from gen.training.schedules import Cosine

__all__ = ["resshift"]


def resshift() -> Run:
    """Train a U-Net of 0.35 million parameters to restore 8 x 8 digits from 4 x 4 noisy ones (ResShift).

    `gen.load(folder).sample(cond={"low": pictures})` restores.

    Measured (2026-12-01, one thread of two shared cores of an Intel Xeon at load 6, torch 2.13, one seed): 4.3 minutes;
    the 360 held-out digits, features digits_cnn 4737e510: PSNR 18.24 dB, FID .447 and label accuracy .900 by 15 steps
    of the posterior kernel; the mean of 4 samples 19.20 dB, FID .537; Euler 17.88 dB, FID .479. The same U-Net as a
    regression, as many updates: 19.38 dB, FID .822, accuracy .914. So it pays 1.1 dB for half the distance. The
    enlarged picture alone has 13.34 dB.
    """
    return Run(
        model={"name": "beside", "inner": {"name": "unet", "preset": "digits", "classes": 0}},
        data=LowDigits(),
        objective=Restoration(),
        path=Shift(),
        parameterisation=EDMPrecond(sigma_data=0.3),
        optim=AdamW(lr=2e-3),
        schedule=Cosine(warmup=50),
        ema=(Classic(decay=0.999),),
        sampler=Sampler({"name": "ddim", "eta": 1.0, "kernel": "shift"}, steps=15, grid="linear"),
        steps=1500,
        batch_size=64,
        sample_every=0,
        validate_every=500,
        save_every=500,
    )
