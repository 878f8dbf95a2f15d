"""The RMS norm of each head of q or k, and their rotary embedding."""

from __future__ import annotations

from torch import Tensor

from gen.kernels.dispatch import Backend, op
from gen.kernels.rope import pytorch, reference, triton_launch
from gen.kernels.rope.call import NormRopeCall, Pairs

__all__ = ["check_norm_rope", "norm_rope"]


@op(
    Backend("triton", triton_launch.run, triton_launch.incompatible_reason),
    Backend("torch", pytorch.run),
    Backend("reference", reference.norm_rope),
)
def norm_rope(
    x: Tensor,
    gain: Tensor | None = None,
    eps: float = 1e-6,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    pairs: Pairs = "adjacent",
) -> NormRopeCall:
    """Divide heads by their root mean square, multiply them by a gain and rotate them.

    A pair of channels (a, b) becomes (a cos - b sin, b cos + a sin), each of the two by its own channel's cos and sin.
    (RMSNorm, Zhang & Sennrich 2019, arXiv 1910.07467; RoFormer, Su et al. 2021, arXiv 2104.09864, equation 34.)

    Args:
        x: heads [B, N, H, d].
        gain: [d]; without it there is no norm.
        eps: added to the mean square.
        cos, sin: of the angle of each position and channel, [N, d] or [B or 1, N, d]; constants to a gradient by
            Triton; without them there is no rotation.
        pairs: which two channels rotate together: "adjacent", 2 i and 2 i + 1, or "split", i and i + d / 2 (Llama's).

    Returns:
        [B, N, H, d], in x's dtype.

    Raises:
        ValueError: for other shapes, and for neither gain nor tables.
    """
    if x.ndim != 4:
        raise ValueError(f"norm_rope: x is {list(x.shape)}; it must be [B, N, H, d]")
    if gain is None and cos is None:
        raise ValueError("norm_rope: neither gain nor cos and sin; there is nothing to do")
    check_norm_rope("norm_rope", x.shape[0], x.shape[1], x.shape[3], (gain,), cos, sin, pairs)
    return NormRopeCall(x, gain, eps, cos, sin, pairs)


def check_norm_rope(
    op: str,
    b: int,
    n: int,
    d: int,
    gains: tuple[Tensor | None, ...],
    cos: Tensor | None,
    sin: Tensor | None,
    pairs: str,
) -> None:
    """Raise ValueError unless gains, cos and sin fit heads [b, n, H, d].

    Args:
        op: whose arguments they are, for the message.
        b, n, d: sizes of the heads.
        gains: [d] each, or None.
        cos, sin: [n, d] or [b or 1, n, d], or both None.
        pairs: "adjacent" or "split".
    """
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
            raise ValueError(f"{op}: heads of {d} channels; a rotation needs an even number")
        fits = table.ndim in (2, 3) and table.shape[-2] == n and table.shape[-1] == d
        if not fits or (table.ndim == 3 and table.shape[0] not in (1, b)):
            raise ValueError(f"{op}: {name} is {list(table.shape)}; it must be {[n, d]} or {[b, n, d]}")
