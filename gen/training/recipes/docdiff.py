"""DocDiff on drawn text: blur and noise are undone, by a coarse network and the diffusion of what it leaves."""

from __future__ import annotations

from gen.config.spec import Json
from gen.data.drawn_text import DrawnText
from gen.diffusion.path import DDPM
from gen.training.ema import Classic
from gen.training.objectives.docdiff import DocDiff
from gen.training.optim.adamw import AdamW
from gen.training.run import Run, Sampler
from gen.training.schedules import Cosine

__all__ = ["docdiff"]

UNET: Json = {
    "name": "unet",
    "size": 32,
    "channels": 1,
    "classes": 0,
    "width": 24,
    "multipliers": (1, 2),
    "blocks": 1,
    "attention": (),
    "head_width": 16,
    "groups": 8,
}


def docdiff() -> Run:
    """Train two U-Nets of 0.4 million parameters to restore 32 x 32 crops of blurred, noisy text (DocDiff).

    `gen.load(folder).sample(cond={"low": pictures})` restores. The paper's networks are of another kind, without norms
    and attention, and of 4 million parameters each.

    Measured (2026-12-01, one thread of two shared cores of an Intel Xeon at load 6, torch 2.13, one seed): under 8
    minutes of CPU time, 20 of the clock; 216 crops of other pages, FID of the pixels of 8 x 8 patches. Euler, 5 steps:
    PSNR 21.83 dB, FID .075, and .912 of the true Laplacian's energy; 20 steps 20.63 dB, .053, .943; the mean of 4
    samples of 5 steps 22.27 dB, .082; the coarse network alone 22.29 dB, .122, .891. One such U-Net as a regression, as
    many updates: 22.03 dB, FID .098, .901. The blurred crops have 12.59 dB.
    """
    return Run(
        model={"name": "beside", "inner": {**UNET, "time_scale": 10.0}, "coarse": UNET},
        data=DrawnText(stride=8),
        objective=DocDiff(),
        path=DDPM(steps=100, beta_start=1e-5, beta_end=0.2),
        parameterisation="x0",
        optim=AdamW(lr=2e-3),
        schedule=Cosine(warmup=50),
        ema=(Classic(decay=0.99),),
        sampler=Sampler("euler", steps=5, grid="linear"),
        steps=350,
        batch_size=32,
        sample_every=0,
        validate_every=175,
        save_every=175,
    )
