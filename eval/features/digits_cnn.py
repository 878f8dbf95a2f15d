"""A small classifier of handwritten digits, whose last hidden layer is the feature space of the embedded data.

Trained here and shipped beside this file. To make it again: python -m gen.eval.features.digits_cnn
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gen.config.errors import MissingDependency, UserError
from gen.config.fields import check_fields
from gen.config.writing import replacing

__all__ = ["DigitsCNN", "DigitsExtractor", "Net", "train"]

WEIGHTS = Path(__file__).with_suffix(".safetensors")


@dataclass(frozen=True)
class DigitsCNN:
    """Three convolutions, 64 features, ten classes, for uint8 images [B, 1, 8, 8].

    Attributes:
        sha256: of the weights' file; anything else is refused.
        batch: images per call of the network, always: the last call is filled up, so that no caller's batch size
            matters.
    """

    sha256: str = "4737e51072bc8a507f974303c8e376669b68ad7eeac5e36c7dc347fe47f153fd"
    batch: int = 250

    def __post_init__(self) -> None:
        check_fields(self, batch="[1, inf)")

    def load(self, weights: Path = WEIGHTS) -> DigitsExtractor:
        """Return the extractor; UserError if the file is missing or is not the one that this class was shipped with."""
        from safetensors.torch import load

        rebuild = "to make it again: python -m gen.eval.features.digits_cnn"
        if not weights.is_file():
            raise MissingDependency(f"{weights} is not there; {rebuild}")
        content = weights.read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if found != self.sha256:
            raise UserError(f"{weights} has sha256 {found[:16]}..., expected {self.sha256[:16]}...; {rebuild}")
        net = Net()
        net.load_state_dict(load(content))
        return DigitsExtractor(net.double().eval().requires_grad_(False), found, self.batch)


class Net(nn.Module):
    """Pixels in [-1, 1], [B, 1, 8, 8], to features [B, 64]; `head` turns those into logits [B, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(64, 64, 3, padding=1)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.conv1(x))  # [B, 32, 8, 8]
        x = F.silu(self.conv2(x))  # [B, 64, 4, 4]
        return F.silu(self.conv3(x)).mean((2, 3))  # [B, 64]


@dataclass(frozen=True, eq=False)
class DigitsExtractor:
    """The loaded network; features are computed in float64, then rounded, on the CPU.

    Attributes:
        net: in float64.
        sha256: of the weights' file.
        batch: images per call of the network.
        name: as records have it.
        dim: width of the features.
        classes: of the head.
    """

    net: nn.Module
    sha256: str
    batch: int
    name: str = "digits_cnn"
    dim: int = 64
    classes: int = 10

    def __call__(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8 or images.shape[1:] != (1, 8, 8):
            given = f"{str(images.dtype).removeprefix('torch.')} {list(images.shape)}"
            raise UserError(f"digits_cnn takes uint8 images [B, 1, 8, 8], this is {given}; try the extractor 'pixels'")
        return torch.cat([self._features(part) for part in torch.split(images.cpu(), self.batch)]).float()

    def logits(self, images: Tensor) -> Tensor:
        """Return class scores, float32 [B, 10]."""
        return self.head(self(images))

    def head(self, features: Tensor) -> Tensor:
        """Return class scores from features [B, 64], float32 [B, 10]."""
        out: Tensor = self.net.head(features.double())  # type: ignore[operator]
        return out.float()

    @torch.no_grad()
    def _features(self, images: Tensor) -> Tensor:
        full = torch.zeros(self.batch, *images.shape[1:], dtype=torch.float64)
        full[: len(images)] = images.double() / 127.5 - 1
        out: Tensor = self.net(full)
        return out[: len(images)]


def train(x: Tensor, y: Tensor, steps: int = 1500, noise: float = 0.25, seed: int = 0) -> Net:
    """Train the classifier: AdamW, cosine decay, smoothed labels.

    Each image gets noise of its own strength, up to `noise`: without it the judgement of an image that is slightly off,
    as generated ones are, is a matter of chance, and one class's mean image is misread.

    Args:
        x: uint8 images [N, 1, 8, 8].
        y: labels [N].
        steps: of batches of 128.
        noise: the most.
        seed: of weights, batches and noise.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Net()
    images = x.float() / 127.5 - 1
    optim = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.05)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optim, steps)
    for _ in range(steps):
        rows = torch.randint(len(x), (128,), generator=generator)
        strength = noise * torch.rand(128, 1, 1, 1, generator=generator)
        batch = images[rows] + strength * torch.randn(images[rows].shape, generator=generator)
        loss = F.cross_entropy(net.head(net(batch)), y[rows], label_smoothing=0.1)
        optim.zero_grad()
        loss.backward()
        optim.step()
        decay.step()
    return net


def main() -> None:
    """Train on the training digits, print the accuracy on the held-out ones, and write the file and its sha256."""
    from safetensors.torch import save

    from gen.data.digits import Digits
    from gen.eval.reference import stack

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    images, labels = stack(Digits().open("train"))
    assert labels is not None
    net = train(images, labels)
    content = save({name: tensor.contiguous() for name, tensor in net.state_dict().items()})
    digest = hashlib.sha256(content).hexdigest()
    images, labels = stack(Digits().open("test"))
    assert labels is not None
    extractor = DigitsExtractor(net.double().eval(), digest, DigitsCNN.batch)
    accuracy = torch.eq(extractor.logits(images).argmax(1), labels).double().mean()
    with replacing(WEIGHTS) as partial:
        partial.write_bytes(content)
    print(f"{WEIGHTS.name}: {len(content)} bytes, test accuracy {float(accuracy):.4f}\nsha256 {digest}")


if __name__ == "__main__":
    main()
