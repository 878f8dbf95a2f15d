"""EDM2: a U-Net whose weights, activations and updates all keep their magnitude (Karras et al. 2024, config G)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, scaled_dot_product_attention

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.diffusion.denoiser import Cond
from gen.diffusion.tap import Tap, call_site
from gen.models.layers import family
from gen.models.layers.conv import Resample, resample, run_levels
from gen.models.layers.magnitude import MPConv, MPFourier, mp_add, mp_cat, mp_silu, mp_sum, normalise, normalise_weights
from gen.models.layers.recompute import recomputed

__all__ = ["EDM2", "EDM2Net"]

WIDTHS = {"XXS": 64, "XS": 128, "S": 192, "M": 256, "L": 320, "XL": 384, "XXL": 448}
DIGITS = {"size": 8, "channels": 1, "classes": 10, "width": 8, "multipliers": (3, 5), "blocks": 1, "attention": (4,)}


def _table() -> family.Presets:
    """Return the published sizes, for latents of 512 x 512 images and ("img64") 64 x 64 pixels, and one for digits."""
    sizes = {name: {"width": width, "dropout": 0.1 if width >= WIDTHS["M"] else 0.0} for name, width in WIDTHS.items()}
    latents = {f"EDM2-{name}": fields for name, fields in sizes.items()}
    pixels = {f"EDM2-img64-{name}": {**sizes[name], "channels": 3} for name in ("XS", "S", "M", "L", "XL")}
    return {**latents, **pixels, "digits": {**DIGITS, "head_width": 20, "uncertainty": 0, "lr_scale": 20.0}}


@dataclass(frozen=True)
class EDM2(family.Family):
    """The EDM2 network F; the defaults are the published EDM2-XS for 64 x 64 x 4 latents of 512 x 512 ImageNet.

    It belongs to gen.diffusion.path.EDM (which passes it ln(sigma) / 4), gen.diffusion.parameterisation.EDMPrecond and
    gen.training.objectives.uncertainty; it runs with any other.

    Published training: Adam (.9, .99) at batch 2048 with lr .017, .012, .010, .009, .008, .007, .0065 for XXS ... XXL,
    gen.training.schedules.InverseSqrt with 4883 updates of warm-up and 70,000 (35,000 for img64) flat ones, ln(sigma)
    normal with mean -.4 and deviation 1 (img64: -.8 and 1.6), no clipping, no label dropout.

    Presets: "EDM2-XXS" to "EDM2-XXL", "EDM2-img64-XS" to "EDM2-img64-XL", and "digits".

    Attributes:
        size: height and width of x, pixels.
        channels: of x.
        classes: number of labels, 0 for none; "no class" is the zero vector.
        width: channels that `multipliers` count in; 64 (XXS), 128, 192, 256, 320, 384, 448 (XXL).
        multipliers: channels of each level over width, the finest first; each level is half as high as the one before.
        blocks: residual blocks per level on the way down; one more on the way up.
        attention: heights at which every block attends, pixels; the middle always does.
        head_width: channels of a head of attention.
        dropout: probability, [0, 1); .1 for M and larger.
        noise_channels, emb_channels: of the waves of time, and of the embedding of time and class; None for the first
            level's width, and for the widest level's.
        bandwidth: of the random waves of time (gen.models.layers.magnitude.MPFourier).
        label_balance: weight of the class against the time, [0, 1].
        concat_balance: weight of the shortcut against the main path, [0, 1].
        residual_balance, attention_balance: weight of a block's residual and of its attention's, [0, 1].
        clip: bound on activations.
        uncertainty: waves in the head u(t), the log-variance of the error, which is part of the published weights but
            trained only by that objective; 0 for none.
        lr_scale: factor on the run's learning rate; weights of magnitude 1 want a higher one than the recipes of other
            networks.
    """

    presets: ClassVar[family.Presets] = _table()

    size: int = 64
    channels: int = 4
    classes: int = 1000
    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 3, 4)
    blocks: int = 3
    attention: tuple[int, ...] = (16, 8)
    head_width: int = 64
    dropout: float = 0.0
    noise_channels: int | None = None
    emb_channels: int | None = None
    bandwidth: float = 1.0
    label_balance: float = 0.5
    concat_balance: float = 0.5
    residual_balance: float = 0.3
    attention_balance: float = 0.3
    clip: float = 256.0
    uncertainty: int = 128
    lr_scale: float = 1.0

    def __post_init__(self) -> None:
        family.at_least(self, size=1, channels=1, classes=0, width=1, blocks=1, head_width=1, uncertainty=0)
        balances = ("label_balance", "concat_balance", "residual_balance", "attention_balance")
        check_fields(self, dropout="[0, 1)", clip="(0, inf)", lr_scale="(0, inf)", **dict.fromkeys(balances, "[0, 1]"))
        for name in ("noise_channels", "emb_channels"):
            if getattr(self, name) is not None:
                family.at_least(self, **{name: 1})
        coarsest = len(self.multipliers) - 1
        if coarsest < 0 or min(self.multipliers) < 1 or self.size % 2**coarsest:
            raise UserError(f"EDM2: size {self.size} cannot be halved once per step of multipliers {self.multipliers}")
        for level, channels in enumerate(self.widths):
            if (self.size >> level in self.attention or level == coarsest) and channels % self.head_width:
                raise UserError(f"EDM2: {channels} channels, which attend, are not divisible by {self.head_width}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, the finest first."""
        return tuple(m * self.width for m in self.multipliers)

    @property
    def embedding(self) -> int:
        """Channels of the embedding of time and class."""
        return self.emb_channels or max(self.widths)

    @property
    def size_step(self) -> int | None:
        """What the sides of an x of another size are multiples of, pixels."""
        return 2 ** (len(self.multipliers) - 1)

    def build(self) -> EDM2Net:
        """Return a fresh network: its output is zero, and time and class change nothing yet."""
        return EDM2Net(self)


