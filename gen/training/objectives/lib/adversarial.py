"""Adversarial training of autoencoders: the contract of a discriminator, hinge losses, and augmented pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gen.config.fields import check_fields
from gen.diffusion.noise import Noise

__all__ = ["DiffAug", "Discriminator", "generator_hinge", "hinge"]


class Discriminator(Protocol):
    """A plug-in of gen.models.discriminators: a frozen dataclass that builds a network of logits."""

    def build(self, channels: int, sides: tuple[int, int]) -> nn.Module:
        """Return the network, freshly initialised: pictures [B, C, H, W] in [-1, 1] to logits [B, ...].

        What is frozen in it is neither a parameter nor a buffer, and so in no checkpoint.

        Args:
            channels: of the pictures.
            sides: height and width of the smallest.

        Raises:
            UserError: for pictures that it cannot see.
        """
        ...


@dataclass(frozen=True)
class DiffAug:
    """Pictures moved, recoloured and with a part cut out, all differentiably (Zhao et al. 2020, arXiv 2006.10738).

    Defaults are RAE's, whose cutout is 0; StyleGAN-T's is 0.2. Each of the three is applied to a picture with the
    probability, where their code decides for a whole batch. What moves in is 0, grey.

    Attributes:
        translation: largest move as a share of height and width, in whole pixels.
        colour: whether brightness is shifted by U(-0.5, 0.5), saturation multiplied by U(0, 2) and contrast by
            U(0.5, 1.5).
        cutout: side of the rectangle that is set to 0, as a share of height and width.
        probability: of each of the three.
    """

    translation: float = 0.125
    colour: bool = True
    cutout: float = 0.0
    probability: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, **dict.fromkeys(("translation", "cutout", "probability"), "[0, 1]"))

    def __call__(self, x: Tensor, noise: Noise, name: str) -> Tensor:
        """Return augmented pictures [B, C, H, W].

        Args:
            x: pictures [B, C, H, W].
            noise: of the step, one seed for each sample.
            name: of the draws.
        """
        u = noise.uniform(name, 10).to(x.device).T  # [10, B]: seven numbers and three coins
        kinds = (self.translated, self.coloured, self.cut)
        for augment, numbers, coin in zip(kinds, (u[0:2], u[2:5], u[5:7]), u[7:], strict=True):
            changed = augment(x, numbers)
            x = torch.where((coin < self.probability).reshape(-1, 1, 1, 1), changed, x)
        return x

    def translated(self, x: Tensor, u: Tensor) -> Tensor:
        """Return moved pictures: row i of the result is row i + the move.

        Args:
            x: pictures [B, C, H, W].
            u: numbers in [0, 1) of the moves down and right, [2, B].
        """
        for dim, numbers in zip((2, 3), u, strict=True):
            side = x.shape[dim]
            most = round(side * self.translation)
            move = (numbers * (2 * most + 1)).floor().long() - most
            index = torch.arange(side, device=x.device) + move[:, None]  # [B, side]
            shape = (-1, 1, side, 1) if dim == 2 else (-1, 1, 1, side)
            inside = ((index >= 0) & (index < side)).reshape(shape)
            moved = x.gather(dim, index.clamp(0, side - 1).reshape(shape).expand_as(x))
            x = moved * inside.to(x)
        return x

    def coloured(self, x: Tensor, u: Tensor) -> Tensor:
        """Return pictures of other brightness, saturation and contrast; as they are without `colour`.

        Args:
            x: pictures [B, C, H, W].
            u: numbers in [0, 1), [3, B].
        """
        if not self.colour:
            return x
        brightness, saturation, contrast = u.to(x).reshape(3, -1, 1, 1, 1)
        x = x + (brightness - 0.5)
        grey = x.mean(1, keepdim=True)
        x = grey + (x - grey) * (2 * saturation)
        mean = x.mean((1, 2, 3), keepdim=True)
        return mean + (x - mean) * (contrast + 0.5)

    def cut(self, x: Tensor, u: Tensor) -> Tensor:
        """Return pictures with a rectangle of zeros about a point, cropped at the border.

        Args:
            x: pictures [B, C, H, W].
            u: numbers in [0, 1) of the point, [2, B].
        """
        inside = []
        for side, numbers in zip(x.shape[2:], u, strict=True):
            length = round(side * self.cutout)
            first = (numbers * (side + (1 - length % 2))).floor().long() - length // 2
            place = torch.arange(side, device=x.device)
            inside.append((place >= first[:, None]) & (place < first[:, None] + length))
        rectangle = inside[0][:, None, :, None] & inside[1][:, None, None, :]
        return x * (~rectangle).to(x)


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """Return the discriminator's loss, 0-d: half of mean relu(1 - real) + mean relu(1 + fake) (Lim & Ye 2017).

    Args:
        real, fake: logits of data and of reconstructions.
    """
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def generator_hinge(fake: Tensor) -> Tensor:
    """Return the other side's loss, 0-d: -mean(fake).

    Args:
        fake: logits of reconstructions.
    """
    return -fake.mean()
