"""Operations of PyTorch on a part of a sample, which are computed as if all of it were there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gen.config.errors import UserError
from gen.diffusion.tap import Compute, SiteCall, run_site_call
from gen.kernels.sequence_parallel.patches import PatchExchange
from gen.models.engines.lib.exchanges import Evaluation, key_surroundings

__all__ = ["PartOperations", "attend"]

attend = nn.functional.scaled_dot_product_attention


class PartOperations(TorchFunctionMode):
    """Computes, within a `with`, operations on this process's part; `names` are those that are not left as they are.

    Those in `names` are computed otherwise than as they are, those that are `unknown` refused. It is also a tap: what
    an operation has exchanged is known by its site and its number there, so that what a cache leaves out changes no
    other's.

    Args:
        exchange: between parts, of which every process has as many.
        evaluation: of the network.
        portion: of a neighbour's keys and values that are attended to; None for all of all parts.

    Attributes:
        off: whether operations are left as they are for now.
        cross: whether attention is to something else than the sample.
    """

    names: ClassVar[Mapping[Any, str]] = {attend: "attention"}  # operation -> the method that computes it
    unknown: ClassVar[Sequence[Any]] = (torch.baddbmm,)

    def __init__(self, exchange: PatchExchange, evaluation: Evaluation, portion: float | None):
        super().__init__()
        self.exchange, self.evaluation, self.portion = exchange, evaluation, portion
        self.off = self.cross = False
        self.sites = [""]
        self.counts: dict[str, int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        name = None if self.off else self.names.get(func)
        if not self.off and func in self.unknown:
            raise UserError(f"the engine 'patches' does not know how {func.__name__} goes over parts of a sample")
        return (func if name is None else getattr(self, name))(*args, **(kwargs or {}))

    def __call__(self, site: str, compute: Compute, h: Tensor) -> Tensor:
        return run_site_call(self.stepwise(site, h), compute)

    def stepwise(self, site: str, h: Tensor) -> SiteCall:
        """Return the call of a site in two halves, see gen.diffusion.tap.SiteCall."""
        self.sites.append(site)
        out = yield h
        self.sites.pop()
        return out

    def attention(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Return torch's attention [B, heads, n, d] of the own tokens to all of the sample, or to what is none."""
        if self.cross:
            return attend(query, key, value, attn_mask, *args, **kwargs)
        if attn_mask is not None:
            raise UserError("the engine 'patches': masked attention within a sample is of the whole sample")
        kv, out, count = self.keys(key, value), [], len(self.exchange.own)
        around, _ = key_surroundings(self.evaluation, self.exchange, self.key(), kv, self.portion)
        for q, piece, (before, after) in zip(query.chunk(count, 2), kv.chunk(count, 1), around, strict=True):
            k, v = heads_first(torch.cat([before, piece, after], 1))
            out.append(attend(q, k, v, None, *args, **kwargs))
        return torch.cat(out, 2)

    def keys(self, key: Tensor, value: Tensor) -> Tensor:
        """Return keys and values [B, heads, n, d] as they travel, [B, n, 2, heads, d]."""
        self.check(key)
        return torch.stack([key, value], 2).transpose(1, 3)

    def key(self) -> tuple[str, int]:
        """Return the site of the operation at hand, and its number there."""
        site = self.sites[-1]
        self.counts[site] = number = self.counts.get(site, -1) + 1
        return site, number

    def check(self, h: Tensor) -> None:
        """Raise UserError for a value that gradients are wanted of."""
        if h.requires_grad:
            raise UserError("the engine 'patches' passes no gradients on: sample under torch.no_grad()")


def heads_first(kv: Tensor) -> tuple[Tensor, Tensor]:
    """Return keys and values, each [B, heads, m, d], of what travelled, [B, m, 2, heads, d]."""
    k, v = kv.transpose(1, 3).unbind(2)
    return k, v
