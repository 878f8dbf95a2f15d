"""A classifier's belief in the label of the condition."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.images import to_uint8
from gen.config.spec import part
from gen.diffusion.denoiser import Cond

__all__ = ["Classifier"]


@dataclass(frozen=True)
class Classifier:
    """The belief of a frozen classifier of pixels in cond["y"]: a toy reward that is exact, and that can be hacked.

    Watch the diversity that is logged beside the reward: a policy that draws one good digit ten times wins here.

    Attributes:
        classifier: a feature extractor with a head, such as digits_cnn.
        kind: "probability" is bounded, so that a sure sample gains nothing from being surer; "log" has no end below,
            and "logit" none above either: that one is hacked first, and shows how.
        cap: rewards above it count as it (1 - 1e-3 leaves a probability no room at its top); None for no cap.
    """

    classifier: Any = part("eval.features", default="digits_cnn")
    kind: Literal["probability", "log", "logit"] = "probability"
    cap: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    @cached_property
    def judge(self) -> Any:
        """The extractor, loaded once."""
        judge = self.classifier.load()
        if not hasattr(judge, "head"):
            name = type(self.classifier).__name__
            raise UserError(f"Classifier: the extractor {name} has no classes; allowed: one with a head, as digits_cnn")
        return judge

    def __call__(self, x: Tensor, cond: Cond) -> Tensor:
        if "y" not in cond:
            raise UserError("the reward classifier judges labels, and these samples have none")
        logits = self.judge.head(self.features(x)).double()
        if (most := int(cond["y"].max())) >= logits.shape[1]:
            raise UserError(f"the reward classifier knows {logits.shape[1]} classes, and a sample has the label {most}")
        scores = logits if self.kind == "logit" else logits.log_softmax(1)
        scores = scores.exp() if self.kind == "probability" else scores
        out = scores.gather(1, cond["y"].cpu()[:, None])[:, 0]
        return (out if self.cap is None else out.clamp(max=self.cap)).to(x.device)

    def features(self, x: Tensor) -> Tensor:
        """Return the classifier's features [B, D], on the CPU."""
        with torch.no_grad():
            return self.judge(to_uint8(x.detach().float()))
