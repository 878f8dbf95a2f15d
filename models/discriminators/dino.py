"""Trained heads on the tokens of a frozen DINO, RAE's discriminator."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from gen.config.errors import MissingDependency, UserError
from gen.config.fields import check_fields
from gen.config.reading import file_sha256
from gen.models.interop.weights import read
from gen.models.layers import family

__all__ = ["DinoHeads"]

EPS = 1e-6  # of all norms
PIXELS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's mean and deviation, of pictures in [0, 1]
RANDOM = "random"
SOURCE = "dino_deitsmall8_pretrain.pth of facebookresearch/dino, or RAE's copy dino_vit_small_patch8_224.pth"


@dataclass(frozen=True)
class DinoHeads:
    """Logits of tokens after several blocks of a frozen DINO ViT (Caron et al. 2021), each by a head of its own.

    As in RAE (bytetriper/RAE, src/disc, read), which has it from StyleGAN-T. A head is a convolution, an instance norm
    and a leaky ReLU of slope 0.2; the same again with `kernel` taps along all tokens in a ring, as (y + x) / sqrt(2);
    and a convolution to one logit. Weights are divided by their spectral norm, which is followed by one power iteration
    for each pass in training: how often depends on how a batch is cut. With the defaults there are five heads of
    1,477,249 parameters, and 3,920 logits. The frozen network is read from its file and kept in no checkpoint.

    Attributes:
        path: file of DINO's weights, under their own names; "random" for a network of random weights, a control.
        sha256: of the file, hexadecimal; "" for any, of which the run keeps the digest all the same.
        blocks: of which tokens are seen, counted from 1; the authors' last comes first, and twice.
        kernel: taps of the second convolution, odd.
        side: of the resized pictures, pixels, those that the table of positions is for.
        patch: side of a patch, pixels.
        width, depth, heads: of the tokens, the blocks, the attention.
    """

    path: str = ""
    sha256: str = ""
    blocks: tuple[int, ...] = (12, 3, 6, 9, 12)
    kernel: int = 9
    side: int = 224
    patch: int = 8
    width: int = 384
    depth: int = 12
    heads: int = 6

    def __post_init__(self) -> None:
        check_fields(self, **dict.fromkeys(("kernel", "side", "patch", "width", "depth", "heads"), "[1, inf)"))
        family.divisible(self, "width", self.heads, "heads")
        family.divisible(self, "side", self.patch, "patch")
        if not self.blocks or not all(1 <= block <= self.depth for block in self.blocks):
            raise UserError(f"DinoHeads.blocks {list(self.blocks)}; allowed: 1 to {self.depth}, the depth")
        if self.kernel % 2 == 0:
            raise UserError(f"DinoHeads.kernel {self.kernel} must be odd")

    def build(self, channels: int, sides: tuple[int, int]) -> nn.Module:
        """Return the heads, freshly initialised, on the frozen network.

        Args:
            channels: of the pictures, 1 or 3.
            sides: height and width of the smallest; they are resized.

        Raises:
            MissingDependency: without the file of the frozen network.
            UserError: for pictures of other channels, and for a file of other weights.
        """
        if channels not in (1, 3):
            raise UserError(f"DinoHeads sees pictures of 1 or 3 channels, these have {channels}")
        trunk_of(self, torch.empty(0))
        return DinoNet(self)


class DinoNet(nn.Module):
    """Pictures [B, 1 or 3, H, W] in [-1, 1] to logits [B, heads x tokens]."""

    def __init__(self, spec: DinoHeads) -> None:
        super().__init__()
        self.spec = spec
        self.heads = nn.ModuleList(head(spec.width, spec.kernel) for _ in spec.blocks)

    def forward(self, x: Tensor) -> Tensor:
        own = next(self.parameters())
        kept = trunk_of(self.spec, own)(x.float())
        seen = zip(self.heads, self.spec.blocks, strict=True)
        return torch.cat([head(kept[block].to(own.dtype)).flatten(1) for head, block in seen], 1)


def head(width: int, kernel: int) -> nn.Module:
    """Return a head, of tokens [B, width, T] to logits [B, 1, T].

    Args:
        width: of the tokens.
        kernel: taps of the second convolution.
    """
    return nn.Sequential(block(width, 1), Residual(block(width, kernel)), spectral_norm(nn.Conv1d(width, 1, 1)))


def block(width: int, kernel: int) -> nn.Module:
    """Return a convolution along tokens in a ring, a norm within each picture and channel, and a leaky ReLU.

    Args:
        width: of the tokens.
        kernel: taps.
    """
    convolution = nn.Conv1d(width, width, kernel, padding=kernel // 2, padding_mode="circular")
    return nn.Sequential(spectral_norm(convolution), nn.GroupNorm(width, width, eps=EPS), nn.LeakyReLU(0.2))


class Residual(nn.Module):
    """(f(x) + x) / sqrt(2)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.fn = inner

    def forward(self, x: Tensor) -> Tensor:
        return (self.fn(x) + x) * 0.5**0.5


