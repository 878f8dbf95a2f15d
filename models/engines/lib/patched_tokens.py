"""Transformers of this project of whose tokens each process computes an equal part."""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.diffusion.denoiser import Cond
from gen.diffusion.net import sides
from gen.diffusion.tap import Tap
from gen.kernels.sequence_parallel.patches import PatchExchange, patch_attention, patch_window
from gen.models.engines.lib.exchanges import key_surroundings
from gen.models.engines.lib.patched import PatchesNet, PatchSettings
from gen.models.engines.lib.trunk import trunk_in_parts
from gen.models.layers.attention import Attention

__all__ = ["TokenPatchesNet"]


class TokenPatchesNet(PatchesNet):
    """A copy of a DiT or LightningDiT. Inside "trunk" the sites of a tap see this process's tokens."""

    divided = ("trunk",)

    def __init__(self, net: Any, engine: PatchSettings, exchange: PatchExchange):
        tokens = math.prod(side // net.spec.patch for side in sides(net.spec))
        if tokens % exchange.parts:
            raise UserError(f"the engine 'patches': {tokens} tokens do not divide into {exchange.parts} parts")
        super().__init__(copy.deepcopy(net), engine, exchange)
        layers = (module for module in self.inner.modules() if isinstance(module, Attention))
        for layer, module in enumerate(layers):
            module.attend = partial(self._attend, layer)

    def forward(self, x: Tensor, t: Tensor, cond: Cond, *, s: Tensor | None = None, tap: Tap | None = None) -> Tensor:
        return self.inner(x, t, cond, s=s, tap=trunk_in_parts(tap, self.exchange.local, self.exchange.gather))

    def _attend(self, layer: int, qkv: Tensor, **options: Any) -> Tensor:
        """Return the attention of the own parts' queries, [B, n, H, d]."""
        now, exchange = self.evaluation, self.exchange
        if qkv.requires_grad and not now.synchronous:
            raise UserError("the engine 'patches' passes no gradients on: sample under torch.no_grad()")
        around, portion = key_surroundings(now, exchange, layer, qkv[:, :, 1:], self.engine.portion)
        pieces, out = qkv.chunk(len(exchange.own), 1), []
        for part, piece, (before, after) in zip(exchange.own, pieces, around, strict=True):
            n = piece.shape[1]
            window = patch_window(part, exchange.parts, exchange.parts * n, portion)
            kv = torch.cat([before, piece[:, :, 1:], after], 1)
            out.append(patch_attention(piece, kv, range(part * n, (part + 1) * n), window, **options))
        return torch.cat(out, 1)
