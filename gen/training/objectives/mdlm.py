"""MDLM: the negative evidence bound of masked diffusion in continuous time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.diffusion.net import unwrap
from gen.text.mask_path import corrupt
from gen.training.objectives import Batch, Roles, Step
from gen.training.objectives.lib.masked import (
    Masking,
    Tokens,
    check_path,
    report,
    stratified,
    token_losses,
    tokens_of,
)

__all__ = ["MDLM"]


@dataclass(frozen=True)
class MDLM(Masking):
    """Sum of path.weight(t) CE over the masked tokens, over the number of trained ones in the batch: nats per token.

    Sahoo et al. 2024, eqs. 10 and 11: t = (1 - eps) u + eps per text, u uniform; the mask token gets no probability.
    antithetic: one u in each of n equal shares of [0, 1), by place in the batch. Any path of gen/text/mask_path.py.
    """

    eps: float = 1e-3
    antithetic: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.eps < 1:
            raise UserError(f"MDLM: eps = {self.eps}; 0 <= eps < 1")

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        check_path(roles["net"].path, "MDLM")
        tokens, u = tokens_of(batch), batch.noise.uniform("t")
        t = (1 - self.eps) * (stratified(u) if self.antithetic else u) + self.eps
        losses, masked, right = self.losses(roles, tokens, t, self.hits(batch))
        yield "net", losses.sum() / tokens.trained.sum().clamp(min=1), dict(report(masked, tokens.trained, right))

    def hits(self, batch: Batch) -> Tensor:
        """Uniform numbers [B, L]: a token is masked where its own is below mask(t)."""
        return batch.noise.uniform("mask", batch.x.shape[1])

    def losses(self, roles: Roles, tokens: Tokens, t: Tensor, hits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of each token, [B, L]: weight(t) CE where it is masked, else 0; whether it is masked; whether guessed."""
        net, path, x = roles["net"].net, roles["net"].path, tokens.x
        share, weight = path.masked_fraction(t).to(x.device), path.weight(t).to(x.device)
        noisy = corrupt(x, share, hits.to(x.device), unwrap(net).mask_token_id, ~tokens.trained)
        masked = noisy != x
        losses, right = token_losses(net(noisy, tokens.lengths), x, unwrap(net).mask_token_id)
        return torch.where(masked, losses * weight[:, None].to(losses.dtype), 0), masked, right

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """The loss on fixed masks at stratified times."""
        tokens = tokens_of(batch)
        t = (1 - self.eps) * stratified(batch.noise.uniform("t")) + self.eps
        losses, _, _ = self.losses(roles, tokens, t, self.hits(batch))
        return losses.sum() / tokens.trained.sum().clamp(min=1)
