"""Feature extractors: one file each, from images to the vectors in which metrics compare them.

An extractor's spec is a frozen dataclass with `load()`, which reads weights, checks their sha256 and returns the
`Extractor`; the protocols below are the whole contract:

    @dataclass(frozen=True)
    class Grey:
        '''The mean of each image.'''

        name = "grey"
        sha256 = ""

        def load(self) -> Grey:
            return self

        def __call__(self, images: Tensor) -> Tensor:
            return images.cpu().float().flatten(1).mean(1, keepdim=True) / 255

A file in this folder is found by its name ({"name": "digits_cnn"}); one from elsewhere is named
"my_package.my_module:Grey". Shared pieces lie in gen.eval.features.lib: files of weights, resize rules, batches of one
size. What an extractor may have besides, and metrics that need it ask for:

    head(features) -> [B, K]     class scores (`Classifier`): accuracy, Inception score
    spatial(images) -> [B, S]    features that keep positions: sFID
    outputs(images) -> {"features": [B, D], "spatial": [B, S]}    both in one pass of the network
    text(prompts) -> [B, E]      embeddings of texts, unit length: CLIP score
    embed(images) -> [B, E]      embeddings of images in the space of texts, where they are not the features

The laws: each row is a function of its image alone, to the bit, whatever else is in the batch; two extractors whose
features may differ, be it by network, weights, layer, resize rule or dtype, differ in (name, sha256), for these decide
which records share a leaderboard; nothing is downloaded, and weights with another sha256 than a pinned one are refused.
A network runs where the images are; grey pictures are repeated to three channels where it needs them, alpha is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Classifier", "Extractor", "ExtractorSpec"]


class Extractor(Protocol):
    """A loaded extractor."""

    @property
    def name(self) -> str:
        """Network, layer, resize rule and dtype, as far as they are not the only ones: "digits_cnn"."""
        ...

    @property
    def sha256(self) -> str:
        """Digest of the weights, or of their file where there is only one; "" for an extractor without weights."""
        ...

    def __call__(self, images: Tensor) -> Tensor:
        """Compute features row by row.

        Args:
            images: uint8 [B, C, H, W], on any device.

        Returns:
            Features float32 [B, D], on the CPU.

        Raises:
            UserError: for images that it cannot take.
        """
        ...


@runtime_checkable
class Classifier(Extractor, Protocol):
    """A loaded extractor with a classifier's head."""

    @property
    def classes(self) -> int:
        """Number of classes; samples with as many labels are judged by it without being asked."""
        ...

    def head(self, features: Tensor) -> Tensor:
        """Compute class scores.

        Args:
            features: float32 [B, D], as the extractor returns them.

        Returns:
            Class scores [B, K].
        """
        ...


class ExtractorSpec(Protocol):
    """A frozen dataclass of an extractor's options."""

    def load(self) -> Extractor:
        """Read the weights, check them, and return the extractor.

        Returns:
            The extractor, ready to be called.

        Raises:
            UserError: if the weights are not those that the spec asks for.
        """
        ...