class MPBlock(nn.Module):
    """A magnitude-preserving residual block, with attention if it has heads.

    h [B, width, H, W], c [B, emb] -> [B, out, H', W'].

    flavour: "enc" normalises each pixel and changes the width first; "dec" changes the width on the shortcut alone.
    gradient_checkpointing: see gen.models.layers.recompute.
    """

    gradient_checkpointing = False

    def __init__(
        self,
        spec: EDM2,
        width: int,
        out: int,
        flavour: Literal["enc", "dec"],
        resampling: Resample = "keep",
        attn: bool = False,
    ):
        super().__init__()
        emb, self.flavour, self.resampling, self.spec = spec.embedding, flavour, resampling, spec
        self.heads = out // spec.head_width if attn else 0
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = MPConv(out if flavour == "enc" else width, out, 3, 3)
        self.emb_linear = MPConv(emb, out)
        self.conv_res1 = MPConv(out, out, 3, 3)
        self.conv_skip = MPConv(width, out, 1, 1) if width != out else None
        self.attn_qkv = MPConv(out, 3 * out, 1, 1) if attn else None
        self.attn_proj = MPConv(out, out, 1, 1) if attn else None

    def forward(self, h: Tensor, c: Tensor, site: str, tap: Tap | None = None) -> Tensor:
        return recomputed(self, lambda h: self._run(h, c, site, tap))(h)

    def _run(self, h: Tensor, c: Tensor, site: str, tap: Tap | None) -> Tensor:
        h = resample(h, self.resampling)
        short = h if self.conv_skip is None else self.conv_skip(h)  # [B, out, H', W']
        if self.flavour == "enc":
            short = normalise(short, dim=1)
        wide = self.flavour == "dec" and self.conv_skip is not None

        def conv(short: Tensor) -> Tensor:
            return mp_add(short, self.branch(h if wide else short, c), self.spec.residual_balance)

        def both(short: Tensor) -> Tensor:
            first = call_site(tap, f"{site}.conv", conv, short)
            return first if not self.heads else first + call_site(tap, f"{site}.attn", self.attend, short + first)

        return (short + call_site(tap, site, both, short)).clamp(-self.spec.clip, self.spec.clip)

    def branch(self, h: Tensor, c: Tensor) -> Tensor:
        """Return the convolutions of h, scaled by the condition, [B, out, H', W']."""
        h = self.conv_res0(mp_silu(h))  # [B, out, H', W']
        scale = self.emb_linear(c, gain=self.emb_gain) + 1  # [B, out]
        h = mp_silu(h * scale[..., None, None].to(h.dtype))
        h = dropout(h, self.spec.dropout, self.training)
        return self.conv_res1(h)

    def attend(self, h: Tensor) -> Tensor:
        """Return the residual at h [B, out, H', W'] of attention of pixels by the cosine of q and k."""
        assert self.attn_qkv is not None and self.attn_proj is not None
        qkv = self.attn_qkv(h).flatten(2).unflatten(1, (self.heads, -1, 3))  # [B, heads, out / heads, 3, T]
        q, k, v = normalise(qkv, dim=2).unbind(3)  # each [B, heads, out / heads, T]
        mixed = scaled_dot_product_attention(q.mT, k.mT, v.mT).mT  # [B, heads, out / heads, T]
        return mp_add(h, self.attn_proj(mixed.reshape(h.shape)), self.spec.attention_balance)


