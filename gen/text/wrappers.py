"""Predictors around another one: tokens that are never predicted, and classifier-free guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gen.text.contracts import KvCache, Predictor

__all__ = ["GuidedPredictor", "SuppressedPredictor", "WrappedPredictor", "nfe_per_call"]


def nfe_per_call(predictor: Predictor) -> int:
    """Return how many evaluations of the network one call of a predictor takes.

    Args:
        predictor: it may say so in an attribute of this name; else 1.
    """
    return int(getattr(predictor, "nfe_per_call", 1))


@dataclass(frozen=True, eq=False)
class WrappedPredictor:
    """A predictor with the ids, blocks and cache of another one.

    Attributes:
        inner: the other predictor.
    """

    inner: Predictor

    @property
    def vocab_size(self) -> int:
        return self.inner.vocab_size

    @property
    def mask_token_id(self) -> int:
        return self.inner.mask_token_id

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        return self.inner.eos_token_ids

    @property
    def block_size(self) -> int | None:
        return self.inner.block_size

    @property
    def shift(self) -> int:
        return self.inner.shift

    @property
    def nfe_per_call(self) -> int:
        return nfe_per_call(self.inner)

    def init_cache(self, rows: int, length: int) -> KvCache:
        return self.inner.init_cache(rows, length)


@dataclass(frozen=True, eq=False)
class SuppressedPredictor(WrappedPredictor):
    """Logits of suppressed tokens are -inf, whatever the temperature (LLaDA's logits_eos_inf).

    Attributes:
        ids: tokens that are never predicted.
    """

    ids: tuple[int, ...]

    def __call__(
        self, tokens: Tensor, lengths: Tensor | None = None, positions: Tensor | None = None, **cached: Any
    ) -> Tensor:
        logits = self.inner(tokens, lengths, positions, **cached)
        return logits.index_fill(-1, torch.tensor(self.ids, device=logits.device), -torch.inf)


@dataclass(frozen=True, eq=False)
class GuidedPredictor(WrappedPredictor):
    """Classifier-free guidance: u + (scale + 1) (c - u), u the logits with the prompt masked (LLaDA's cfg_scale).

    It takes no KV cache: two prompts would need two.

    Attributes:
        scale: 0 is no guidance.
        prompt_end: end of each canvas's prompt, int64 [B].
    """

    scale: float
    prompt_end: Tensor

    @property
    def nfe_per_call(self) -> int:
        return 2 * super().nfe_per_call

    def __call__(
        self, tokens: Tensor, lengths: Tensor | None = None, positions: Tensor | None = None, **cached: Any
    ) -> Tensor:
        prompt = torch.arange(tokens.shape[1], device=tokens.device) < self.prompt_end[:, None]
        both = torch.cat([tokens, tokens.masked_fill(prompt, self.mask_token_id)])
        twice = [None if v is None else torch.cat([v, v]) for v in (lengths, positions)]
        cond, uncond = self.inner(both, *twice, **cached).chunk(2)
        return torch.where(cond == uncond, cond, uncond + (self.scale + 1) * (cond - uncond))  # -inf - -inf is none
