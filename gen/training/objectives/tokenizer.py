"""An autoencoder against pixels, a perceptual distance and a discriminator, as LDM, VA-VAE and RAE train theirs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gen.config.fields import check_fields
from gen.config.spec import part
from gen.diffusion.alignment import adaptive_weight
from gen.diffusion.denoiser import DenoiserLike
from gen.diffusion.net import sides
from gen.training.objectives import Batch, Roles, Step
from gen.training.objectives.lib.adversarial import DiffAug, Discriminator, generator_hinge, hinge
from gen.training.objectives.reconstruct import Reconstruction

__all__ = ["Tokenizer"]


@dataclass(frozen=True)
class Tokenizer(Reconstruction):
    """Reconstruction + perceptual_weight d(x, decode(z)) + gan_weight lambda (-mean D), and D's hinge loss.

    lambda = |gradient of the loss of pictures| / (|gradient of -mean D| + gan_eps), at most gan_most, at the decoder's
    last weight (VQGAN, Esser et al. 2021; LDM, VA-VAE), in each micro-batch. Losses are for each number of x: LDM's and
    VA-VAE's are sums, so their bound is gan_most = 1e4 / numbers. The discriminator learns from a fresh reconstruction
    after the autoencoder's step. RAE's noise augments what is decoded: z + sigma n, one sigma for each sample, in
    training alone (arXiv 2510.11690).

    Attributes:
        perceptual: distance of pictures, [B]; None for none. LDM's is lpips, whose weights must be at hand.
        perceptual_weight: of it, beside the mean of |x - decode(z)|.
        gan_weight: of the adversarial loss; 0 for no discriminator. LDM's 0.5.
        gan_start: updates before the autoencoder meets the discriminator.
        discriminator_start: updates before the discriminator learns; None for gan_start.
        gan_eps: see above; 1e-4 in LDM, 1e-6 in RAE.
        gan_most: see above.
        discriminator: the network, see gen.models.discriminators; "dino" is RAE's.
        augment: what it sees of pictures and reconstructions, each drawn anew; None for them as they are.
        discriminator_lr: factor on its learning rate, whose schedule begins with its first update: in a run of n
            updates it has followed the curve up to n - discriminator_start at the end, as RAE's does.
        quantise: whether it sees reconstructions clamped and rounded to 8 bits, as RAE's does.
        tau: scale of the noise; 0 for none, 0.8 in RAE.
        sigma: "half_normal", |N(0, tau^2)|, of RAE's paper; "uniform", tau U(0, 1), of its code.
    """

    perceptual: Any = part("eval.perceptual", "distillers.distances", default=None)
    perceptual_weight: float = 1.0
    gan_weight: float = 0.5
    gan_start: int = 0
    discriminator_start: int | None = None
    gan_eps: float = 1e-4
    gan_most: float = 1e4
    discriminator: Any = part("models.discriminators", kinds=(Discriminator,), default="patch_gan")
    augment: DiffAug | None = None
    discriminator_lr: float = 1.0
    quantise: bool = False
    tau: float = 0.0
    sigma: Literal["half_normal", "uniform"] = "half_normal"

    def __post_init__(self) -> None:
        super().__post_init__()
        some = dict.fromkeys(("perceptual_weight", "gan_weight", "gan_start", "discriminator_start", "tau"), "[0, inf)")
        check_fields(self, gan_eps="(0, inf)", gan_most="(0, inf)", discriminator_lr="(0, inf)", **some)

    @property
    def rates(self) -> Mapping[str, float]:
        return {"discriminator": self.discriminator_lr} if self.gan_weight else {}

    @property
    def delays(self) -> Mapping[str, int]:
        return {"discriminator": self._start} if self.gan_weight else {}

    @property
    def _start(self) -> int:
        return self.gan_start if self.discriminator_start is None else self.discriminator_start

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        roles = super().roles(net, teacher)
        if self.gan_weight:
            spec: Any = net.spec
            roles["discriminator"] = self.discriminator.build(spec.channels, sides(spec))
        return roles

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        cond = {"posterior": self.drawn(roles, batch, "posterior").to(batch.x)}
        yield self.autoencoder_step(roles, batch, cond)
        if self.gan_weight and batch.step >= self._start:
            yield self.discriminator_step(roles, batch, cond)

    def autoencoder_step(self, roles: Roles, batch: Batch, cond: dict[str, Tensor]) -> Step:
        """Return the role, loss and logs of the autoencoder.

        Args:
            roles, batch: as of the call.
            cond: of the network: the noise of the posterior.
        """
        out, features = self.reconstruct(roles, batch, cond | self.perturbation(roles, batch), self.sites)
        images, seen = self.image_loss(out, batch.x)
        latents, held = self.latent_loss(roles, features, batch.x)
        loss, logs = images + latents, {**seen, **held}
        if self.gan_weight and batch.step >= self.gan_start:
            adversarial = generator_hinge(self.logits(roles, batch, out, "generator"))
            last = self._net(roles).last_layer
            weight = adaptive_weight(images, adversarial, last, self.gan_most, self.gan_eps)
            loss = loss + self.gan_weight * weight * adversarial
            logs |= {"adversarial": adversarial, "adversarial_weight": weight}
        role, more, further = self.further(roles, batch, images, features)
        return role, loss + more, {**logs, **further}

    @property
    def sites(self) -> tuple[str, ...]:
        """Those of the network at which `further` looks."""
        return ()

    def further(
        self, roles: Roles, batch: Batch, images: Tensor, features: dict[str, Tensor]
    ) -> tuple[str | tuple[str, ...], Tensor, dict[str, Tensor]]:
        """Return the roles that the autoencoder's step trains, a loss to be added and logs; none here.

        Args:
            roles, batch: as of the call.
            images: the loss of pictures, 0-d.
            features: by site.
        """
        return "net", images.new_zeros(()), {}

    def discriminator_step(self, roles: Roles, batch: Batch, cond: dict[str, Tensor]) -> Step:
        """Return the role, loss and logs of the discriminator.

        Args:
            roles, batch, cond: as of `autoencoder_step`.
        """
        with torch.no_grad():
            fake = self.reconstruct(roles, batch, cond)[0]
            if self.quantise:
                fake = ((fake.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
        real, fake = (self.logits(roles, batch, x, name) for x, name in ((batch.x, "real"), (fake, "fake")))
        logs = {"real_logit": real.mean(), "fake_logit": fake.mean()}
        return "discriminator", hinge(real, fake), logs

    def logits(self, roles: Roles, batch: Batch, x: Tensor, name: str) -> Tensor:
        """Return the discriminator's logits of pictures, augmented if they are to be.

        Args:
            roles, batch: as of the call.
            x: pictures [B, C, H, W].
            name: of the draws.
        """
        seen: Tensor = x if self.augment is None else self.augment(x, batch.noise, f"augment {name}")
        logits: Tensor = roles["discriminator"].net(seen)
        return logits

    def image_loss(self, out: Tensor, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss, logs = super().image_loss(out, x)
        if self.perceptual is None:
            return loss, logs
        distance = self.perceptual(out, x).mean()
        return loss + self.perceptual_weight * distance, {**logs, "perceptual": distance}

    def perturbation(self, roles: Roles, batch: Batch) -> dict[str, Tensor]:
        """Return the noise that is added to latents before they are decoded, as a condition; {} without."""
        if not self.tau:
            return {}
        if self.sigma == "uniform":
            sigma = batch.to_device(batch.noise.uniform("sigma"))
        else:
            sigma = batch.to_device(batch.noise.normal("sigma", (1,))).flatten().abs()
        noise = self.drawn(roles, batch, "perturbation")
        return {"perturbation": self.tau * sigma.to(noise).reshape(-1, 1, 1, 1) * noise}

    def drawn(self, roles: Roles, batch: Batch, name: str) -> Tensor:
        """Return unit noise shaped as the latents, which a name and a sample decide, [B, C, h, w]."""
        return batch.to_device(batch.noise.normal(name, self._net(roles).latent_shape(batch.x)))