class Trunk(nn.Module):
    """The frozen ViT: pictures to the tokens [B, width, T] after some of its blocks, by their number.

    Names are DINO's; GELU is approximated by tanh, as in RAE. Biases of keys, which RAE sets to 0, change no attention.
    """

    def __init__(self, spec: DinoHeads) -> None:
        super().__init__()
        self.side, self.seen = spec.side, frozenset(spec.blocks)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, spec.width, spec.patch, spec.patch)})
        self.cls_token = nn.Parameter(torch.randn(1, 1, spec.width) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + (spec.side // spec.patch) ** 2, spec.width) * 0.02)
        self.blocks = nn.ModuleList(Layer(spec.width, spec.heads) for _ in range(max(spec.blocks)))
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        x = F.interpolate(x.expand(-1, 3, -1, -1), (self.side, self.side), mode="bilinear", align_corners=False)
        mean, std = (x.new_tensor(values).reshape(3, 1, 1) for values in PIXELS)
        h = self.patch_embed["proj"](((x + 1) / 2 - mean) / std).flatten(2).mT
        h = torch.cat([self.cls_token.expand(len(h), -1, -1), h], 1) + self.pos_embed
        kept = {}
        for number, layer in enumerate(self.blocks, 1):
            h = layer(h)
            if number in self.seen:
                kept[number] = h[:, 1:].mT
        return kept


class Layer(nn.Module):
    """A pre-norm block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=EPS), nn.LayerNorm(width, eps=EPS)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = self.attn["qkv"](self.norm1(h)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        h = h + self.attn["proj"](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return h + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(h)), approximate="tanh"))


def trunk_of(spec: DinoHeads, like: Tensor) -> Trunk:
    """Return the frozen network of a spec; one without numbers while a run's cost is counted.

    Args:
        spec: of the discriminator.
        like: a tensor on the device where it is to be.
    """
    if isinstance(like, FakeTensor):
        with like.fake_mode:
            return Trunk(spec)
    return _loaded(spec, str(like.device))


@functools.cache
def _loaded(spec: DinoHeads, device: str) -> Trunk:
    """Load a frozen network once for each device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trunk = Trunk(spec)
    if spec.path != RANDOM:
        trunk.load_state_dict(_weights(spec, trunk))
    return trunk.to(device)


def _weights(spec: DinoHeads, trunk: Trunk) -> dict[str, Tensor]:
    """Read the tensors of a trunk, and of nothing else, from a spec's file."""
    path = Path(spec.path)
    if not spec.path or not path.is_file():
        raise MissingDependency(f"DinoHeads.path {spec.path!r} is no file: give {SOURCE}, or {RANDOM!r} as a control")
    if spec.sha256 and (found := file_sha256(path)) != spec.sha256.lower():
        raise UserError(f"{path} has sha256 {found}, DinoHeads.sha256 says {spec.sha256}")
    tensors, wanted = read(path).tensors, trunk.state_dict()
    for name, value in wanted.items():
        if name not in tensors or tensors[name].shape != value.shape:
            has = list(tensors[name].shape) if name in tensors else "not there"
            raise UserError(f"{path} is no DINO of these sizes: {name} is {has}, expected {list(value.shape)}")
    return {name: tensors[name].float() for name in wanted}
