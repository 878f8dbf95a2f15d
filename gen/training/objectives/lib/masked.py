"""What the objectives of masked text share: which tokens are trained, their times and masks, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.diffusion.denoiser import DenoiserLike
from gen.diffusion.net import unwrap
from gen.text.contracts import positions_between
from gen.text.mask_path import MaskPath
from gen.training.objectives import Batch

__all__ = [
    "Masking",
    "Tokens",
    "check_masks",
    "check_path",
    "report",
    "stratified",
    "token_losses",
    "tokens_of",
]


@dataclass(frozen=True)
class Masking:
    """An objective of one network, "net", that predicts masked tokens."""

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        check_masks(net, type(self).__name__)
        return {"net": net}


@dataclass(frozen=True, eq=False)
class Tokens:
    """x int64 [B, L]; trained bool [B, L]: the places from a prompt's end to a text's; length [B], and that of all."""

    x: Tensor
    trained: Tensor
    length: Tensor

    @property
    def lengths(self) -> Tensor | None:
        """What a network is told of the padding: nothing where there is none."""
        return None if bool((self.length == self.x.shape[1]).all()) else self.length

    @property
    def count(self) -> Tensor:
        """How many tokens of each text are trained, [B]; 1 where none is, so that one may divide by it."""
        return self.trained.sum(1).clamp(min=1)


def tokens_of(batch: Batch, length: Tensor | None = None) -> Tokens:
    """A batch's tokens: before cond["prompt"] they are given, from cond["length"] on they are padding (both [B]).

    length [B]: texts are cut there.
    """
    x, cond = batch.x, batch.cond
    b, n = x.shape
    prompt = cond.get("prompt", torch.zeros(b, dtype=torch.int64, device=x.device))
    end = cond.get("length", torch.full((b,), n, device=x.device))
    end = end if length is None else torch.minimum(end, length.to(end))
    return Tokens(x, positions_between(n, prompt, end), end)


def check_masks(net: nn.Module, owner: str) -> None:
    """Raises UserError for a network that has no mask token."""
    if not isinstance(getattr(unwrap(net), "mask_token_id", None), int):
        spec = getattr(unwrap(net), "spec", None)
        raise UserError(f"{owner} trains networks that predict masked tokens, such as the model text, and "
                        f"{type(spec if spec is not None else net).__name__} has no mask token")  # fmt: skip


def check_path(path: Any, owner: str) -> None:
    """Raises UserError for a path of numbers."""
    if not isinstance(path, MaskPath):
        raise UserError(
            f"{owner} needs a path of masks (gen/text/mask_path.py), e.g. --path log_linear; this is {path!r}"
        )


def stratified(u: Tensor) -> Tensor:
    """Uniform numbers made to lie one in each of n equal shares of [0, 1): element i in the i-th, whatever u [...] is.

    So an element depends on its place in the batch, and batches cut otherwise see other times (MDLM's antithetic ones).
    """
    n = u.numel()
    return (u + torch.arange(n, dtype=u.dtype, device=u.device).reshape(u.shape)) / n


def token_losses(logits: Tensor, x: Tensor, mask: int | None = None) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats [B, L] of tokens x under logits [B, L, V], float32 at least, and whether x is likeliest.

    mask: the id of the mask token, to which no probability is given (MDLM's SUBS); None leaves it what it has.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    if mask is not None:
        wide = wide.index_fill(-1, torch.tensor([mask], device=wide.device), -torch.inf)
    losses = nn.functional.cross_entropy(wide.flatten(0, 1), x.flatten(), reduction="none").view(x.shape)
    return losses, wide.detach().argmax(-1) == x


def report(masked: Tensor, trained: Tensor, right: Tensor) -> Mapping[str, Tensor]:
    """What is logged: the share of tokens that were masked, and of these the share that was guessed."""
    hidden = masked.sum().clamp(min=1)
    return {"masked": masked.sum() / trained.sum().clamp(min=1), "accuracy": (right & masked).sum() / hidden}
