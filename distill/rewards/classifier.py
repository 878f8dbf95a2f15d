"""A classifier's belief in the label that was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.images import to_uint8
from gen.config.spec import build, part
from gen.diffusion.denoiser import Cond

__all__ = ["Classifier"]


@dataclass(frozen=True)
class Classifier:
    """How sure a frozen classifier of pixels is of cond["y"]: a toy reward that is exact, and that can be hacked.

    classifier: a feature extractor with a head, such as digits_cnn. kind: "probability" is bounded, so that a sure
    sample gains nothing from being surer; "log" has no end below, and "logit" none above either: that one is hacked
    first, and shows how. cap: rewards above it count as it (1 - 1e-3 leaves a probability no room at its top).
    Watch the diversity that is logged beside the reward: a policy that draws one good digit ten times wins here.
    """

    classifier: Any = part("eval.features", default="digits_cnn")
    kind: Literal["probability", "log", "logit"] = "probability"
    cap: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "classifier", build("eval.features", self.classifier))

    @cached_property
    def judge(self) -> Any:
        """The extractor, loaded once."""
        judge = self.classifier.load()
        if not hasattr(judge, "head"):
            name = type(self.classifier).__name__
            raise UserError(f"Classifier: the extractor {name} has features but no classes; allowed: digits_cnn")
        return judge

    def __call__(self, x: Tensor, cond: Cond) -> Tensor:
        if "y" not in cond:
            raise UserError("the reward classifier judges labels, and these samples were asked for none")
        logits = self.judge.head(self.features(x)).double()
        scores: Tensor = logits if self.kind == "logit" else logits.log_softmax(1)
        scores = scores.exp() if self.kind == "probability" else scores
        out = scores.gather(1, cond["y"].cpu()[:, None])[:, 0]
        return (out if self.cap is None else out.clamp(max=self.cap)).to(x.device)

    def features(self, x: Tensor) -> Tensor:
        """The classifier's, on the CPU."""
        with torch.no_grad():
            features: Tensor = self.judge(to_uint8(x.detach().float()))
        return features