class Body(nn.Module):
    """The part that the published weights call `unet`: all but the log-variance of the error."""

    def __init__(self, spec: EDM2):
        super().__init__()
        self.spec, emb, widths = spec, spec.embedding, spec.widths
        noise = spec.noise_channels or widths[0]
        self.out_gain = nn.Parameter(torch.zeros([]))
        self.emb_fourier = MPFourier(noise, spec.bandwidth)
        self.emb_noise = MPConv(noise, emb)
        self.emb_label = MPConv(spec.classes, emb) if spec.classes else None
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        width, kept, coarsest = widths[0], [], len(widths) - 1
        for level, out in enumerate(widths):
            side = spec.size >> level
            if level:
                self.enc[f"{side}x{side}_down"] = MPBlock(spec, width, width, "enc", "down")
            else:
                self.enc[f"{side}x{side}_conv"] = MPConv(spec.channels + 1, width, 3, 3)
            kept.append(width)
            for i in range(spec.blocks):
                self.enc[f"{side}x{side}_block{i}"] = MPBlock(spec, width, out, "enc", attn=side in spec.attention)
                width = out
                kept.append(width)
        for level in range(coarsest, -1, -1):
            side, out = spec.size >> level, widths[level]
            if level == coarsest:
                self.dec[f"{side}x{side}_in0"] = MPBlock(spec, width, width, "dec", attn=True)
                self.dec[f"{side}x{side}_in1"] = MPBlock(spec, width, width, "dec")
            else:
                self.dec[f"{side}x{side}_up"] = MPBlock(spec, width, width, "dec", "up")
            for i in range(spec.blocks + 1):
                attn, wide = side in spec.attention, width + kept.pop()
                self.dec[f"{side}x{side}_block{i}"] = MPBlock(spec, wide, out, "dec", attn=attn)
                width = out
        self.out_conv = MPConv(width, spec.channels, 3, 3)

    def time(self, t: Tensor) -> Tensor:
        """Return the embedding of times t [B], [B, emb]."""
        return self.emb_noise(self.emb_fourier(t))

    def condition(self, c: Tensor, cond: Cond) -> Tensor:
        """Return the times' embedding c [B, emb] with that of the classes; a label past the last is none."""
        if self.emb_label is not None:
            classes = torch.arange(self.spec.classes, device=c.device)
            one = (cond["y"][:, None] == classes).to(c.dtype)  # [B, classes]
            c = mp_sum(c, self.emb_label(one * self.spec.classes**0.5), self.spec.label_balance)
        return mp_silu(c)

    def first(self, x: Tensor) -> Tensor:
        """Return the first convolution [B, width, H, W] of x [B, C, H, W] and a channel of ones, which replaces
        biases.
        """
        return next(iter(self.enc.values()))(torch.cat([x, torch.ones_like(x[:, :1])], 1))

    def trunk(self, h: Tensor, c: Tensor, tap: Tap | None) -> Tensor:
        """Run down, through the middle and up again on h [B, width, H, W] under the condition c [B, emb]."""
        down, names, up = list(self.enc.values())[1:], list(self.dec), list(self.dec.values())
        joined = [([block], "block" in name) for name, block in zip(names[2:], up[2:], strict=True)]
        join = partial(mp_cat, t=self.spec.concat_balance)
        return run_levels(h, c, tap, [[block] for block in down], up[:2], joined, join)

    def last(self, h: Tensor) -> Tensor:
        """Return the image [B, C, H, W] of features [B, width, H, W]."""
        return self.out_conv(h, gain=self.out_gain)


class EDM2Net(family.FamilyNet):
    """EDM2's network. Names in the state dict are the published ones.

    Each forward pass that trains first rewrites all weights to magnitude 1
    (gen.models.layers.magnitude.normalise_weights).

    Sites of a tap. Residuals: "blocks.3", a block, counted from the input to the output, and inside it "blocks.3.conv"
    and "blocks.3.attn", such that the sum is magnitude preserving; leaving one out (Skip) leaves the block's shortcut.
    Whole values: "time" (t [B] -> its embedding), "encoder.0" (x -> features), "trunk" with the sites of
    gen.models.layers.conv.run_levels, and "final" (features -> image).
    """

    def __init__(self, spec: EDM2):
        super().__init__()
        self.spec, self.unet = spec, Body(spec)
        if spec.uncertainty:
            self.logvar_fourier = MPFourier(spec.uncertainty)
            self.logvar_linear = MPConv(spec.uncertainty, 1)

    def forward(self, x: Tensor, t: Tensor, cond: Cond, *, s: Tensor | None = None, tap: Tap | None = None) -> Tensor:
        family.check(self.spec, x, t, cond, s)
        if self.training and torch.is_grad_enabled():
            normalise_weights(self)
        net = self.unet
        c = net.condition(call_site(tap, "time", net.time, t), cond)  # [B, emb]
        h = call_site(tap, "encoder.0", net.first, x)  # [B, width, H, W]
        h = call_site(tap, "trunk", lambda h: net.trunk(h, c, tap), h)
        return call_site(tap, "final", net.last, h)  # [B, C, H, W]

    @property
    def logvar(self) -> Callable[[Tensor], Tensor] | None:
        """u: times as passed to the network [B] -> the log-variance of its error [B] (eq. 14-16); None without."""
        if not self.spec.uncertainty:
            return None
        return lambda t: self.logvar_linear(self.logvar_fourier(t))[:, 0]

    def lr_scales(self) -> dict[str, float]:
        """Return the factor on the run's learning rate, for each parameter."""
        return {name: self.spec.lr_scale for name, _ in self.named_parameters()}
