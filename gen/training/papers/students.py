"""One-step students: of teachers that gen import makes of published weights, and MeanFlow, which needs none."""

from __future__ import annotations

from dataclasses import replace

from gen.config.spec import build
from gen.diffusion.parameterisation import EDMPrecond
from gen.diffusion.path import EDM
from gen.training.ema import Classic
from gen.training.optim.adamw import AdamW
from gen.training.papers.imagenet import sit_xl_2
from gen.training.papers.pixels import imagenet64_edm2_s, long_run
from gen.training.run import Run, Sampler
from gen.training.schedules import Constant

__all__ = ["dmd2_imagenet64", "f_distill_imagenet64", "meanflow_xl_2", "scd_cifar10"]

AVERAGES = tuple(Classic(label=f"ema-{decay}", decay=float(f"0.{decay}")) for decay in ("9999", "99995", "9996"))


def dmd2_imagenet64() -> Run:
    """Distil EDM's ImageNet-64 teacher by DMD2: one step, 40,000 updates of 280 pictures.

    Sources: Yin et al. 2024, arXiv 2405.14867; tianweiy/DMD2, experiments/imagenet/
    imagenet_gan_classifier_genloss3e-3_diffusion1000_lr2e-6_scratch.sh and main/edm/train_edm.py (checked): AdamW at
    2e-6 with decay .01 and 500 updates of warm-up, 40 pictures on each of 7 GPUs, five critic updates for each of the
    student, adversarial weights .003 and .01, noise of the middle 96 % of the levels, clipping at 10, bfloat16. The
    student moves at every fifth of their iterations: 200,000 of theirs are 40,000 here. FID 1.28 takes 410,000
    iterations without the discriminator and 140,000 more with it at 5e-7.

    Differs: their discriminator is convolutions on the middle's features, here a small network of its own; a batch of
    280 is 35 on each of 8 GPUs. The teacher is what gen import makes of edm-imagenet-64x64-cond-adm.pkl.
    """
    teacher = "runs/edm-imagenet64"
    objective = build("distillers", "dmd2", gan_weight=3e-3, disc_weight=1e-2, sites=("middle",), critic_steps=5,
                      critic_times="levels", weighting="edm")  # fmt: skip
    return long_run(
        model=build("models", "ADM-64", learn_sigma=False, qkv_order="heads", dropout=0.0),
        data=imagenet64_edm2_s().data,
        objective=objective,
        path=EDM(),
        parameterisation=EDMPrecond(),
        optim=AdamW(lr=2e-6, weight_decay=0.01),
        schedule=Constant(warmup=500),
        sampler=Sampler("renoise", steps=1),
        steps=40_000,
        batch_size=280,
        clip=10.0,
        precision="bf16",
        teacher=teacher,
        init=teacher,
    )


def f_distill_imagenet64() -> Run:
    """Distil the same teacher by f-distill with the Jensen-Shannon divergence: 600,000 updates of 512 pictures.

    Sources: Xu et al. 2025, arXiv 2502.15681; NVlabs/FastGen, configs/experiments/EDM/config_f_distill_in64.py and
    methods/config_f_distill.py (checked): AdamW at 2e-6 with decay .01, adversarial weight .003, ratios from .1 to 20
    in 10 bins, share .5, clipping at 10, averages of .9999, .99995 and .9996. Their student moves at every fifth
    iteration only, so 600,000 of theirs are 120,000 here, with four critic updates each.
    """
    objective = build("distillers", "f_distill", gan_weight=3e-3, sites=("middle",), divergence="js", critic_steps=4,
                      weighting="edm")  # fmt: skip
    run = dmd2_imagenet64()
    return replace(
        run, objective=objective, schedule=Constant(), ema=AVERAGES, steps=120_000, batch_size=512, precision="no"
    )


def scd_cifar10() -> Run:
    """Distil EDM's CIFAR-10 teacher by sCM: 500,000 updates of 512 pictures.

    Sources: Lu & Song 2024, arXiv 2410.11081; NVlabs/FastGen, configs/experiments/EDM/config_scd_cifar10.py and
    methods/config_scm.py (checked): no dropout, ln tan of mean -1 and deviation 1.4, 10,000 updates of tangent warm-up,
    prior weighting, averages of .9999, .99995 and .9996, no clipping, float32, no labels.

    Differs: their optimiser is RAdam at 1e-4 (.9, .99), here AdamW. The teacher is what gen import makes of
    edm-cifar10-32x32-uncond-vp.pkl.
    """
    teacher = "runs/edm-cifar10-uncond"
    return long_run(
        model=build("models", "DDPM++-CIFAR10", dropout=0.0),
        data=build("data", "zip", path="data/cifar10-32x32-unlabelled.zip"),
        objective=build("distillers", "scm", sigma_data=0.5, prior=1.0, class_dropout=0.0),
        path=EDM(),
        parameterisation=EDMPrecond(),
        optim=AdamW(lr=1e-4, betas=(0.9, 0.99)),
        ema=AVERAGES,
        sampler=Sampler("renoise", steps=1),
        steps=500_000,
        batch_size=512,
        teacher=teacher,
        init=teacher,
    )


def meanflow_xl_2() -> Run:
    """Train MeanFlow-XL/2 on ImageNet 256 from scratch: one step, 240 epochs of 256 latents.

    Sources: Geng et al. 2025, arXiv 2505.13447; Gsunshine/meanflow, configs/default.py and run_b4.yml (checked): Adam
    (.9, .95) at 1e-4, batch 256, 240 epochs, logit of times of mean -.4 and deviation 1, three quarters of the pairs
    equal, labels dropped with .1, average .9999. Guidance inside of XL/2, omega .2 and kappa .92 up to t = .75, is that
    of NVlabs/FastGen, configs/experiments/DiT/config_mf_xl.py (checked).
    """
    network = build("models", "SiT-XL/2", time_convention="noise")
    objective = build("distillers", "meanflow", omega=0.2, kappa=0.92, guidance_interval=(0.0, 0.75))
    return replace(
        sit_xl_2(),
        model=build("models", {"name": "flow_map", "inner": network, "tell": "interval"}),
        objective=objective,
        optim=AdamW(lr=1e-4, betas=(0.9, 0.95)),
        sampler=Sampler("jump", steps=1),
        steps=1_201_200,
    )
