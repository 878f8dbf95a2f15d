"""The network of FID: TensorFlow's Inception graph of 2015-12-05, from the names of either family of weight files.

It is torchvision's Inception-v3 with 1008 classes and these differences (Heusel et al. 2017 used the graph as it was
published): average pools inside the blocks leave the padding out of the count, and the last block pools by maximum.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gen.eval.features.lib.convolution import FoldedConv, fold_norm
from gen.eval.features.lib.weights import check_shapes

__all__ = ["CLASSES", "LAYERS", "SPATIAL", "InceptionNet", "canonical", "claims", "seeded_weights", "shapes"]

EPS = 1e-3  # of every batch norm
CLASSES = 1008
LAYERS = {"64": 64, "192": 192, "768": 768, "2048": 2048}  # pooled layers by torch-fidelity's names, and their widths
SPATIAL = 7  # channels of the spatial features, 17 x 17 x 7


@dataclass(frozen=True)
class Conv:
    """A convolution, its norm and ReLU: out channels, kernel (h, w), stride; padded where the stride is 1."""

    out: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    pads: bool = True

    @property
    def padding(self) -> tuple[int, int]:
        pads = self.pads and self.stride == 1
        return (self.kernel[0] // 2, self.kernel[1] // 2) if pads else (0, 0)


@dataclass(frozen=True)
class Branch:
    """A branch of a block: a pool ("", "average", "max", "shrink"), then convolutions; a pair runs side by side."""

    name: str
    steps: tuple[Conv | tuple[Conv, Conv], ...] = ()
    pool: str = ""

    def convs(self) -> Iterator[tuple[str, str, Conv, int]]:
        """Yield each convolution's name here, its name in NVIDIA's files without the tower, itself, and its step."""
        single = len(self.steps) == 1
        count = 0
        for i, step in enumerate(self.steps):
            if isinstance(step, Conv):
                yield (self.name if single else f"{self.name}_{i + 1}"), _numbered("conv", count), step, i
                count += 1
            else:
                for side, (letter, conv) in enumerate(zip("ab", step, strict=True)):
                    yield f"{self.name}_{i + 1}{letter}", _numbered("mixed_conv", side), conv, i


def _numbered(name: str, i: int) -> str:
    return f"{name}_{i}" if i else name


Block = tuple[Branch, ...]
WIDE, TALL, SQUARE = (1, 7), (7, 1), (3, 3)
HALVING = Branch("", pool="shrink")


def _block_a(pool: int) -> Block:
    double = Conv(64), Conv(96, SQUARE), Conv(96, SQUARE)
    return (
        Branch("branch1x1", (Conv(64),)),
        Branch("branch5x5", (Conv(48), Conv(64, (5, 5)))),
        Branch("branch3x3dbl", double),
        Branch("branch_pool", (Conv(pool),), "average"),
    )


def _block_c(inner: int) -> Block:
    double = Conv(inner), Conv(inner, TALL), Conv(inner, WIDE), Conv(inner, TALL), Conv(192, WIDE)
    return (
        Branch("branch1x1", (Conv(192),)),
        Branch("branch7x7", (Conv(inner), Conv(inner, WIDE), Conv(192, TALL))),
        Branch("branch7x7dbl", double),
        Branch("branch_pool", (Conv(192),), "average"),
    )


def _block_e(pool: str) -> Block:
    sides = Conv(384, (1, 3)), Conv(384, (3, 1))
    return (
        Branch("branch1x1", (Conv(320),)),
        Branch("branch3x3", (Conv(384), sides)),
        Branch("branch3x3dbl", (Conv(448), Conv(384, SQUARE), sides)),
        Branch("branch_pool", (Conv(192),), pool),
    )


STEM = {  # name: convolution, NVIDIA's name
    "Conv2d_1a_3x3": (Conv(32, SQUARE, 2), "conv"),
    "Conv2d_2a_3x3": (Conv(32, SQUARE, pads=False), "conv_1"),
    "Conv2d_2b_3x3": (Conv(64, SQUARE), "conv_2"),
    "Conv2d_3b_1x1": (Conv(80), "conv_3"),
    "Conv2d_4a_3x3": (Conv(192, SQUARE, pads=False), "conv_4"),
}
BLOCKS: Mapping[str, Block] = {
    "Mixed_5b": _block_a(32),
    "Mixed_5c": _block_a(64),
    "Mixed_5d": _block_a(64),
    "Mixed_6a": (
        Branch("branch3x3", (Conv(384, SQUARE, 2),)),
        Branch("branch3x3dbl", (Conv(64), Conv(96, SQUARE), Conv(96, SQUARE, 2))),
        HALVING,
    ),
    "Mixed_6b": _block_c(128),
    "Mixed_6c": _block_c(160),
    "Mixed_6d": _block_c(160),
    "Mixed_6e": _block_c(192),
    "Mixed_7a": (
        Branch("branch3x3", (Conv(192), Conv(320, SQUARE, 2))),
        Branch("branch7x7x3", (Conv(192), Conv(192, WIDE), Conv(192, TALL), Conv(192, SQUARE, 2))),
        HALVING,
    ),
    "Mixed_7b": _block_e("average"),
    "Mixed_7c": _block_e("max"),
}


# -- names and shapes --------------------------------------------------------------------------------------------------


def _convolutions() -> Iterator[tuple[str, str, Conv, int]]:
    """Yield every convolution's name, its name in NVIDIA's files, itself, and its input channels."""
    width = 3
    for name, (conv, other) in STEM.items():
        yield name, other, conv, width
        width = conv.out
    for number, (block_name, block) in enumerate(BLOCKS.items()):
        prefix, towers, out = f"layers.{_numbered('mixed', number)}", 0, 0
        for branch in block:
            single = len(branch.steps) == 1 and not branch.pool
            tower = "" if single else f"{_numbered('tower', towers)}{'_' if block_name >= 'Mixed_7b' else '.'}"
            towers += bool(branch.steps) and not single
            inner = width
            for name, other, conv, step in branch.convs():
                yield f"{block_name}.{name}", f"{prefix}.{tower}{other}".removeprefix("layers."), conv, inner
                last = branch.steps[step]
                inner = conv.out if isinstance(last, Conv) or conv is last[1] else inner
            out += _width(branch, width)
        width = out


def _width(branch: Branch, before: int) -> int:
    """Return the channels that a branch gives."""
    if not branch.steps:
        return before
    last = branch.steps[-1]
    return last.out if isinstance(last, Conv) else sum(conv.out for conv in last)


def shapes() -> dict[str, tuple[int, ...]]:
    """Return the shapes of a state dict, by the names of torch-fidelity and pytorch-fid."""
    out: dict[str, tuple[int, ...]] = {"fc.weight": (CLASSES, 2048), "fc.bias": (CLASSES,)}
    for name, _, conv, before in _convolutions():
        out[f"{name}.conv.weight"] = (conv.out, before, *conv.kernel)
        out |= {f"{name}.bn.{part}": (conv.out,) for part in ("weight", "bias", "running_mean", "running_var")}
    return out


def claims(state: Mapping[str, Tensor]) -> bool:
    """Return whether a state dict has the names of either family.

    Args:
        state: tensors by name.
    """
    return "Mixed_7c.branch_pool.conv.weight" in state or "layers.mixed_10.tower_2_conv.weight" in state


def canonical(state: Mapping[str, Tensor], source: object) -> dict[str, Tensor]:
    """Return weights by torch-fidelity's names, in float32; UserError unless they are exactly this network's.

    Args:
        state: of torch-fidelity or pytorch-fid, with or without num_batches_tracked, or of NVIDIA or OpenAI, whose
            names begin with "layers." and which have no gamma, as it is 1.
        source: of the tensors, for errors.
    """
    state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    if any(name.startswith("layers.") for name in state):
        renamed = {f"{prefix}output.{leaf}": f"fc.{leaf}" for prefix in ("", "layers.") for leaf in ("weight", "bias")}
        leaves = {"weight": "conv.weight", "beta": "bn.bias", "mean": "bn.running_mean", "var": "bn.running_var"}
        for name, other, _, _ in _convolutions():
            renamed |= {f"layers.{other}.{leaf}": f"{name}.{ours}" for leaf, ours in leaves.items()}
        parts = "layers.", "output."  # what else NVIDIA's module holds is of its resizing
        state = {renamed.get(name, name): value for name, value in state.items() if name.startswith(parts)}
        ones = {f"{name}.bn.weight": torch.ones(conv.out) for name, _, conv, _ in _convolutions()}
        state = {**ones, **state}
    check_shapes(state, shapes(), source)
    return {name: state[name].float().contiguous() for name in sorted(state)}


def seeded_weights() -> dict[str, Tensor]:
    """Return random weights from numpy's default_rng(0), with which public tools can be compared without trained ones.

    Names in the order of their bytes: convolutions are normal with variance 2 / fan-in, gammas 1, biases and means
    normal with deviation .1, variances uniform in [.5, 1.5), the last layer's weights normal with deviation .05.
    """
    generator, state = np.random.default_rng(0), dict[str, Tensor]()
    for name, shape in sorted(shapes().items()):
        if name.endswith("bn.weight"):
            value = np.ones(shape)
        elif name.endswith("running_var"):
            value = 0.5 + generator.random(shape)
        else:
            scale = (2 / math.prod(shape[1:])) ** 0.5 if len(shape) == 4 else 0.05 if name == "fc.weight" else 0.1
            value = scale * generator.standard_normal(shape)
        state[name] = torch.from_numpy(value.astype(np.float32))
    return state


# -- the network -------------------------------------------------------------------------------------------------------


class InceptionNet(nn.Module):
    """Pictures [B, 3, 299, 299], (v - 128) / 128, to the outputs that are wanted.

    Args:
        state: weights by torch-fidelity's names.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        convs = {name: _folded(state, name, conv) for name, _, conv, _ in _convolutions()}
        self.stem = nn.ModuleList([convs[name] for name in STEM])
        inner = {name: {k: convs[f"{name}.{k}"] for k in _names(block)} for name, block in BLOCKS.items()}
        self.blocks = nn.ModuleDict({name: InceptionBlock(block, inner[name]) for name, block in BLOCKS.items()})
        self.spatial_conv = inner["Mixed_6d"]["branch1x1"]
        self.fc = nn.Linear(2048, CLASSES)
        self.fc.load_state_dict({"weight": state["fc.weight"], "bias": state["fc.bias"]})
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        """Compute outputs, no further than the last one that is wanted.

        Args:
            x: [B, 3, 299, 299].
            wanted: of LAYERS, means over positions, [B, width]; and "spatial", [B, 17 * 17 * 7].

        Returns:
            The wanted outputs by name.
        """
        wanted, out = set(wanted), dict[str, Tensor]()
        x = x.contiguous(memory_format=torch.channels_last)
        for conv in self.stem[:3]:
            x = conv(x)
        x = F.max_pool2d(x, 3, 2)  # [B, 64, 73, 73]
        out["64"] = x
        if wanted - out.keys():
            x = self.stem[4](self.stem[3](x))
            x = out["192"] = F.max_pool2d(x, 3, 2)  # [B, 192, 35, 35]
        for name, block in self.blocks.items():
            if not wanted - out.keys():
                break
            if name == "Mixed_6d" and "spatial" in wanted:
                out["spatial"] = self.spatial_conv(x)[:, :SPATIAL]
            x = block(x)
            out |= {"768": x} if name == "Mixed_6e" else {"2048": x} if name == "Mixed_7c" else {}
        kept = {name: out[name].mean((2, 3)) for name in LAYERS if name in wanted}
        return kept | ({"spatial": out["spatial"].permute(0, 2, 3, 1).flatten(1)} if "spatial" in wanted else {})


