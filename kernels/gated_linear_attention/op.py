"""Linear attention whose state forgets by a gate for each channel of the keys."""

from __future__ import annotations

from torch import Tensor

from gen.kernels.dispatch import Backend, op
from gen.kernels.gated_linear_attention import pytorch, reference
from gen.kernels.gated_linear_attention.call import GLACall
from gen.kernels.lib.shapes import check_shapes

__all__ = ["gated_linear_attention"]


@op(
    Backend("chunked", pytorch.chunked),
    Backend("reference", reference.gated_linear_attention),
)
def gated_linear_attention(q: Tensor, k: Tensor, v: Tensor, g: Tensor, scale: float | None = None) -> GLACall:
    """Compute o_t = scale q_t S_t with S_t = diag(exp g_t) S_(t-1) + k_t v_t^T in every head.

    (Yang et al. 2023, arXiv 2312.06635.)

    Args:
        q, k: queries and keys [B, T, H, d].
        v: values [B, T, H, e].
        g: logarithms of gates in (0, 1], [B, T, H, d]; 0 keeps all.
        scale: of the queries; d^(-1/2) by default.

    Returns:
        o [B, T, H, e].

    Raises:
        ValueError: for other shapes.
    """
    b, t, h, d = q.shape
    check_shapes("gated_linear_attention", {"k": (k, (b, t, h, d)), "g": (g, (b, t, h, d))})
    check_shapes("gated_linear_attention", {"v": (v, (b, t, h, v.shape[-1]))})
    return GLACall(q, k, v, g, d**-0.5 if scale is None else scale)
