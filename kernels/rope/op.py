"""What is done to q and k before they meet: an RMS norm of each head, and the rotary embedding of places."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from gen.kernels.dispatch import Backend, Op
from gen.kernels.rope import pytorch, reference, triton_launch

__all__ = ["Pairs", "checked", "norm_rope", "prepared"]

Pairs = Literal["adjacent", "split"]


def call(
    x: Tensor,
    gain: Tensor | None = None,
    eps: float = 1e-6,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    pairs: Pairs = "adjacent",
) -> tuple[Tensor, Tensor | None, float, Tensor | None, Tensor | None, Pairs]:
    """Heads x [B, N, H, d], divided by their root mean square and times gain [d], then turned: -> [B, N, H, d].

    Without gain there is no norm. cos, sin [N, d] or [B or 1, N, d]: of the angles of each place and channel; constants
    to a gradient; without them there is no turn. pairs: which two channels turn as one: "adjacent", 2 i and 2 i + 1, or
    "split", i and i + d / 2 (Llama's layout). A pair (a, b) becomes (a cos - b sin, b cos + a sin), each of the two by
    its own channel's cos and sin. (RMSNorm, Zhang & Sennrich 2019, arXiv 1910.07467; RoFormer, Su et al. 2021, arXiv
    2104.09864, equation 34.) ValueError for other shapes, and for neither gain nor angles.
    """
    if x.ndim != 4:
        raise ValueError(f"norm_rope: x is {list(x.shape)}; it must be [B, N, H, d]")
    if gain is None and cos is None:
        raise ValueError("norm_rope: neither gain nor cos and sin; there is nothing to do")
    checked("norm_rope", x.shape[0], x.shape[1], x.shape[3], (gain,), cos, sin, pairs)
    return x, gain, eps, cos, sin, pairs


def checked(
    op: str,
    b: int,
    n: int,
    d: int,
    gains: tuple[Tensor | None, ...],
    cos: Tensor | None,
    sin: Tensor | None,
    pairs: str,
) -> None:
    """ValueError unless gains are [d], and cos and sin are two tables of heads [b, n, H, d]."""
    for gain in gains:
        if gain is not None and (gain.ndim != 1 or gain.shape[0] != d):
            raise ValueError(f"{op}: a gain is {list(gain.shape)}; it must be {[d]}")
    if (cos is None) != (sin is None):
        raise ValueError(f"{op}: cos and sin go together; {'cos' if cos is None else 'sin'} is missing")
    if pairs not in ("adjacent", "split"):
        raise ValueError(f"{op}: pairs is {pairs!r}; it must be 'adjacent' or 'split'")
    for name, table in (("cos", cos), ("sin", sin)):
        if table is None:
            continue
        if d % 2:
            raise ValueError(f"{op}: heads of {d} channels; to be turned they must be of an even number")
        if table.ndim not in (2, 3) or table.shape[-2] != n or table.shape[-1] != d:
            raise ValueError(f"{op}: {name} is {list(table.shape)}; it must be {[n, d]} or {[b, n, d]}")
        if table.ndim == 3 and table.shape[0] not in (1, b):
            raise ValueError(f"{op}: {name} is {list(table.shape)}; it must be {[n, d]} or {[b, n, d]}")


def _anything(
    x: Tensor, gain: Tensor | None, eps: float, cos: Tensor | None, sin: Tensor | None, pairs: Pairs
) -> str | None:
    return None


norm_rope = Op(
    "norm_rope",
    call,
    (
        Backend("triton", triton_launch.refuses, triton_launch.run),
        Backend("torch", _anything, pytorch.run),
        Backend("reference", _anything, reference.norm_rope),
    ),
)


def prepared(
    qkv: Tensor,
    q_gain: Tensor | None,
    k_gain: Tensor | None,
    eps: float,
    cos: Tensor | None,
    sin: Tensor | None,
    pairs: Pairs,
) -> tuple[Tensor, Tensor, Tensor]:
    """q and k of packed qkv [B, N, 3, H, d], normed and turned, and v where it lies: each [B, N, H, d]."""
    q, k, v = qkv.unbind(2)
    if q_gain is None and k_gain is None and cos is not None:  # the same for q and k: in one go
        q, k = norm_rope(qkv[:, :, :2].flatten(2, 3), None, eps, cos, sin, pairs).chunk(2, 2)
        return q, k, v
    if q_gain is not None or cos is not None:
        q = norm_rope(q, q_gain, eps, cos, sin, pairs)
    if k_gain is not None or cos is not None:
        k = norm_rope(k, k_gain, eps, cos, sin, pairs)
    return q, k, v
