"""Statistics of logits by PyTorch, a chunk of the vocabulary at a time: no second tensor of its size is stored."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from gen.kernels.lib.autograd import Context, transform_reason
from gen.kernels.statistics import reference
from gen.kernels.statistics.call import StatisticsCall, TokenStatistics

__all__ = ["Outputs", "empty_gradient", "empty_outputs", "incompatible_reason", "run", "save"]

AT_ONCE = 1 << 20  # numbers of a chunk: a few of them fit a processor's cache, and few chunks start few threads
BLOCK = 64  # tokens whose maximum stands for them, so that a search reads each number once
Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def incompatible_reason(call: StatisticsCall) -> str | None:
    """Return why the call cannot be computed in chunks, or None."""
    return reference.incompatible_reason(call) or transform_reason(call.logits)


def run(call: StatisticsCall) -> TokenStatistics:
    """Compute running statistics chunk after chunk."""
    mask_token_id = -1 if call.mask_token_id is None else call.mask_token_id
    return TokenStatistics(*_statistics(call.logits, mask_token_id)[:6])


def _chunks(logits: Tensor) -> list[tuple[int, int]]:
    """Return where the chunks of the vocabulary start and end."""
    size = logits.shape[-1]
    step = max(1, AT_ONCE // max(1, logits.numel() // size) // BLOCK) * BLOCK
    return [(low, min(low + step, size)) for low in range(0, size, step)]


def _chunk(logits: Tensor, low: int, high: int, mask_token_id: int, kind: torch.dtype) -> Tensor:
    """Return a copy of one chunk, the mask token's logit -inf."""
    x = logits[..., low:high].to(kind, copy=True)
    if low <= mask_token_id < high:
        x[..., mask_token_id - low] = -torch.inf
    return x


def _two_best(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the largest of each row and its index, and the next one's, the first among equals first, [...] each."""
    blocks = pad(x, (0, -x.shape[-1] % BLOCK), value=-torch.inf).unflatten(-1, (-1, BLOCK))

    def numbers(block: Tensor) -> Tensor:
        return blocks.gather(-2, block[..., None].expand(*block.shape, BLOCK))[..., 0, :]

    tops = blocks.amax(-1)
    first = tops.argmax(-1, keepdim=True)
    value, index = numbers(first).max(-1, keepdim=True)
    left = numbers(first).scatter(-1, index, -torch.inf)
    second = tops.scatter(-1, first, left.amax(-1, keepdim=True)).argmax(-1, keepdim=True)
    next_value, next_index = left.where(second == first, numbers(second)).max(-1, keepdim=True)
    index, next_index = first * BLOCK + index, second * BLOCK + next_index
    return value[..., 0], index[..., 0], next_value[..., 0], next_index[..., 0]


@torch.library.custom_op("gen_kernels::token_statistics_chunked", mutates_args=())
def _statistics(logits: Tensor, mask_token_id: int) -> Outputs:
    """Return the six, and lse - best_logit, of which a gradient needs every digit."""
    best, second, top, after, *_ = empty_outputs(logits)
    total, weighted = (torch.zeros_like(top, dtype=torch.float64) for _ in range(2))
    for v, start in ((best, 0), (second, 0), (top, -torch.inf), (after, -torch.inf)):
        v.fill_(start)
    for low, high in _chunks(logits):
        x = _chunk(logits, low, high, mask_token_id, top.dtype)
        value, index, next_value, next_index = _two_best(x)
        new = torch.maximum(top, value)
        # While all is -inf there is nothing to sum: any finite number will do.
        anchor, shift = new.where(new > -torch.inf, 0), (top.double() - new).where(top > -torch.inf, 0)
        away, keep = x.sub_(anchor[..., None]), shift.exp()
        share = away.exp()
        before, total = (weighted + shift * total) * keep, total * keep + share.sum(-1)
        away.clamp_(min=torch.finfo(away.dtype).min)  # 0 times -inf counts as 0
        weighted = before + share.mul_(away).sum(-1)
        index, next_index = index + low, next_index + low
        greater = value > top
        # Of the two that may come second, the one seen earlier stands lower: it wins among equals.
        later, later_index = next_value.where(greater, value), next_index.where(greater, index)
        after, second = top.where(greater, after), best.where(greater, second)
        wins = later > after
        after, second = later.where(wins, after), later_index.where(wins, second)
        best, top = index.where(greater, best), new
    best, second = best.where(top > -torch.inf, 0), second.where(after > -torch.inf, 0)
    entropy = (total.log() - weighted / total).where(total > 0, 0)
    lse, entropy, log = (v.to(top.dtype) for v in (top + total.log(), entropy, total.log()))
    return best, second, top, after, lse, entropy, log


@_statistics.register_fake
def empty_outputs(logits: Tensor, *rest: object) -> Outputs:
    """Return the outputs, unwritten: here and in Triton's op."""
    kind, shape = torch.promote_types(logits.dtype, torch.float32), logits.shape[:-1]
    index = [logits.new_empty(shape, dtype=torch.int64) for _ in range(2)]
    number = [logits.new_empty(shape, dtype=kind) for _ in range(5)]
    return index[0], index[1], number[0], number[1], number[2], number[3], number[4]


@torch.library.custom_op("gen_kernels::token_statistics_chunked_backward", mutates_args=())
def _backward(
    logits: Tensor, best: Tensor, second: Tensor, top: Tensor, after: Tensor, entropy: Tensor, log: Tensor,
    dtop: Tensor, dafter: Tensor, dlse: Tensor, dentropy: Tensor, mask_token_id: int,
) -> Tensor:  # fmt: skip
    dlogits = torch.empty_like(logits, memory_format=torch.contiguous_format)
    for low, high in _chunks(logits):
        logp = _chunk(logits, low, high, mask_token_id, top.dtype).sub_(top[..., None]).sub_(log[..., None])
        share = logp.exp()
        from_entropy = dentropy[..., None] * (logp.where(share > 0, 0) + entropy[..., None])
        d = share * (dlse[..., None] - from_entropy)
        for index, grad in ((best, dtop), (second, dafter.where(after > -torch.inf, 0))):
            inside = (index >= low) & (index < high)
            d.scatter_add_(-1, (index - low).where(inside, 0)[..., None], grad.where(inside, 0)[..., None])
        dlogits[..., low:high] = d
    return dlogits


@_backward.register_fake
def empty_gradient(logits: Tensor, *rest: object) -> Tensor:
    """Return the gradient, unwritten: here and in Triton's op."""
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def save(ctx: Context, inputs: tuple[Tensor, int], output: Outputs) -> None:
    """Save what a gradient needs, here and in Triton's op."""
    logits, mask_token_id = inputs
    best, second, top, after, _, entropy, log = output
    ctx.constants = (mask_token_id,)
    ctx.save_for_backward(logits, best, second, top, after, entropy, log)
    ctx.mark_non_differentiable(best, second, log)


def _gradient(ctx: Context, *grads: Tensor) -> tuple[Tensor, None]:
    return _backward(*ctx.saved_tensors, *grads[2:6], *ctx.constants), None


_statistics.register_autograd(_gradient, setup_context=save)
