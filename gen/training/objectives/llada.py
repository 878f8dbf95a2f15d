"""LLaDA: every masked token's cross-entropy over the fraction that is masked."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.diffusion.net import unwrap
from gen.text.mask_path import corrupt
from gen.training.objectives import Batch, Roles, to_device
from gen.training.objectives.lib.masked import MaskedObjective, TokenBatch, text_uniforms, token_batch, token_losses

__all__ = ["LLaDA"]


@dataclass(frozen=True)
class LLaDA(MaskedObjective):
    """Sum of CE / p over the masked tokens of a text, over its number of trained tokens; the mean over texts.

    Nie et al. 2025, eqs. 3 and 5: p = (1 - eps) u + eps is one number per text, u uniform. Prompts are never masked;
    without prompts this is the pre-training loss. The path plays no part.

    Attributes:
        eps: least fraction that is masked; LLaDA's 1e-3.
        random_length: probability that a text is cut to a random length (LLaDA draws it once per batch, here each text
            by itself, so that batches may be cut anyhow).
        stratified: one u in each of n equal shares, by index in the batch; LLaDA draws them alone.
    """

    eps: float = 1e-3
    random_length: float = 0.0
    stratified: bool = False

    def __post_init__(self) -> None:
        check_fields(self, eps="[0, 1)", random_length="[0, 1]", balance="[0, inf)")

    def tokens(self, net: nn.Module, batch: Batch) -> TokenBatch:
        return token_batch(batch, net, self.random_lengths(net, batch) if self.random_length else None)

    def random_lengths(self, net: nn.Module, batch: Batch) -> Tensor:
        """Draw the length of each text, [B]: its own or, for some, uniform after the prompt's first token."""
        whole = token_batch(batch, net)
        if whole.documents is not None:
            raise UserError("LLaDA: random_length cuts windows of one text, and these hold several: set it to 0")
        first = whole.trained.to(torch.uint8).argmax(1)
        cut = first + 1 + (batch.to_device(batch.noise.uniform("cut.at")) * (whole.length - first)).long()
        return torch.where(batch.to_device(batch.noise.uniform("cut")) < self.random_length, cut, whole.length)

    def times(self, net: nn.Module, batch: Batch, stratified: bool) -> Tensor:
        return text_uniforms(batch, stratified)

    def losses(self, roles: Roles, tokens: TokenBatch, t: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        net, x = roles["net"].net, tokens.x
        p = to_device((1 - self.eps) * t + self.eps, x.device)
        noisy = corrupt(x, tokens.of_texts(p), to_device(u, x.device), unwrap(net).mask_token_id, ~tokens.trained)
        masked = noisy != x
        losses, likeliest = token_losses(net(noisy, **tokens.attended), x)
        return torch.where(masked, losses / tokens.of_texts(p.to(losses.dtype)), 0), masked, likeliest

    def number(self, tokens: TokenBatch) -> Tensor:
        if tokens.documents is None:
            return tokens.x.new_full((), len(tokens.x))
        return (_trained(tokens.documents, tokens) > 0).sum()

    def reduce(self, losses: Tensor, tokens: TokenBatch) -> Tensor:
        if tokens.documents is None:
            return (losses.sum(1) / tokens.count).mean()
        each = _trained(tokens.documents, tokens).clamp(min=1)
        return (losses / tokens.of_texts(each)).sum() / self.number(tokens).clamp(min=1)


def _trained(documents: Tensor, tokens: TokenBatch) -> Tensor:
    """Return the number of trained tokens by document, [B, L]."""
    return documents.new_zeros(documents.shape).scatter_add(1, documents, tokens.trained.long())
