"""Statistics of logits by our Triton kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gen.kernels.lib import triton as _triton
from gen.kernels.statistics.chunked import Seven, Six, fake, fake_gradient, made, save

__all__ = ["refuses", "run"]


def refuses(logits: Tensor, mask_token: int | None) -> str | None:
    reason = _triton.unable(logits)
    if reason is not None:
        return reason
    if not logits.is_floating_point():
        return f"logits are {logits.dtype}"
    if not logits.is_contiguous():
        return "logits are not contiguous"
    return None


def run(logits: Tensor, mask_token: int | None) -> Six:
    return _statistics(logits, -1 if mask_token is None else mask_token)[:6]


def _block(size: int) -> int:
    return 32 if _triton.INTERPRETED else min(2048, max(128, 1 << (size - 1).bit_length()))


def _splits(rows: int, size: int) -> int:
    """Into how many splits a row is cut so that few rows fill a GPU too; whole blocks each."""
    wanted = 3 if _triton.INTERPRETED else -(-512 // max(1, rows))
    return max(1, min(wanted, 64, size // _block(size)))


@torch.library.custom_op("gen_kernels::token_statistics", mutates_args=())
def _statistics(logits: Tensor, mask_token: int) -> Seven:
    from gen.kernels.statistics import triton_kernels as kernels

    outputs, size = made(logits), logits.shape[-1]
    rows, block = logits.numel() // size, _block(size)
    splits = _splits(rows, size)
    index = logits.new_empty(rows, splits, 2, dtype=torch.int32)
    number = logits.new_empty(rows, splits, 4, dtype=torch.float32)
    per_split = -(-size // (splits * block)) * block
    _triton.launch(
        kernels.scan, (rows, splits), logits, logits, index, number, size, size, per_split, mask_token, BLOCK=block
    )
    _triton.launch(
        kernels.join,
        (rows,),
        logits,
        index,
        number,
        *outputs,
        splits,
        SPLITS=1 << (splits - 1).bit_length(),
        **_few_warps(),
    )
    return outputs


def _few_warps() -> dict[str, int]:
    return {} if _triton.INTERPRETED else {"num_warps": 1}


_statistics.register_fake(fake)


@torch.library.custom_op("gen_kernels::token_statistics_backward", mutates_args=())
def _backward(
    logits: Tensor, best: Tensor, second: Tensor, top: Tensor, after: Tensor, entropy: Tensor, log: Tensor,
    dtop: Tensor, dafter: Tensor, dlse: Tensor, dentropy: Tensor, mask_token: int,
) -> Tensor:  # fmt: skip
    from gen.kernels.statistics import triton_kernels as kernels

    dlogits, size = torch.empty_like(logits), logits.shape[-1]
    block = _block(size)
    grads = [v.contiguous() for v in (dtop, dafter, dlse, dentropy)]
    _triton.launch(
        kernels.backward,
        (logits.numel() // size, -(-size // block)),
        logits,
        logits,
        best,
        second,
        top,
        after,
        entropy,
        log,
        *grads,
        dlogits,
        size,
        size,
        mask_token,
        BLOCK=block,
    )
    return dlogits


_backward.register_fake(fake_gradient)


def _gradient(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
    return _backward(*ctx.saved_tensors, *grads[2:6], ctx.mask_token), None


_statistics.register_autograd(_gradient, setup_context=save)
