"""U-Nets of this project of whose rows each process computes an equal part."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

from torch import Tensor

from gen.config.errors import UserError
from gen.diffusion.denoiser import Cond
from gen.diffusion.net import sides
from gen.diffusion.tap import Compute, Tap, call_site
from gen.kernels.sequence_parallel.patches import PatchExchange
from gen.models.engines.lib.patched import PatchesNet, PatchSettings
from gen.models.engines.lib.rows import RowOperations

__all__ = ["RowPatchesNet", "check_rows", "gather_rows", "local_rows"]


def check_rows(rows: int, halvings: int, parts: int) -> None:
    """Raise UserError where rows do not divide.

    Args:
        rows: of the picture.
        halvings: of them, on the way down.
        parts: that they are shared out to.
    """
    if rows % parts or (rows // parts) % 2**halvings:
        raise UserError(f"the engine 'patches': {rows} rows do not divide into {parts} parts that can be halved "
                        f"{halvings} times")  # fmt: skip


def local_rows(exchange: PatchExchange, h: Tensor) -> Tensor:
    """Return this process's rows of a feature map.

    Args:
        exchange: between parts.
        h: all rows, [B, C, H, W].
    """
    return exchange.local(h.movedim(2, 1)).movedim(1, 2)


def gather_rows(exchange: PatchExchange, h: Tensor) -> Tensor:
    """Return all rows, [B, C, H, W], on every process.

    Args:
        exchange: between parts.
        h: this process's rows, [B, C, n, W].
    """
    return exchange.gather(h.movedim(2, 1)).movedim(1, 2)


class RowPatchesNet(PatchesNet):
    """A copy of a U-Net. From "trunk" on the sites of a tap see this process's rows; the first layer sees all."""

    divided = ("trunk", "final")

    def __init__(self, net: Any, engine: PatchSettings, exchange: PatchExchange):
        check_rows(sides(net.spec)[0], len(net.spec.multipliers) - 1, exchange.parts)
        if getattr(net.spec, "residual", False):
            raise UserError("the engine 'patches': the picture's own way down in a song_unet with residual, as NCSN++ "
                            "has, does not keep rows in their parts")  # fmt: skip
        super().__init__(copy.deepcopy(net), engine, exchange)

    def forward(self, x: Tensor, t: Tensor, cond: Cond, *, s: Tensor | None = None, tap: Tap | None = None) -> Tensor:
        return self.inner(x, t, cond, s=s, tap=RowTap(self, tap))


class RowTap:
    """The tap of one evaluation in rows.

    Args:
        net: that is evaluated.
        tap: called at every site; in divided ones it sees this process's rows.
    """

    def __init__(self, net: RowPatchesNet, tap: Tap | None):
        self.net, self.tap = net, tap
        self.operations: RowOperations | None = None

    def __call__(self, site: str, compute: Compute, h: Tensor) -> Tensor:
        if site in self.net.divided:
            return call_site(self.tap, site, partial(self._divided, site, compute), h)
        inner = compute if self.operations is None else partial(self.operations, site, compute)
        out = call_site(self.tap, site, inner, h)
        return local_rows(self.net.exchange, out) if site == "encoder.0" else out

    def _divided(self, site: str, compute: Compute, h: Tensor) -> Tensor:
        net = self.net
        self.operations = RowOperations(net.exchange, net.evaluation, net.engine.portion)
        with self.operations:
            out = self.operations(site, compute, h)
        self.operations = None
        return gather_rows(net.exchange, out) if site == "final" else out
