"""Norms, their modulation by a condition, gates and residual sums: what stands between the products of a block."""

from __future__ import annotations

from torch import Tensor

from gen.kernels.dispatch import Backend, op
from gen.kernels.norm import pytorch, reference, triton_launch
from gen.kernels.norm.call import GatedResidualCall, GatedResidualNormCall, ModulatedNormCall, NormKind

__all__ = ["gated_residual", "gated_residual_norm", "modulated_norm"]


@op(
    Backend("triton", triton_launch.modulated_norm, triton_launch.modulated_norm_reason),
    Backend("torch", pytorch.modulated_norm),
    Backend("reference", reference.modulated_norm),
)
def modulated_norm(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    gain: Tensor | None = None,
    kind: NormKind = "layer",
    eps: float = 1e-6,
) -> ModulatedNormCall:
    """Compute norm(x) (1 + scale) + shift (adaLN, Peebles & Xie 2022, arXiv 2212.09748).

    Args:
        x: [B, N, D]. The others may have another dtype, as in autocast.
        scale, shift: [B, 1, D], one for all tokens of a sample, or [B, N, D].
        gain: multiplies the norm, [D]; none by default.
        kind: "layer", with mean and variance over D, or "rms".
        eps: added to the variance or the mean square.

    Returns:
        [B, N, D] in x's dtype.

    Raises:
        ValueError: for other shapes or kinds.
    """
    _check("modulated_norm", x, gain, kind, scale=scale, shift=shift)
    return ModulatedNormCall(x, scale, shift, gain, kind, eps)


# PyTorch has the sum as one kernel already, but its gradient reads and writes twice what ours does.
@op(
    Backend("triton", triton_launch.gated_residual, triton_launch.gated_residual_reason),
    Backend("torch", pytorch.gated_residual),
    Backend("reference", reference.gated_residual),
)
def gated_residual(x: Tensor, y: Tensor, gate: Tensor) -> GatedResidualCall:
    """Compute x + gate y.

    Args:
        x, y: [B, N, D].
        gate: [B, 1, D] or [B, N, D].

    Returns:
        [B, N, D] in x's dtype.

    Raises:
        ValueError: for other shapes.
    """
    _check("gated_residual", x, None, "rms", gate=gate)
    _check_same("gated_residual", x, y)
    return GatedResidualCall(x, y, gate)


@op(
    Backend("triton", triton_launch.gated_residual_norm, triton_launch.gated_residual_norm_reason),
    Backend("torch", pytorch.gated_residual_norm),
    Backend("reference", reference.gated_residual_norm),
)
def gated_residual_norm(
    x: Tensor,
    y: Tensor,
    gate: Tensor,
    scale: Tensor,
    shift: Tensor,
    gain: Tensor | None = None,
    kind: NormKind = "layer",
    eps: float = 1e-6,
) -> GatedResidualNormCall:
    """Compute x + gate y and its modulated norm: the end of one half of a block and the start of the next.

    Args:
        x, y: [B, N, D].
        gate, scale, shift: [B, 1, D] or [B, N, D].
        gain, kind, eps: of the norm, as in modulated_norm.

    Returns:
        The sum and its modulated norm, [B, N, D] in x's dtype each.

    Raises:
        ValueError: for other shapes or kinds.
    """
    _check("gated_residual_norm", x, gain, kind, gate=gate, scale=scale, shift=shift)
    _check_same("gated_residual_norm", x, y)
    return GatedResidualNormCall(x, y, gate, scale, shift, gain, kind, eps)


def _check(op: str, x: Tensor, gain: Tensor | None, kind: str, **modulations: Tensor) -> None:
    if x.ndim != 3:
        raise ValueError(f"{op}: x is {list(x.shape)}; it must be [B, N, D]")
    b, n, d = x.shape
    for name, given in modulations.items():
        # One size at a time: sizes may be symbols of a graph that is being traced.
        if given.ndim != 3 or given.shape[0] != b or given.shape[1] not in (1, n) or given.shape[2] != d:
            raise ValueError(f"{op}: {name} is {list(given.shape)}; it must be {[b, 1, d]} or {[b, n, d]}")
    if gain is not None and (gain.ndim != 1 or gain.shape[0] != d):
        raise ValueError(f"{op}: gain is {list(gain.shape)}; it must be {[d]}")
    if kind not in ("layer", "rms"):
        raise ValueError(f"{op}: kind is {kind!r}; it must be 'layer' or 'rms'")


def _check_same(op: str, x: Tensor, y: Tensor) -> None:
    if y.shape != x.shape:
        raise ValueError(f"{op}: y is {list(y.shape)}; it must be x's {list(x.shape)}")
