"""Pixels: CIFAR-10 and ImageNet at 64 x 64, whose zip files the dataset tool of EDM's repository writes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gen.config.spec import build
from gen.data import DataSource
from gen.diffusion.parameterisation import EDMPrecond
from gen.diffusion.path import EDM, Flow
from gen.diffusion.times import LogitNormal, LogNormal
from gen.diffusion.weighting import EDMWeighting
from gen.training.ema import Classic, Power
from gen.training.objectives.denoise import Denoising
from gen.training.objectives.uncertainty import Uncertainty
from gen.training.optim.adamw import AdamW
from gen.training.run import Run, Sampler
from gen.training.schedules import Constant, InverseSqrt

__all__ = ["NO_CLIP", "cifar10_ddpmpp", "cifar10_dit", "imagenet64_edm2_s", "long_run"]

NO_CLIP = 1e9  # a bound on the gradient's norm that none reaches


def long_run(**fields: Any) -> Run:
    """Return a run that records and saves as rarely as one of days should; nothing of it changes what is learned.

    Args:
        **fields: of Run.
    """
    every = {"log_every": 100, "sample_every": 0, "validate_every": 10_000, "save_every": 50_000}
    return Run(**{"clip": NO_CLIP, **every, **fields})


def _zip(path: str, flip: str = "no") -> DataSource:
    source: DataSource = build("data", "zip", path=path, flip=flip, holdout=0.0002)
    return source


def cifar10_ddpmpp() -> Run:
    """Train EDM's DDPM++ on CIFAR-10 with labels: a U-Net of 56 million parameters, 200 million images.

    Sources: Karras et al. 2022, arXiv 2206.00364, table 7; NVlabs/edm, train.py and training_loop.py (checked): Adam at
    1e-3 (.9, .999), batch 512, dropout .13, 10 million images of warm-up, half-life of the average .5 million images
    (.5^(512 / 500,000) = .99929 an update), ln sigma of mean -1.2 and deviation 1.2, no clipping, float32.

    Left out: their augmentation (probability .12, whose 9 numbers the network reads), with which the published FID was
    reached; without it dropout is all that holds against overfitting. Data: cifar10-32x32.zip of their dataset tool.
    """
    return long_run(
        model=build("models", "DDPM++-CIFAR10-cond"),
        data=_zip("data/cifar10-32x32.zip"),
        objective=Denoising(times=LogNormal(), weighting=EDMWeighting(), class_dropout=0.0),
        path=EDM(),
        parameterisation=EDMPrecond(),
        optim=AdamW(lr=1e-3),
        schedule=Constant(warmup=19_531),
        ema=(Classic(decay=0.99929),),
        sampler=Sampler("heun", steps=18, grid="karras"),
        steps=390_625,
        batch_size=512,
    )


def cifar10_dit() -> Run:
    """Train a DiT of S's width and depth on CIFAR-10: patches of 2 pixels, rectified flow.

    No paper publishes a result of this network: optimiser, batch and average are DiT's own for ImageNet (Peebles & Xie
    2022, arXiv 2212.09748, section 4), times Stable Diffusion 3's. The number of updates is a choice.
    """
    run = long_run(
        model=build("models", "DiT-S/2", channels=3, classes=10, time_scale=1000.0),
        data=_zip("data/cifar10-32x32.zip", flip="random"),
        objective=Denoising(times=LogitNormal()),
        path=Flow(),
        optim=AdamW(lr=1e-4),
        sampler=Sampler("heun", steps=25),
        steps=400_000,
        batch_size=256,
    )
    return replace(run, precision="bf16")


def imagenet64_edm2_s() -> Run:
    """Train EDM2-S on ImageNet at 64 x 64 pixels: a U-Net of 280 million parameters, 1024 x 2^20 images.

    Sources: Karras et al. 2023, arXiv 2312.02696, table 6; NVlabs/edm2, train_edm2.py, preset edm2-img64-s (checked):
    Adam (.9, .99) at .010 falling as 1 / sqrt from 35,000 updates on, after 10 million images of warm-up, batch 2048,
    ln sigma of mean -.8 and deviation 1.6, no dropout, no clipping, float16. Averages of deviation .05 and .10, from
    which gen ema makes that of .075, by which its FID was measured.

    Data: the zip that their dataset tool writes by --resolution=64x64 --transform=center-crop-dhariwal.
    """
    return long_run(
        model=build("models", "EDM2-img64-S", size=64),
        data=_zip("data/imagenet-64x64.zip"),
        objective=Uncertainty(times=LogNormal(-0.8, 1.6), class_dropout=0.0),
        path=EDM(),
        parameterisation=EDMPrecond(),
        optim=AdamW(lr=0.010, betas=(0.9, 0.99)),
        schedule=InverseSqrt(warmup=4883, flat=35_000),
        ema=(Power(std=0.05), Power(std=0.10)),
        sampler=Sampler("heun", steps=32, grid="karras"),
        steps=524_288,
        batch_size=2048,
        precision="fp16",
    )