class InceptionBlock(nn.Module):
    """Branches side by side, their channels one after the other.

    Args:
        block: its branches.
        convs: of all branches, by name.
    """

    def __init__(self, block: Block, convs: Mapping[str, FoldedConv]) -> None:
        super().__init__()
        self.block = block
        self.convs = nn.ModuleDict(convs)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([out for branch in self.block for out in self._branch(branch, x)], 1)

    def _branch(self, branch: Branch, x: Tensor) -> Sequence[Tensor]:
        if branch.pool == "average":  # a mean of linear maps is the map of the mean, and the map leaves fewer channels
            x = self.convs[branch.name](x)
            return [F.avg_pool2d(x, 3, 1, 1, count_include_pad=False).relu_()]
        if branch.pool:
            x = F.max_pool2d(x, 3, 1, 1) if branch.pool == "max" else F.max_pool2d(x, 3, 2)
        outs = [x]
        for name, _, _, step in branch.convs():
            fork = not isinstance(branch.steps[step], Conv)
            if fork and name.endswith("b"):
                outs.append(self.convs[name](x))
            else:
                outs = [self.convs[name](x)]
            x = x if fork else outs[0]
        return outs


def _names(block: Block) -> list[str]:
    return [name for branch in block for name, *_ in branch.convs()]


def _folded(state: Mapping[str, Tensor], name: str, conv: Conv) -> FoldedConv:
    norm = [state[f"{name}.bn.{part}"] for part in ("weight", "bias", "running_mean", "running_var")]
    weight, bias = fold_norm(state[f"{name}.conv.weight"], norm, EPS)
    block, _, inner = name.partition(".")
    averaged = any(branch.name == inner and branch.pool == "average" for branch in BLOCKS.get(block, ()))
    return FoldedConv(weight, bias, conv.stride, conv.padding, activation="none" if averaged else "relu")
