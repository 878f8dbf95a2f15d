"""Reports of a cache on a live pipeline: what was computed, what it cost, and how far the samples drift."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gen.config.images import to_uint8
from gen.config.spec import build
from gen.diffusion.cache_report import CacheReport

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["LiveDrift", "LiveReport", "measure_drift"]

INK, PAPER, TEXT = (62, 124, 196), (226, 228, 231), (60, 60, 60)
CELL, GAP, MARGIN = 14, 2, 90  # pixels


@dataclass(frozen=True, repr=False)
class LiveReport:
    """Report of one loop of a pipeline under a cache.

    Attributes:
        cache: what was computed, evaluation by evaluation and site by site.
        seconds: of each evaluation of the network.
    """

    cache: CacheReport
    seconds: tuple[float, ...]

    def __repr__(self) -> str:
        return f"LiveReport({self.line()})"

    @property
    def evaluations(self) -> int:
        """Evaluations of the network."""
        return self.cache.evaluations

    @property
    def full(self) -> int:
        """Evaluations that were computed in full."""
        return self.cache.full

    @property
    def computed_share(self) -> float:
        """Share of the cached sites' evaluations that were computed, of all sites that the cache leaves out at all."""
        columns = [c for c in zip(*self.cache.computed, strict=True) if not all(c)]
        return fmean(fmean(column) for column in columns) if columns else 1.0

    @property
    def cost(self) -> float | None:
        """Measured time of a skipped evaluation over that of a full one; None without both."""
        full, skipped = (self._seconds(which) for which in (True, False))
        return fmean(skipped) / fmean(full) if full and skipped else None

    @property
    def speedup(self) -> float | None:
        """Time of the network if all evaluations had been full over the measured time; None without a full one."""
        full = self._seconds(True)
        return self.evaluations * fmean(full) / sum(self.seconds) if full else None

    def line(self) -> str:
        """Return it in one line."""
        cost, speedup = self.cost, self.speedup
        costs = "" if cost is None else f", a skipped one costs {cost:.2f} of it"
        faster = "" if speedup is None else f"; the network {speedup:.2f} x as fast"
        return f"{self.evaluations} evaluations, {self.full} in full{costs}{faster}"

    def table(self) -> str:
        """Return a line for each site that was left out at times, a character for each evaluation: # computed."""
        rows = self._rows()
        width = max(len(name) for name, _ in rows)
        lines = [f"{name:<{width}}  {''.join('#' if done else '.' for done in cells)}" for name, cells in rows]
        return "\n".join([*lines, f"{self.cache.memory / 2**20:.1f} MB of features; {sum(self.seconds):.2f} s"])

    def picture(self) -> Image:
        """Return a picture: a row for each site, a column for each evaluation in its order, dark where computed."""
        from PIL import Image, ImageDraw

        rows = self._rows()
        sheet = Image.new("RGB", (MARGIN + self.evaluations * CELL, len(rows) * CELL), "white")
        draw = ImageDraw.Draw(sheet)
        for i, (name, cells) in enumerate(rows):
            draw.text((2, i * CELL), name[:16], fill=TEXT)
            for j, done in enumerate(cells):
                x, y = MARGIN + j * CELL, i * CELL
                draw.rectangle((x, y, x + CELL - GAP - 1, y + CELL - GAP - 1), fill=INK if done else PAPER)
        return sheet

    def _rows(self) -> list[tuple[str, tuple[bool, ...]]]:
        """Sites of blocks and those that were left out, each with whether it was computed at every evaluation."""
        columns = dict(zip(self.cache.sites, zip(*self.cache.computed, strict=True), strict=True))
        shown = {name: c for name, c in columns.items() if not all(c) or re.fullmatch(r"hidden\.\d+|net|trunk", name)}
        return list(shown.items())

    def _seconds(self, full: bool) -> list[float]:
        pairs = list(zip(self.seconds, self.cache.share_needed, strict=True))
        return [seconds for seconds, share in pairs[1:] or pairs if (share > 0) == full]  # the first one warms up


@dataclass(frozen=True)
class LiveDrift:
    """Distance of an accelerated pipeline's samples from its own, of the same noise.

    Attributes:
        latents: relative L2 distance of the last latents.
        psnr: of the pictures, in dB; None where none were compared.
        ssim: structural similarity of the pictures; None for pictures under 11 pixels, and where none were compared.
        seconds: of the accelerated loop and of the plain one.
        plain_steps: the most plain steps that take no longer than the accelerated loop.
        loop: report of the loop with a cache; None without one.
    """

    latents: float
    psnr: float | None
    ssim: float | None
    seconds: tuple[float, float]
    plain_steps: int
    loop: LiveReport | None

    def __repr__(self) -> str:
        psnr, ssim = (
            "" if v is None else f", {name} {v:.3g}" for name, v in (("PSNR", self.psnr), ("SSIM", self.ssim))
        )
        cached, plain = self.seconds
        return (
            f"LiveDrift(latents {self.latents:.3g}{psnr}{ssim}; {plain / cached:.2f} x as fast, "
            f"in the time of {self.plain_steps} plain steps)"
        )


def measure_drift(
    plain: tuple[Tensor, Any, float],
    cached: tuple[Tensor, Any, float],
    *,
    steps: int,
    loop: LiveReport | None,
    pictures: bool,
) -> LiveDrift:
    """Compare two runs of a pipeline on the same noise.

    Args:
        plain, cached: the last latents [B, ...], the pipeline's output and the seconds of the loop, as it is and
            accelerated.
        steps: of each loop.
        loop: report of the second, under a cache.
        pictures: whether the outputs hold pictures in [0, 1].
    """
    (x, out, seconds), (y, other, less) = plain, cached
    distance = float((y.double() - x.double()).norm() / x.double().norm().clamp(min=1e-30))
    psnr = ssim = None
    if pictures:
        a, b = _pixels(other), _pixels(out)
        psnr = float(build("eval.metrics", "psnr")(a, b).value)
        ssim = float(build("eval.metrics", "ssim")(a, b).value) if min(a.shape[2:]) >= 11 else None
    plain_steps = max(1, math.floor(steps * min(less / seconds, 1.0) + 1e-9))
    return LiveDrift(distance, psnr, ssim, (less, seconds), plain_steps, loop)


def _pixels(out: Any) -> Tensor:
    """Pictures of a pipeline's output, frames as pictures, uint8 [N, C, H, W]."""
    found = out[0] if isinstance(out, tuple) else next(iter(out.values()))
    parts = [_channels_first(part) for part in (found if isinstance(found, (list, tuple)) else [found])]
    x = parts[0] if len(parts) == 1 else torch.stack(parts)
    x = x.flatten(0, -4) if x.ndim > 4 else x.reshape(-1, *x.shape[-3:])
    return to_uint8(2 * x.float().cpu() - 1)


def _channels_first(part: Any) -> Tensor:
    """Pictures [..., C, H, W]; those of numpy have their channels last."""
    return part if isinstance(part, Tensor) else torch.as_tensor(part).movedim(-1, -3)
