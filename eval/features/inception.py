"""Inception, the feature space of FID, KID, Inception score and sFID, by each of the field's resize rules."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from gen.config.errors import MissingDependency, UserError
from gen.config.fields import check_fields
from gen.config.writing import replacing
from gen.eval.features.lib.images import in_batches, resized, resized_by_pil, resized_like_tf1, to_colour
from gen.eval.features.lib.inception_net import CLASSES, LAYERS, InceptionNet, canonical
from gen.eval.features.lib.weights import check_suffix, read_state, tensors_sha256

__all__ = ["Inception", "InceptionClassifier", "InceptionExtractor", "convert"]

SIZE = 299
POOL = "2048"
Resize = Literal["tf1", "clean", "torchmetrics", "pytorch-fid"]
Layer = Literal["64", "192", "768", "2048", "logits_unbiased", "logits"]
FETCH = (
    "the FID Inception's weights: fetch pt_inception-2015-12-05-6726825d.pth of pytorch-fid's releases (fid_weights), "
    "or inception-2015-12-05.pt of NVIDIA or OpenAI, and give it, or what `gen import FILE --from inception` makes of "
    "it, as path: --extractor.path FILE"
)


@dataclass(frozen=True)
class Inception:
    """The FID Inception, for uint8 images [B, 1 or 3, H, W]; pool3 gives 2048 features, and a head 1008 classes.

    Every resize rule is an extractor of its own: with the same weights and pictures they give other numbers.

    Attributes:
        path: file of the weights, see `canonical` for its names; safetensors or torch, read as data.
        resize: "tf1" is that of the published FIDs (ADM, EDM, torch-fidelity): TensorFlow 1's bilinear rule; "clean" is
            clean-fid's, PIL's bicubic filter; "torchmetrics" its default, antialiased bilinear; "pytorch-fid"
            bilinear without antialias.
        layer: "2048" is pool3; "64", "192" and "768" are means of earlier layers, as torch-fidelity names them;
            "logits_unbiased" are the scores of which the Inception score is made, "logits" those with the bias.
        batch: images per call of the network, always; no caller's batch size matters.
    """

    path: str = ""
    resize: Resize = "tf1"
    layer: Layer = "2048"
    batch: int = 16

    def __post_init__(self) -> None:
        check_fields(self, batch="[1, inf)")

    def load(self) -> InceptionExtractor:
        """Return the extractor; MissingDependency without the file, UserError for weights of another network."""
        if not self.path:
            raise MissingDependency(f"inception needs {FETCH}")
        state = canonical(read_state(self.path, FETCH)[0], self.path)
        scores = self.layer in (POOL, "logits_unbiased", "logits")
        kind = InceptionClassifier if scores else InceptionExtractor
        return kind(InceptionNet(state), tensors_sha256(state), self.resize, self.layer, self.batch)


@dataclass(frozen=True, eq=False)
class InceptionExtractor:
    """The loaded network; it runs where the images are.

    Attributes:
        net: in float32.
        sha256: digest of the weights by torch-fidelity's names, whatever the file's.
        resize, layer, batch: as of Inception.
    """

    net: InceptionNet
    sha256: str
    resize: str
    layer: str
    batch: int

    @property
    def name(self) -> str:
        return f"inception {self.layer} {self.resize}"

    def __call__(self, images: Tensor) -> Tensor:
        return self._rows(images, ("features",))["features"]

    def spatial(self, images: Tensor) -> Tensor:
        """Return the features of sFID (Nash et al. 2021), [B, 2023].

        They are the first 7 channels of Mixed_6d's 1 x 1 branch, 17 x 17 positions in row order, channels last.

        Args:
            images: uint8 [B, 1 or 3, H, W].
        """
        return self._rows(images, ("spatial",))["spatial"]

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """Return "features" and "spatial" of one pass.

        Args:
            images: uint8 [B, 1 or 3, H, W].
        """
        return self._rows(images, ("features", "spatial"))

    def _rows(self, images: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        net = self.net.to(images.device)
        inner = self.layer if self.layer in LAYERS else POOL

        def compute(part: Tensor) -> Mapping[str, Tensor]:
            out = net(_pixels(part, self.resize), {inner if name == "features" else name for name in wanted})
            if inner in out:
                out["features"] = self._scores(out.pop(inner))
            return out

        return in_batches(to_colour(images, self.name), self.batch, compute)

    def _scores(self, pooled: Tensor) -> Tensor:
        if self.layer in LAYERS:
            return pooled
        out = pooled @ self.net.fc.weight.T
        return out + self.net.fc.bias if self.layer == "logits" else out


class InceptionClassifier(InceptionExtractor):
    """The same at pool3 or at the scores themselves, with which the 1008 classes' scores can be had."""

    classes = CLASSES

    def head(self, features: Tensor) -> Tensor:
        """Return the scores of the Inception score: without the bias, as the published ones are.

        Args:
            features: [B, 2048] of pool3, or scores themselves.

        Returns:
            Scores [B, 1008]; their classes are not ImageNet's 1000 in order.
        """
        if self.layer != POOL:
            return features
        return (features.to(self.net.fc.weight) @ self.net.fc.weight.T).float().cpu()


def _pixels(images: Tensor, resize: str) -> Tensor:
    """Return the network's input [B, 3, 299, 299] by a resize rule."""
    if resize == "pytorch-fid":
        return 2 * resized(images.float() / 255, SIZE, "bilinear", antialias=False) - 1
    if resize == "clean":
        x = resized_by_pil(images, (SIZE, SIZE), rounded=False)
    elif resize == "torchmetrics":
        x = resized(images, SIZE, "bilinear", antialias=True)
    else:
        x = resized_like_tf1(images, SIZE)
    return (x - 128) / 128


def convert(tensors: Mapping[str, Tensor], source: Path, out: Path) -> Path:
    """Write weights as safetensors that remember the sha256 of the file they came from.

    Args:
        tensors: a state dict by either family of names, see `canonical`.
        source: the file; UserError if its name ends in another sha256's first digits.
        out: a new file ending in .safetensors, or a folder for inception.safetensors.

    Returns:
        The file that was written.
    """
    from safetensors.torch import save_file

    out = out if out.suffix == ".safetensors" else out / "inception.safetensors"
    if out.exists():
        raise UserError(f"{out} exists: give a new file or folder")
    sha256 = check_suffix(source)
    state = canonical(tensors, source)
    out.parent.mkdir(parents=True, exist_ok=True)
    about = {"network": "inception", "source": source.name, "source_sha256": sha256, "digest": tensors_sha256(state)}
    with replacing(out) as partial:
        save_file(state, partial, about)
    return out
