"""Autoencoders of 256 x 256 pictures: LDM's, VA-VAE's and RAE's, with their authors' losses."""

from __future__ import annotations

from typing import Any

from gen.config.spec import Json, build
from gen.data import DataSource
from gen.training.ema import Classic
from gen.training.objectives.lib.adversarial import DiffAug
from gen.training.objectives.tokenizer import Tokenizer
from gen.training.objectives.vf import VF
from gen.training.optim.adamw import AdamW
from gen.training.papers.pixels import long_run
from gen.training.run import Run
from gen.training.schedules import Cosine

__all__ = ["tokenizer_kl_f4", "tokenizer_kl_f8", "tokenizer_rae", "tokenizer_va_vae", "tokenizer_vq_f4"]

NUMBERS = 3 * 256 * 256  # of a picture, over which LDM and VA-VAE sum their losses where ours are means
LPIPS: Json = {"name": "lpips", "trunk": "vgg", "path": "vgg16-397923af.pth"}
RATE = 4.5e-6  # LDM's, for each picture of the batch
BETAS = (0.5, 0.9)  # of the autoencoder's Adam and of the discriminator's


def _pictures(path: str) -> DataSource:
    source: DataSource = build("data", "folder", path=path, size=256, channels=3, crop="random", holdout=0.0004)
    return source


def _patches() -> Any:
    return build("models.discriminators", "patch_gan", norm="batch")


def _ldm(model: Json, batch: int, steps: int, **fields: Any) -> Run:
    """Return a run of LDM, as the configs beside its released weights have it, on eight GPUs."""
    objective = Tokenizer(perceptual=build("eval.perceptual", LPIPS), discriminator=_patches(), **fields)
    return long_run(
        model=build("models.autoencoders", model),
        data=_pictures("data/openimages"),
        objective=objective,
        parameterisation="x0",
        optim=AdamW(lr=RATE * batch, betas=BETAS),
        ema=(),
        steps=steps,
        batch_size=batch,
    )


def tokenizer_kl_f8() -> Run:
    """Train LDM's autoencoder of 32 x 32 x 4 latents, on which Stable Diffusion's is based, on OpenImages.

    Sources: Rombach et al. 2022, arXiv 2112.10752; CompVis/latent-diffusion, first_stage_models/kl-f8/config.yaml,
    contperceptual.py and README (checked): L1 + LPIPS, divergence 1e-6, hinge GAN .5 from update 50,001, Adam (.5, .9)
    at 4.5e-6 a picture of the batch, 4 pictures on each GPU, 246,803 updates, no average.

    Not verified: the number of GPUs, taken as 8, on which batch and rate depend. Theirs scales to 384 and crops 256;
    here a crop is of one to 1.25 times 256.
    """
    return _ldm({"name": "kl", "preset": "f8d4"}, 32, 246_803, gan_weight=0.5, gan_start=50_001, gan_most=1e4 / NUMBERS)


def tokenizer_kl_f4() -> Run:
    """Train LDM's autoencoder of 64 x 64 x 3 latents on OpenImages.

    Sources: as `tokenizer_kl_f8`, first_stage_models/kl-f4/config.yaml: 10 pictures on each GPU, 176,991 updates.

    Not verified: the number of GPUs, taken as 8. Crops as there.
    """
    return _ldm({"name": "kl", "preset": "f4d3"}, 80, 176_991, gan_weight=0.5, gan_start=50_001, gan_most=1e4 / NUMBERS)


def tokenizer_vq_f4() -> Run:
    """Train LDM's VQ autoencoder of 64 x 64 x 3 latents and 8192 vectors, ResShift's too, on OpenImages.

    Sources: as `tokenizer_kl_f8`, first_stage_models/vq-f4/config.yaml and taming's VQLPIPSWithDiscriminator, whose
    losses are means: GAN .75 from the start, codebook .25 and commitment 1, 8 pictures on each GPU, 533,066 updates.

    Not verified: the number of GPUs, taken as 8. Crops as there.
    """
    model = {"name": "vq", "preset": "f4", "codebook": 0.25, "commitment": 1.0}
    return _ldm(model, 64, 533_066, gan_weight=0.75, gan_start=0, gan_most=1e4)


