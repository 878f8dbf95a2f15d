"""Samples of a pipeline: tensors, pictures and films, and how they were computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from gen.config.errors import UserError
from gen.config.images import contact_sheet, plot_signals, to_pil, to_uint8
from gen.data.lib.learned import no_pictures
from gen.diffusion.cache_report import CacheReport
from gen.diffusion.denoiser import Cond

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Samples"]


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples, and how they were computed.

    Attributes:
        x: float32 [n, C, H, W], on the CPU; of films [n, C, T, H, W], of signals [n, C, L].
        cond: their condition, tensors [n, ...].
        nfe: network evaluations per sample, counted.
        seconds: that the loops took.
        cache: a cache's report on each batch; () without one.
        engine: what prepared the network, in words; "" for the network itself.
        no_pictures: the reason why x holds no pictures in [-1, 1]; "" if it does.
        trajectory: x at every time of the loop, [n, steps + 1, C, H, W]; None unless it was asked for.
        prompts: the caption of each sample; () without captions.
    """

    x: Tensor
    cond: Cond
    nfe: float
    seconds: float
    cache: Sequence[CacheReport] = ()
    engine: str = ""
    no_pictures: str = ""
    trajectory: Tensor | None = None
    prompts: tuple[str, ...] = ()

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.x.shape[1:]))
        return f"Samples({len(self.x)} of {shape}, {self.nfe:g} evaluations each, {self.seconds:.2f} s)"

    def uint8(self) -> Tensor:
        """Return pixels 0 .. 255, shaped as x; UserError for latents and other samples that are no pictures."""
        reason = self.no_pictures or no_pictures(tuple(self.x.shape[1:]))
        if reason:
            raise UserError(reason)
        return to_uint8(self.x)

    @property
    def images(self) -> list[Image]:
        if self.x.ndim == 5:
            raise UserError(f"the samples are films of {self.x.shape[2]} pictures: .frames has a list of each")
        return [to_pil(image) for image in self.uint8()]

    @property
    def frames(self) -> list[list[Image]]:
        """The pictures of each sample: of a film all of them, in order."""
        films = self.uint8() if self.x.ndim == 5 else self.uint8()[:, :, None]
        return [[to_pil(image) for image in film.unbind(1)] for film in films]

    def sheet(self, columns: int = 10, zoom: int = 1) -> Image:
        """Return all samples as one picture, a film as a row of its pictures, a signal as a plot of its channels."""
        if self.x.ndim == 3:
            return contact_sheet(plot_signals(self.x), min(columns, 5))
        images = self.uint8()
        if images.ndim == 5:
            return contact_sheet(images.transpose(1, 2).flatten(0, 1), images.shape[2], zoom)
        return contact_sheet(images, columns, zoom)

    def _repr_png_(self) -> bytes | None:
        drawn = not self.no_pictures or self.x.ndim == 3
        return self.sheet(zoom=max(1, 64 // self.x.shape[-1]))._repr_png_() if drawn else None
