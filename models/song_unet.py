"""SongUNet: DDPM++ and NCSN++, the U-Nets of score-based models (Song et al. 2021), as EDM has them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, dropout, scaled_dot_product_attention, silu

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import Json
from gen.diffusion.denoiser import Cond
from gen.diffusion.tap import Tap, call_site
from gen.models.layers import family, init
from gen.models.layers.conv import LevelBlock, Resample, resample, run_levels
from gen.models.layers.embed import convert_time, waves
from gen.models.layers.recompute import recomputed

__all__ = ["SongUNet", "SongUNetNet"]

EPS = 1e-6  # of the norms
BOX = (1.0, 1.0)  # the filter that is a mean of four pixels, and back a copy


def _table() -> family.Presets:
    """Return EDM's four for CIFAR-10 and its two for faces at 64 x 64, and one for digits."""
    cifar: Json = {"size": 32, "multipliers": (2, 2, 2), "dropout": 0.13}
    faces: Json = {"size": 64, "multipliers": (1, 2, 2, 2), "dropout": 0.05, "classes": 0}
    ncsn: Json = {"waves": "random", "noise_multiplier": 2, "residual": True, "filter": (1.0, 3.0, 3.0, 1.0)}
    digits: Json = {"size": 8, "channels": 1, "classes": 10, "width": 32, "multipliers": (1, 1), "blocks": 1}
    return {
        "DDPM++-CIFAR10": {**cifar, "classes": 0},
        "DDPM++-CIFAR10-cond": {**cifar, "classes": 10},
        "NCSN++-CIFAR10": {**cifar, **ncsn, "classes": 0},
        "NCSN++-CIFAR10-cond": {**cifar, **ncsn, "classes": 10},
        "DDPM++-64": faces,
        "NCSN++-64": {**faces, **ncsn},
        "digits": {**digits, "attention": (4,), "time_scale": 1000.0},
    }


