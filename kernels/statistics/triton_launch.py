"""Statistics of logits by our Triton kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from gen.kernels.lib import triton_support
from gen.kernels.lib.autograd import Context
from gen.kernels.lib.triton_support import INTERPRETED
from gen.kernels.statistics import chunked, reference
from gen.kernels.statistics.call import StatisticsCall, TokenStatistics

__all__ = ["incompatible_reason", "run"]


def incompatible_reason(call: StatisticsCall) -> str | None:
    """Return why our kernels cannot compute the call, or None."""
    reason = triton_support.incompatible_reason(call.logits) or reference.incompatible_reason(call)
    return reason or (None if call.logits.is_contiguous() else "logits are not contiguous")


def run(call: StatisticsCall) -> TokenStatistics:
    """Compute splits of each row and join them."""
    mask_token_id = -1 if call.mask_token_id is None else call.mask_token_id
    return TokenStatistics(*_statistics(call.logits, mask_token_id)[:6])


def _block(size: int) -> int:
    return 32 if INTERPRETED else min(2048, triton_support.power_of_2(size, 128))


def _splits(rows: int, size: int) -> int:
    """Return into how many splits a row is cut so that few rows fill a GPU too; whole blocks each."""
    wanted = 3 if INTERPRETED else -(-512 // max(1, rows))
    return max(1, min(wanted, 64, size // _block(size)))


@torch.library.custom_op("gen_kernels::token_statistics", mutates_args=())
def _statistics(logits: Tensor, mask_token_id: int) -> chunked.Outputs:
    from gen.kernels.statistics import triton_kernels

    outputs, size = chunked.empty_outputs(logits), logits.shape[-1]
    rows, block = logits.numel() // size, _block(size)
    splits = _splits(rows, size)
    index = logits.new_empty(rows, splits, 2, dtype=torch.int32)
    number = logits.new_empty(rows, splits, 4, dtype=torch.float32)
    per_split = -(-size // (splits * block)) * block
    triton_support.launch(
        triton_kernels.scan, (rows, splits), logits,
        logits, index, number, size, size, per_split, mask_token_id, BLOCK=block,
    )  # fmt: skip
    warps = {} if INTERPRETED else {"num_warps": 1}
    lanes = triton_support.power_of_2(splits)
    triton_support.launch(triton_kernels.join, (rows,), logits, index, number, *outputs, splits, SPLITS=lanes, **warps)
    return outputs


_statistics.register_fake(chunked.empty_outputs)


@torch.library.custom_op("gen_kernels::token_statistics_backward", mutates_args=())
def _backward(
    logits: Tensor, best: Tensor, second: Tensor, top: Tensor, after: Tensor, entropy: Tensor, log: Tensor,
    dtop: Tensor, dafter: Tensor, dlse: Tensor, dentropy: Tensor, mask_token_id: int,
) -> Tensor:  # fmt: skip
    from gen.kernels.statistics import triton_kernels

    dlogits, size = torch.empty_like(logits), logits.shape[-1]
    block = _block(size)
    grads = [v.contiguous() for v in (dtop, dafter, dlse, dentropy)]
    triton_support.launch(
        triton_kernels.backward, (logits.numel() // size, -(-size // block)), logits,
        logits, best, second, top, after, entropy, log, *grads, dlogits, size, size, mask_token_id, BLOCK=block,
    )  # fmt: skip
    return dlogits


_backward.register_fake(chunked.empty_gradient)


def _gradient(ctx: Context, *grads: Tensor) -> tuple[Tensor, None]:
    return _backward(*ctx.saved_tensors, *grads[2:6], *ctx.constants), None


_statistics.register_autograd(_gradient, setup_context=chunked.save)
