"""MDLM: the negative evidence bound of masked diffusion in continuous time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gen.config.fields import check_fields
from gen.diffusion.net import unwrap
from gen.text.mask_path import corrupt
from gen.training.objectives import Batch, Roles, to_device
from gen.training.objectives.lib.masked import MaskedObjective, TokenBatch, check_mask_path, text_uniforms, token_losses

__all__ = ["MDLM"]


@dataclass(frozen=True)
class MDLM(MaskedObjective):
    """Sum of path.weight(t) CE over the masked tokens, over the number of trained ones in the batch: nats per token.

    Sahoo et al. 2024, eqs. 10 and 11: one time per text; the mask token gets no probability.

    Attributes:
        eps: times are (1 - eps) u + eps, u uniform; MDLM's 1e-3.
        stratified: one u in each of n equal shares of [0, 1), by index in the batch (MDLM's antithetic_sampling).
    """

    eps: float = 1e-3
    stratified: bool = True

    def __post_init__(self) -> None:
        check_fields(self, eps="[0, 1)", balance="[0, inf)")

    def times(self, net: nn.Module, batch: Batch, stratified: bool) -> Tensor:
        return (1 - self.eps) * text_uniforms(batch, stratified) + self.eps

    def losses(self, roles: Roles, tokens: TokenBatch, t: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        net, path, x = roles["net"].net, check_mask_path(roles["net"].path, "MDLM"), tokens.x
        mask, fraction, weight = unwrap(net).mask_token_id, to_device(path.masked_fraction(t), x.device), path.weight(t)
        noisy = corrupt(x, tokens.of_texts(fraction), to_device(u, x.device), mask, ~tokens.trained)
        masked = noisy != x
        losses, likeliest = token_losses(net(noisy, **tokens.attended), x, mask)
        return torch.where(masked, losses * tokens.of_texts(weight.to(losses)), 0), masked, likeliest
