"""What stands between the products of a block: norms, their modulation by a condition, gates and residual sums."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from gen.kernels.dispatch import Backend, Op
from gen.kernels.norm import pytorch, reference, triton_launch

__all__ = ["Kind", "gated_residual", "gated_residual_norm", "modulated_norm"]

Kind = Literal["layer", "rms"]
Modulated = tuple[Tensor, Tensor, Tensor, Tensor | None, Kind, float]


def _shapes(op: str, x: Tensor, gain: Tensor | None, kind: str, **modulations: Tensor) -> None:
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


def _modulated_norm(
    x: Tensor, scale: Tensor, shift: Tensor, gain: Tensor | None = None, kind: Kind = "layer", eps: float = 1e-6
) -> Modulated:
    """norm(x) (1 + scale) + shift: x [B, N, D] -> [B, N, D].

    scale, shift: [B, 1, D], one for all tokens of a sample, or [B, N, D]. kind: "layer", with mean and variance over D,
    or "rms". gain [D] multiplies the norm. (adaLN, Peebles & Xie 2022, arXiv 2212.09748.)
    """
    _shapes("modulated_norm", x, gain, kind, scale=scale, shift=shift)
    return x, scale, shift, gain, kind, eps


def _gated_residual_norm(
    x: Tensor,
    y: Tensor,
    gate: Tensor,
    scale: Tensor,
    shift: Tensor,
    gain: Tensor | None = None,
    kind: Kind = "layer",
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Kind, float]:
    """out = x + gate y, and modulated_norm(out, ...): the end of one half of a block and the start of the next.

    x, y: [B, N, D]. gate: as scale and shift. -> out and its modulated norm, [B, N, D] each.
    """
    _shapes("gated_residual_norm", x, gain, kind, gate=gate, scale=scale, shift=shift)
    if y.shape != x.shape:
        raise ValueError(f"gated_residual_norm: y is {list(y.shape)}; it must be x's {list(x.shape)}")
    return x, y, gate, scale, shift, gain, kind, eps


def _gated_residual(x: Tensor, y: Tensor, gate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x + gate y: x, y [B, N, D], gate [B, 1, D] or [B, N, D]."""
    _shapes("gated_residual", x, None, "rms", gate=gate)
    if y.shape != x.shape:
        raise ValueError(f"gated_residual: y is {list(y.shape)}; it must be x's {list(x.shape)}")
    return x, y, gate


modulated_norm = Op(
    "modulated_norm",
    _modulated_norm,
    (
        Backend("triton", triton_launch.modulated_norm_refuses, triton_launch.modulated_norm),
        Backend("torch", pytorch.modulated_norm_refuses, pytorch.modulated_norm),
        Backend("reference", pytorch.modulated_norm_refuses, reference.modulated_norm),
    ),
)

gated_residual_norm = Op(
    "gated_residual_norm",
    _gated_residual_norm,
    (
        Backend("triton", triton_launch.gated_residual_norm_refuses, triton_launch.gated_residual_norm),
        Backend("torch", pytorch.gated_residual_norm_refuses, pytorch.gated_residual_norm),
        Backend("reference", pytorch.gated_residual_norm_refuses, reference.gated_residual_norm),
    ),
)

# PyTorch has the sum as one kernel already, but its gradient reads and writes twice what ours does.
gated_residual = Op(
    "gated_residual",
    _gated_residual,
    (
        Backend("triton", triton_launch.gated_residual_refuses, triton_launch.gated_residual),
        Backend("torch", pytorch.gated_residual_refuses, pytorch.gated_residual),
        Backend("reference", pytorch.gated_residual_refuses, reference.gated_residual),
    ),
)