@dataclass(frozen=True)
class SongUNet(family.Family):
    """Song's U-Net as in EDM's repository; the defaults are DDPM++ for 32 x 32 x 3 with ten classes.

    NCSN++ has waves = "random", noise_multiplier = 2, residual = True and filter = (1, 3, 3, 1). As F of
    gen.diffusion.parameterisation.EDMPrecond on gen.diffusion.path.EDM its time is ln(sigma) / 4.

    Published training: Adam with lr 1e-3 (faces 2e-4) at batch 512 (256), dropout 0.13 (0.05), augmentation that
    tells the network what it did to the picture; that input is none here.

    Presets: "DDPM++-CIFAR10" and "NCSN++-CIFAR10", each with "-cond" for classes, "DDPM++-64", "NCSN++-64", "digits".

    Attributes:
        size: height and width of x, pixels.
        channels: of x.
        classes: number of labels, 0 for none; "no class" adds nothing.
        width: channels that `multipliers` count in.
        multipliers: channels of each level over width, the finest first; each level is half as high as the one before.
        blocks: residual blocks per level on the way down; one more on the way up.
        attention: heights at which every block on the way down attends, and the last one on the way up, pixels; the
            middle always does.
        dropout: probability, [0, 1).
        waves: of time: "positional" for those of transformers, "random" for sines of frequencies 16 N(0, 1).
        noise_multiplier: number of waves over width.
        residual: whether the picture itself, made smaller, is added at every level on the way down.
        filter: taps of the low-pass filter that resamples, of even number: (1, 1) is the mean of four pixels.
        time_scale: factor on t.
    """

    time_range: ClassVar[float] = 1000.0
    presets: ClassVar[family.Presets] = _table()

    size: int = 32
    channels: int = 3
    classes: int = 10
    width: int = 128
    multipliers: tuple[int, ...] = (2, 2, 2)
    blocks: int = 4
    attention: tuple[int, ...] = (16,)
    dropout: float = 0.0
    waves: Literal["positional", "random"] = "positional"
    noise_multiplier: int = 1
    residual: bool = False
    filter: tuple[float, ...] = BOX
    time_scale: float = 1.0

    def __post_init__(self) -> None:
        family.at_least(self, size=1, channels=1, classes=0, width=4, blocks=1, noise_multiplier=1)
        check_fields(self, dropout="[0, 1)")
        coarsest = len(self.multipliers) - 1
        if coarsest < 0 or min(self.multipliers) < 1 or self.size % 2**coarsest:
            raise UserError(
                f"SongUNet: size {self.size} cannot be halved once per step of multipliers {self.multipliers}"
            )
        if self.width % 4 or any(width % _groups(width) for width in self.widths):
            raise UserError(f"SongUNet: width {self.width} must be a multiple of 4, and of 32 from 128 channels on")
        if len(self.filter) % 2 or sum(self.filter) == 0:
            raise UserError(
                f"SongUNet: filter = {self.filter}; it must have an even number of taps, whose sum is not 0"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, the finest first."""
        return tuple(m * self.width for m in self.multipliers)

    @property
    def size_step(self) -> int | None:
        """What the sides of an x of another size are multiples of, pixels."""
        return 2 ** (len(self.multipliers) - 1)

    def build(self) -> SongUNetNet:
        """Return a fresh network: its output is zero and every residual too."""
        return SongUNetNet(self)


def _groups(width: int) -> int:
    return min(32, width // 4)


def _filtered(h: Tensor, resampling: Resample, taps: tuple[float, ...]) -> Tensor:
    """Return features at the same, half or twice the height and width, through a low-pass filter."""
    if resampling == "keep" or taps == BOX:
        return resample(h, resampling)
    kernel, pad = _kernel(h, taps), (len(taps) - 1) // 2
    if resampling == "down":
        return conv2d(h, kernel, groups=h.shape[1], stride=2, padding=pad)
    return conv_transpose2d(h, 4 * kernel, groups=h.shape[1], stride=2, padding=pad)


def _kernel(h: Tensor, taps: tuple[float, ...]) -> Tensor:
    """Return the filter's plane for each channel of h, [C, 1, k, k], whose sum is 1."""
    line = torch.tensor(taps, device=h.device, dtype=h.dtype)
    return (torch.outer(line, line) / line.sum().square()).tile(h.shape[1], 1, 1, 1)


class SongBlock(nn.Module):
    """A residual block, with attention of one head behind it if it attends; all sums are divided by sqrt(2).

    h [B, width, H, W], c [B, emb] -> [B, out, H', W'].

    gradient_checkpointing: see gen.models.layers.recompute.
    """

    gradient_checkpointing = False

    def __init__(self, spec: SongUNet, width: int, out: int, resampling: Resample = "keep", attn: bool = False):
        super().__init__()
        self.spec, self.resampling = spec, resampling
        self.same = resampling == "keep" and width == out
        self.norm0 = nn.GroupNorm(_groups(width), width, EPS)
        self.conv0 = nn.Conv2d(width, out, 3, padding=1)
        self.affine = nn.Linear(4 * spec.width, out)
        self.norm1 = nn.GroupNorm(_groups(out), out, EPS)
        self.conv1 = nn.Conv2d(out, out, 3, padding=1)
        self.skip = None if self.same else nn.Conv2d(width, out, 1)
        self.norm2 = nn.GroupNorm(_groups(out), out, EPS) if attn else None
        self.qkv = nn.Conv2d(out, 3 * out, 1) if attn else None
        self.proj = nn.Conv2d(out, out, 1) if attn else None
        init.zeros(self.conv1, *([self.proj] if attn else []))

    def forward(self, h: Tensor, c: Tensor, site: str, tap: Tap | None = None) -> Tensor:
        return recomputed(self, lambda h: self._run(h, c, site, tap))(h)

    def _run(self, h: Tensor, c: Tensor, site: str, tap: Tap | None) -> Tensor:
        short = h if self.skip is None else self.skip(_filtered(h, self.resampling, self.spec.filter))
        half = math.sqrt(0.5)

        def conv(inner: Tensor) -> Tensor:
            return half * self.branch(inner if self.same else h, c)

        def both(inner: Tensor) -> Tensor:
            first = call_site(tap, f"{site}.conv", conv, inner)
            if self.proj is None:
                return first
            return half * (first + call_site(tap, f"{site}.attn", self.attend, half * inner + first))

        kept = half if self.proj is None else half * half
        return kept * short + call_site(tap, site, both, short)

    def branch(self, h: Tensor, c: Tensor) -> Tensor:
        """Return the convolutions of h, [B, out, H', W']."""
        h = self.conv0(_filtered(silu(self.norm0(h)), self.resampling, self.spec.filter))
        h = silu(self.norm1(h + self.affine(c)[..., None, None]))
        return self.conv1(dropout(h, self.spec.dropout, self.training))

    def attend(self, h: Tensor) -> Tensor:
        """Return the residual at h [B, out, H, W] of attention of every pixel with every one."""
        assert self.norm2 is not None and self.qkv is not None and self.proj is not None
        qkv = self.qkv(self.norm2(h)).flatten(2).unflatten(1, (1, -1, 3))  # [B, 1, out, 3, T]
        q, k, v = qkv.unbind(3)  # each [B, 1, out, T]
        return self.proj(scaled_dot_product_attention(q.mT, k.mT, v.mT).mT.reshape(h.shape))


class PictureBranch(nn.Conv2d):
    """The picture at the level above, [B, width, H, W], at half the size and as features, [B, out, H/2, W/2]."""

    def __init__(self, width: int, out: int, taps: tuple[float, ...]):
        super().__init__(width, out, 3)
        self.taps = taps

    def forward(self, h: Tensor) -> Tensor:
        pad = 1 + (len(self.taps) - 1) // 2  # both filters' at once, so that the first sees zeros where h ends
        h = conv2d(h, self.weight, padding=pad)
        h = conv2d(h, _kernel(h, self.taps), groups=h.shape[1], stride=2)
        return h if self.bias is None else h + self.bias[:, None, None]


class RandomWaves(nn.Module):
    """Fixed random frequencies of waves of time, 16 N(0, 1)."""

    def __init__(self, n: int):
        super().__init__()
        self.register_buffer("freqs", 16 * torch.randn(n // 2))

    def forward(self, t: Tensor) -> Tensor:
        angle = t[:, None] * (2 * math.pi * self.get_buffer("freqs")).to(t.dtype)
        return torch.cat([angle.cos(), angle.sin()], 1)


class SongUNetNet(family.FamilyNet):
    """SongUNet's network. Names in the state dict are the published ones.

    Sites of a tap. Residuals: "blocks.3", a block, counted from the input to the output, and inside it "blocks.3.conv"
    and "blocks.3.attn", as they are added; leaving one out (Skip) leaves the block's shortcut. Whole values: "time"
    (t [B] -> its waves), "encoder.0" (x -> features), "trunk" with the sites of gen.models.layers.conv.run_levels, and
    "final" (features -> image).
    """

    def __init__(self, spec: SongUNet):
        super().__init__()
        self.spec, widths = spec, spec.widths
        noise = spec.noise_multiplier * spec.width
        self.map_noise = RandomWaves(noise) if spec.waves == "random" else None
        self.map_label = nn.Linear(spec.classes, noise) if spec.classes else None
        self.map_layer0, self.map_layer1 = nn.Linear(noise, 4 * spec.width), nn.Linear(4 * spec.width, 4 * spec.width)
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        width, picture, kept, coarsest = spec.width, spec.channels, [spec.width], len(widths) - 1
        for level, out in enumerate(widths):
            side = spec.size >> level
            if level == 0:
                self.enc[f"{side}x{side}_conv"] = nn.Conv2d(spec.channels, width, 3, padding=1)
            else:
                self.enc[f"{side}x{side}_down"] = SongBlock(spec, width, width, "down")
                kept.append(width)
                if spec.residual:
                    self.enc[f"{side}x{side}_aux_residual"] = PictureBranch(picture, width, spec.filter)
                    picture = width
            for i in range(spec.blocks):
                self.enc[f"{side}x{side}_block{i}"] = SongBlock(spec, width, out, attn=side in spec.attention)
                width = out
                kept.append(width)
        for level in range(coarsest, -1, -1):
            side, out = spec.size >> level, widths[level]
            if level == coarsest:
                self.dec[f"{side}x{side}_in0"] = SongBlock(spec, width, width, attn=True)
                self.dec[f"{side}x{side}_in1"] = SongBlock(spec, width, width)
            else:
                self.dec[f"{side}x{side}_up"] = SongBlock(spec, width, width, "up")
            for i in range(spec.blocks + 1):
                attn = i == spec.blocks and side in spec.attention
                self.dec[f"{side}x{side}_block{i}"] = SongBlock(spec, width + kept.pop(), out, attn=attn)
                width = out
        self.dec[f"{spec.size}x{spec.size}_aux_norm"] = nn.GroupNorm(_groups(width), width, EPS)
        self.dec[f"{spec.size}x{spec.size}_aux_conv"] = nn.Conv2d(width, spec.channels, 3, padding=1)
        self._start()

    def _start(self) -> None:
        """Draw the weights: Xavier-uniform over all inputs of a convolution; the last of each residual is zero."""
        for name, module in self.named_modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.xavier_uniform_(module.weight, gain=math.sqrt(0.2) if name.endswith(".qkv") else 1.0)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            if name.endswith((".conv1", ".proj", "_aux_conv")):
                init.zeros(module)

    def forward(self, x: Tensor, t: Tensor, cond: Cond, *, s: Tensor | None = None, tap: Tap | None = None) -> Tensor:
        family.check(self.spec, x, t, cond, s)
        c = self.condition(call_site(tap, "time", self.time, t), cond)  # [B, 4 width]
        h = call_site(tap, "encoder.0", next(iter(self.enc.values())), x)  # [B, width, H, W]
        h = call_site(tap, "trunk", lambda h: self.trunk(h, c, x, tap), h)
        return call_site(tap, "final", self.last, h)  # [B, C, H, W]

    def time(self, t: Tensor) -> Tensor:
        """Return the waves of times t [B], sines first, [B, noise]."""
        t, n = convert_time(t, self.spec.time_scale, "noise"), self.spec.noise_multiplier * self.spec.width
        wave = waves(t, n, freq_shift=1) if self.map_noise is None else self.map_noise(t)
        return wave.roll(n // 2, 1).to(next(self.parameters()).dtype)

    def condition(self, wave: Tensor, cond: Cond) -> Tensor:
        """Return the embedding [B, 4 width] of waves of time [B, noise] and of labels; one past the last is none."""
        if self.map_label is not None:
            one = (cond["y"][:, None] == torch.arange(self.spec.classes, device=wave.device)).to(wave.dtype)
            wave = wave + self.map_label(one * math.sqrt(self.spec.classes))
        return silu(self.map_layer1(silu(self.map_layer0(wave))))

    def trunk(self, h: Tensor, c: Tensor, x: Tensor, tap: Tap | None) -> Tensor:
        """Run down, through the middle and up again on h [B, width, H, W] under the condition c; x is the picture."""
        down: list[list[LevelBlock]] = []
        add = _Pictures(x).add
        for name, block in list(self.enc.items())[1:]:
            if name.endswith("_aux_residual"):
                down[-1].append(partial(add, block))
            else:
                down.append([block])
        blocks = [(name, block) for name, block in self.dec.items() if "_aux_" not in name]
        up: list[tuple[list[LevelBlock], bool]] = [([block], "_block" in name) for name, block in blocks[2:]]
        middle: list[LevelBlock] = [block for _, block in blocks[:2]]
        return run_levels(h, c, tap, down, middle, up, lambda h, kept: torch.cat([h, kept], 1))

    def last(self, h: Tensor) -> Tensor:
        """Return the image [B, C, H, W] of features [B, width, H, W]."""
        norm, conv = list(self.dec.values())[-2:]
        return conv(silu(norm(h)))


@dataclass
class _Pictures:
    """The picture on its way down, beside the features: at first x itself, then what was added to them."""

    picture: Tensor

    def add(self, branch: Callable[[Tensor], Tensor], h: Tensor, c: Tensor, site: str, tap: Tap | None) -> Tensor:
        self.picture = (h + branch(self.picture)) * math.sqrt(0.5)
        return self.picture
