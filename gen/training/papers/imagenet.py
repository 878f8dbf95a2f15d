"""ImageNet at 256 x 256 in an autoencoder's latents: transformers, and their alignment with DINOv2."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gen.config.spec import Json, build
from gen.data import DataSource
from gen.diffusion.parameterisation import Eps
from gen.diffusion.path import DDPM
from gen.diffusion.times import LogitNormal, Shifted, Uniform
from gen.training.ema import Classic
from gen.training.objectives.denoise import Denoising
from gen.training.objectives.dfm import DFM
from gen.training.objectives.reg import REG
from gen.training.objectives.repa import REPA
from gen.training.objectives.urepa import UREPA
from gen.training.optim.adamw import AdamW
from gen.training.papers.pixels import long_run
from gen.training.run import Run, Sampler
from gen.training.schedules import WSD

__all__ = [
    "ddt_xl_2", "dfm_xl_2", "dit_xl_2", "lightningdit_xl_1", "rae_dit_dh_xl", "reg_xl_2", "repa_xl_2", "sd_latents",
    "sit_xl_2", "urepa_xl_2",
]  # fmt: skip

SDE: Json = {"solver": {"name": "sit_sde", "last": "mean"}, "grid": {"name": "linear", "last": 0.04}, "steps": 250}


def sd_latents(features: bool = False) -> DataSource:
    """Return the latents of Stable Diffusion's autoencoder, mirrored too, a folder of gen encode.

    Args:
        features: whether DINOv2-B's tokens are stored beside them.
    """
    return _latents("data/imagenet256-sd", scale=0.18215, features=features)


def _latents(path: str, **fields: Any) -> DataSource:
    source: DataSource = build("data", "latents", path=path, flip=True, num_classes=1000, holdout=0.0004, **fields)
    return source


def _cfg(scale: float, until: float | None = None, channels: int | None = None) -> Json:
    """Return guidance up to a time t of the flow path, whose sigma / alpha is t / (1 - t)."""
    interval = None if until is None else [0.0, until / (1 - until)]
    return {"name": "cfg", "scale": scale, "interval": interval, "channels": channels}


def dit_xl_2() -> Run:
    """Train DiT-XL/2 on ImageNet 256: noise prediction on DDPM's table, 7 million updates of 256 latents.

    Sources: Peebles & Xie 2022, arXiv 2212.09748, section 4 and table 4; facebookresearch/DiT, train.py (checked):
    AdamW at 1e-4, no decay, warm-up or clipping, average .9999, labels dropped with .1, 1000 linear betas, flips, TF32.

    Left out: the loss of the learned variances, so half of the last layer stays as it began and sampling has the
    table's own. FID by ancestral steps, guidance 1.5 on three of four channels.
    """
    return long_run(
        model=build("models", "DiT-XL/2", learn_sigma=True),
        data=sd_latents(),
        objective=Denoising(),
        path=DDPM(),
        parameterisation=Eps(),
        optim=AdamW(lr=1e-4),
        sampler=Sampler(
            solver={"name": "ancestral", "variance": "beta"},
            steps=250,
            grid={"name": "timesteps", "spacing": "linspace"},
            guide=_cfg(1.5, channels=3),
        ),
        steps=7_000_000,
        batch_size=256,
    )


def sit_xl_2() -> Run:
    """Train SiT-XL/2 on ImageNet 256: DiT's network on the linear path, 7 million updates of 256 latents.

    Sources: Ma et al. 2024, arXiv 2401.08740, section 5 and table 9; willisma/SiT, train.py (checked): velocity,
    uniform times, AdamW at 1e-4, no decay, average .9999, labels dropped with .1, no clipping. FID by 250
    Euler-Maruyama steps, guidance 1.5.
    """
    return replace(
        dit_xl_2(),
        **_flow(build("models", "SiT-XL/2", learn_sigma=True), Denoising(times=Uniform())),
        sampler=Sampler(**SDE, guide=_cfg(1.5, channels=3)),
    )


def _flow(model: Any, objective: Any) -> Json:
    """Return the fields of a run on the flow path, which predicts velocities."""
    return {"model": model, "objective": objective, "path": build("diffusion.path", "flow"),
            "parameterisation": build("diffusion.parameterisation", "velocity")}  # fmt: skip


def _aligned(kind: type[REPA] = REPA, **fields: Any) -> REPA:
    """Return alignment with stored features of DINOv2-B, after the eighth block with weight .5."""
    encoder = build("models.encoders", "stored", cls=kind is REG)
    return kind(**{"times": Uniform(), "encoder": encoder, "site": "hidden.7", "weight": 0.5, **fields})


def repa_xl_2() -> Run:
    """Train SiT-XL/2 with REPA on ImageNet 256: its eighth block aligned with DINOv2-B, 4 million updates.

    Sources: Yu et al. 2024, arXiv 2410.06940, table 4 and appendix; sihyun-yu/REPA, train.py (checked): weight .5, a
    head of 2048, uniform times, AdamW at 1e-4, batch 256, clipping at 1, float16, average .9999. Guidance 1.8 up to
    t = .7 is its README's.

    Theirs encodes pictures as it trains; here the tokens are stored by gen encode --features (about 400 KB a latent).
    """
    return replace(
        sit_xl_2(),
        **_flow(build("models", "SiT-XL/2"), _aligned()),
        data=sd_latents(features=True),
        sampler=Sampler(**SDE, guide=_cfg(1.8, 0.7)),
        steps=4_000_000,
        clip=1.0,
        precision="fp16",
    )


def reg_xl_2() -> Run:
    """Train SiT-XL/2 with REG on ImageNet 256: DINOv2's class token is denoised with the latent, 4 million updates.

    Sources: Wu et al. 2025, arXiv 2507.01467; Martinser/REG, train.sh and README (checked): as REPA, weight .03 of the
    class token's loss; guidance 2.3 up to t = .85.
    """
    run = repa_xl_2()
    return replace(
        run,
        model=build("models", "REG-XL/2"),
        objective=_aligned(REG, cls_weight=0.03),
        sampler=Sampler(**SDE, guide=_cfg(2.3, 0.85)),
    )


def urepa_xl_2() -> Run:
    """Train SiT-down-XL/2 with U-REPA on ImageNet 256: the middle of a U-Net aligned with DINOv2-B, 1 million updates.

    Sources: Tian et al. 2025, arXiv 2503.18414, v3, equation 5, sections 4.1 and 4.2, tables 2 to 8 (checked): REPA's
    settings, alignment after block 18 of 36 with weight .5, of which the manifold loss has 3 times, guidance 1.65 up to
    t = .7. FID 1.41 is after 2 million updates. Not verified: what the paper does not say of the network (see
    gen.models.sit_down), and that the manifold loss compares the tokens of one sample, as a port of it does.
    """
    encoder = build("models.encoders", "stored")
    objective = UREPA(times=Uniform(), encoder=encoder, site="hidden.17", weight=0.5, manifold_weight=3.0)
    model = build("models", "SiT-down-XL/2")
    sampler = Sampler(**SDE, guide=_cfg(1.65, 0.7))
    return replace(repa_xl_2(), model=model, objective=objective, sampler=sampler, steps=1_000_000)


def dfm_xl_2() -> Run:
    """Train DFM-XL/2 on ImageNet 512: two stages of the latent at times of their own, 400,000 updates of 256 latents.

    Sources: Haji-Ali et al. 2025, arXiv 2506.19839; snap-research/elit, README, experiments/train/dfm_sit_xl_512.yaml,
    models/sit_dfm.py and loss.py (checked): REPA's settings without its alignment, the newest stage the first in .9 of
    cases, coarser times logit-normal (-2, 1), bfloat16, 40 Euler steps to the threshold .1 and 10 behind it. The
    paper's own networks differ (docs/stages.md): 500,000 updates in FLUX's latents, FID 9.77.

    Left out: one draw of the newest stage for a whole batch; here each latent draws its own.
    """
    flow = _flow(build("models", "DFM-XL/2", size=64), DFM(earlier=LogitNormal(-2.0)))
    return replace(
        repa_xl_2(),
        **{**flow, "path": build("diffusion.path", "staged", thresholds=(0.1,))},
        data=_latents("data/imagenet512-sd", scale=0.18215, features=False),
        sampler=Sampler("euler", steps=50, grid={"name": "phases", "shares": [4, 1]}),
        steps=400_000,
        precision="bf16",
    )


def lightningdit_xl_1() -> Run:
    """Train LightningDiT-XL/1 on ImageNet 256 in VA-VAE's latents: 64 epochs, 80,000 updates of 1024.

    Sources: Yao et al. 2025, arXiv 2501.01423; hustvl/LightningDiT, configs/reproductions and train.py (checked): AdamW
    (.9, .95) at 2e-4, no decay, no clipping, logit-normal times, average .9999, latents standardised by channel.
    Guidance 10 on three of 32 channels up to t = .9, 250 Euler times shifted by .3. bfloat16 is its tutorial's.

    800 epochs, FID 1.35 guided by 6.7 up to .875, are --steps 1000000; the paper ends logit-normal times at epoch 480.
    Left out: their loss of the velocity's direction, 1 - cos, beside the squared error.
    """
    return long_run(
        **_flow(build("models", "LightningDiT-XL/1"), Denoising(times=LogitNormal())),
        data=_latents("data/imagenet256-vavae", standardise="channel"),
        optim=AdamW(lr=2e-4, betas=(0.9, 0.95)),
        sampler=Sampler("euler", 249, grid={"name": "shift", "shift": 1 / 0.3}, guide=_cfg(10.0, 0.9, channels=3)),
        steps=80_000,
        batch_size=1024,
        precision="bf16",
    )


def ddt_xl_2() -> Run:
    """Train DDT-XL/2 on ImageNet 256: an encoder of 22 blocks, a decoder of 6, 256 epochs of 256 latents.

    Sources: Wang et al. 2025, arXiv 2504.05741, abstract; MCG-NJU/DDT, configs/repa_improved_ddt_xlen22de6_256.yaml
    (checked): AdamW (.9, .95) at 1e-4, bfloat16, average .9999, logit-normal times, alignment after block 8 with a head
    of 1152; guidance 2 up to t = .7. Not verified: the batch of 256 over all processes (the file has 16 a process), the
    weight .5, and that 256 epochs are 1,281,167 updates. The file's end is 4 million.
    """
    return replace(
        repa_xl_2(),
        model=build("models", "DDT-XL/2"),
        objective=_aligned(times=LogitNormal(), hidden=1152),
        optim=AdamW(lr=1e-4, betas=(0.9, 0.95)),
        sampler=Sampler("euler", 250, grid=SDE["grid"], guide=_cfg(2.0, 0.7)),
        steps=1_281_167,
        precision="bf16",
    )


def rae_dit_dh_xl() -> Run:
    """Train DiT^DH-XL on ImageNet 256 in RAE's latents of DINOv2-B: 800 epochs of 1024.

    Sources: Zheng et al. 2025, arXiv 2510.11690; bytetriper/RAE, configs/stage2/training/ImageNet256 (checked): AdamW
    (.9, .95) at 2e-4 for 40 epochs, then linear to 2e-5 at epoch 800, clipping at 1, average .9995, logit-normal times
    shifted by sqrt(196,608 / 4096) = 6.93, latents standardised by position, float32. The repository says that these
    are tuned for GPUs, and a little better than what the paper reports; FID 1.13 takes a second model as a guide.
    """
    return long_run(
        **_flow(build("models", "DiTDH-XL"), Denoising(times=Shifted(LogitNormal(), dim=196_608))),
        data=_latents("data/imagenet256-rae", standardise="position"),
        optim=AdamW(lr=2e-4, betas=(0.9, 0.95)),
        schedule=WSD(decay=0.95, floor=0.1),
        ema=(Classic(decay=0.9995),),
        sampler=Sampler("euler", 49, grid={"name": "shift", "shift": 48**0.5, "stop": 0.001}),
        steps=1_000_800,
        batch_size=1024,
        clip=1.0,
    )