def tokenizer_va_vae() -> Run:
    """Train VA-VAE f16d32 on ImageNet: latents of 16 x 16 x 32 held to DINOv2-L's features, 50 epochs.

    Sources: Yao et al. 2025, arXiv 2501.01423; hustvl/LightningDiT, vavae/configs/f16d32_vfdinov2.yaml and its code
    (checked): LDM's losses, VF .1 with margins .5 and .25, Adam (.5, .9) at 1e-4, batch 256, float32, no average. Its
    target sees pixels in [-1, 1], resized bilinearly. The released model is of 130 epochs, 100 of them with VF .5 and
    no margins.

    Not verified: that disc_start 5001, which counts two optimisers, is update 2501. Theirs crops at the shorter side's
    scale; here a crop is of one to 1.25 times 256.
    """
    target = {"name": "dinov2", "path": "dinov2-large", "width": 1024, "pixels": "plain", "resize": "bilinear"}
    return long_run(
        model=build("models.autoencoders", {"name": "kl", "preset": "f16d32"}),
        data=_pictures("data/imagenet/train"),
        objective=VF(
            perceptual=build("eval.perceptual", LPIPS),
            discriminator=_patches(),
            gan_start=2_501,
            gan_most=1e4 / NUMBERS,
            vf_most=1e8 / NUMBERS,
            encoder=build("models.encoders", target),
        ),
        parameterisation="x0",
        optim=AdamW(lr=1e-4, betas=BETAS),
        ema=(),
        steps=250_250,
        batch_size=256,
    )


def tokenizer_rae() -> Run:
    """Train RAE's ViT-XL decoder of DINOv2-B's tokens on ImageNet: 16 epochs of 2,502 updates.

    Sources: Zheng et al. 2025, arXiv 2510.11690; bytetriper/RAE, configs/stage1/training/DINOv2-B_decXL.yaml,
    train_stage1.py and src/disc (checked): L1 + LPIPS of pictures in [0, 1], which is LPIPS 2 here; GAN .75 from epoch
    8 against DINO's tokens, whose heads learn from epoch 6 on a schedule of their own; moved and recoloured pictures;
    noise .8 U(0, 1); AdamW (.9, .95) at 2e-4, a cosine to a tenth after one epoch of warm-up, average .9978.

    Left out: the crop of 256 of pictures scaled to 384; here a crop is of one to 1.25 times 256. `gen encode` stores
    the statistics of latents, exact ones instead of an average over about 20 batches.
    """
    encoder = {"name": "dinov2", "path": "dinov2-with-registers-base", "width": 768, "norm": "plain"}
    epoch = 2_502
    return long_run(
        model=build("models.autoencoders", {"name": "rae", "preset": "ViT-XL", "encoder": encoder}),
        data=_pictures("data/imagenet/train"),
        objective=Tokenizer(
            perceptual=build("eval.perceptual", LPIPS),
            perceptual_weight=2.0,
            gan_weight=0.75,
            gan_start=8 * epoch,
            discriminator_start=6 * epoch,
            gan_eps=1e-6,
            gan_most=2e4,
            discriminator=build("models.discriminators", "dino", path="dino_vit_small_patch8_224.pth"),
            augment=DiffAug(),
            quantise=True,
            tau=0.8,
            sigma="uniform",
        ),
        parameterisation="x0",
        optim=AdamW(lr=2e-4, betas=(0.9, 0.95)),
        schedule=Cosine(warmup=epoch, floor=0.1),
        ema=(Classic(decay=0.9978),),
        steps=16 * epoch,
        batch_size=512,
    )
