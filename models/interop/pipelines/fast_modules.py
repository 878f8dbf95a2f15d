"""Modules of diffusers that a processor computes faster in another way, with the modules' own weights.

Each way is made for one module, whose class and form it knows; where a call has another form, the module itself is
called. Weights that oneDNN holds in its own layout are copies, which `refresh` gives up when the module's change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from gen.kernels.activation import swiglu
from gen.kernels.lib.autograd import transform_reason
from gen.kernels.linear import Activation, pack, unpackable
from gen.kernels.linear.call import LinearCall
from gen.kernels.linear.onednn import run
from gen.kernels.linear.packed_weight import ONEDNN
from gen.kernels.norm import modulated_norm

__all__ = [
    "FUSED",
    "ActivatedLayer",
    "FastModule",
    "FusedNorm",
    "PackedConvolution",
    "PackedLayer",
    "activation_of",
    "unpackable_layer",
]

ROWS = 8  # of fewer, the weights are read once either way: modulations and embeddings of a few times


class FastModule(Protocol):
    """A faster way to compute one module.

    Attributes:
        used: whether it has computed anything.
    """

    used: bool

    def fits(self, *args: Any, **kwargs: Any) -> bool:
        """Return whether it computes a call.

        Args:
            *args, **kwargs: of the module.
        """
        ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the module would, to rounding.

        Args:
            *args, **kwargs: of the module, which fit.
        """
        ...

    def refresh(self) -> None:
        """Give up what was made of weights that have changed."""
        ...


class PackedLayer:
    """A linear layer [..., in] -> [..., out] whose weights oneDNN holds in its own layout, from their first use on.

    Args:
        layer: whose weights it can hold, see `unpackable_layer`.
    """

    def __init__(self, layer: Any):
        self.layer, self.used = layer, False
        self.weight: Any = None
        self.mark: tuple[Any, ...] = ()

    def fits(self, x: Any = None, *others: Any, **named: Any) -> bool:
        """Return whether oneDNN computes the call; it has no gradients and no autocast."""
        if others or named or not isinstance(x, Tensor) or torch.compiler.is_compiling() or not self._large(x):
            return False
        weight, bias = self.layer.weight, self.layer.bias
        if not x.dtype == weight.dtype == (weight if bias is None else bias).dtype or x.device.type != "cpu":
            return False
        if torch.is_autocast_enabled("cpu") or (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)):
            return False
        packable = self.weight is not None or unpackable_layer(self.layer) is None
        return packable and transform_reason(x, weight, bias) is None

    def __call__(self, x: Tensor, activation: Activation | None = None) -> Tensor:
        if self.weight is None:
            self.weight, self.mark = self._pack(x), _mark(self.layer.weight)
        return self._run(x, activation)

    def refresh(self) -> None:
        """Give up packed weights of which the layer's own are no longer."""
        if self.weight is not None and _mark(self.layer.weight) != self.mark:
            self.weight = None

    def _large(self, x: Tensor) -> bool:
        return x.ndim > 1 and x.numel() >= ROWS * x.shape[-1] > 0

    def _pack(self, x: Tensor) -> Any:
        return pack(self.layer.weight)

    def _run(self, x: Tensor, activation: Activation | None) -> Tensor:
        return run(LinearCall(x, self.weight, self.layer.bias, activation))


class PackedConvolution(PackedLayer):
    """A convolution [B, C, H, W] whose weights oneDNN holds in the layout for the first x that it saw.

    Its output is channels-last.
    """

    def _large(self, x: Tensor) -> bool:
        return x.ndim == 4 and x.numel() > 0

    def _pack(self, x: Tensor) -> Any:
        weight = self.layer.weight.detach().contiguous()
        return ONEDNN._reorder_convolution_weight(weight, *self._geometry(), list(x.shape))

    def _run(self, x: Tensor, activation: Activation | None) -> Tensor:
        return ONEDNN._convolution_pointwise(x, self.weight, self.layer.bias, *self._geometry(), "none", [], "")

    def _geometry(self) -> tuple[list[int], list[int], list[int], int]:
        return list(self.layer.padding), list(self.layer.stride), list(self.layer.dilation), self.layer.groups


class ActivatedLayer:
    """A linear layer `proj` and its activation in one pass.

    Args:
        module: that applies both.
        layer: its `proj`, packed.
        activation: of the module.
    """

    def __init__(self, module: Any, layer: PackedLayer, activation: Activation):
        self.module, self.layer, self.activation, self.used = module, layer, activation, False

    def fits(self, x: Any = None, *others: Any, **named: Any) -> bool:
        """Return whether the layer is still the module's own, without hooks of others, and fits."""
        layer = self.module.proj
        hooks = layer is not self.layer.layer or layer._forward_hooks or layer._forward_pre_hooks
        return not hooks and self.layer.fits(x, *others, **named)

    def __call__(self, x: Tensor) -> Tensor:
        return self.layer(x, self.activation)

    def refresh(self) -> None:
        """Do nothing: the layer is refreshed by itself."""


class FusedNorm:
    """A module around a norm, or a norm alone, in fewer passes over memory.

    Args:
        module: of a class in FUSED.
        compute: takes the module and its arguments, the first of which is x [B, N, D].
    """

    def __init__(self, module: Any, compute: Callable[..., Any]):
        self.module, self.compute, self.used = module, compute, False

    def fits(self, x: Any = None, *others: Any, **named: Any) -> bool:
        """Return whether all is computed in the dtype of x, as RMSNorm of diffusers does but for float64."""
        if not isinstance(x, Tensor) or torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type):
            return False
        weights = next(self.module.parameters(), x)
        return x.dtype == weights.dtype and not (x.dtype == torch.float64 and _is_rms(self.module))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.compute(self.module, *args, **kwargs)

    def refresh(self) -> None:
        """Do nothing: weights are the module's."""


def unpackable_layer(layer: Any) -> str | None:
    """Return why oneDNN cannot hold the weights of a layer, or None.

    Args:
        layer: linear, or a convolution.
    """
    weight: Any = layer.weight
    if type(weight) not in (nn.Parameter, Tensor):
        return f"weights are {type(weight).__name__}"
    if isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
        return f"padding is {layer.padding!r} by {layer.padding_mode}"
    return unpackable(weight.flatten(1))


def activation_of(module: Any) -> Activation | None:
    """Return the activation of a module that applies `proj` and then that alone; None for others.

    Args:
        module: of diffusers.
    """
    kind = type(module).__name__
    if kind == "GELU" and module.approximate in ("none", "tanh"):
        return "gelu" if module.approximate == "none" else "gelu_tanh"
    if kind == "LinearActivation" and type(module.activation) is nn.SiLU:
        return "silu"
    return None


def _mark(weight: Tensor) -> tuple[Any, ...]:
    """Return what differs between two states of some weights: adapters are merged without a new version."""
    flat, each = weight.detach().reshape(-1), 8 // weight.itemsize
    flat = flat.clone() if flat.storage_offset() % each else flat
    words, rest = flat.split([len(flat) // each * each, len(flat) % each])  # eight bytes at a time is the fastest
    version = 0 if weight.is_inference() else weight._version
    return version, tuple(weight.shape), weight.dtype, int(words.view(torch.int64).sum()), tuple(rest.tolist())


def _modulated(norm: Any, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return norm(x) (1 + scale) + shift for a LayerNorm with gain and bias, scale and shift [B or 1, D]."""
    scale, shift = (v[:, None].expand(len(x), 1, -1) for v in (scale, shift))
    if norm.bias is not None:
        shift = torch.addcmul(shift, norm.bias, 1 + scale)
    return modulated_norm(x, scale, shift, norm.weight, "layer", norm.eps)


def _zero(
    module: Any, x: Tensor, timestep: Any = None, class_labels: Any = None, hidden_dtype: Any = None, emb: Any = None
) -> tuple[Tensor, ...]:
    if module.emb is not None:
        emb = module.emb(timestep, class_labels, hidden_dtype=hidden_dtype)
    shift, scale, *others = module.linear(module.silu(emb)).chunk(6, 1)
    return (_modulated(module.norm, x, scale, shift), *others)


def _zero_single(module: Any, x: Tensor, emb: Any = None) -> tuple[Tensor, Tensor]:
    shift, scale, gate = module.linear(module.silu(emb)).chunk(3, 1)
    return _modulated(module.norm, x, scale, shift), gate


def _continuous(module: Any, x: Tensor, conditioning_embedding: Tensor) -> Tensor:
    scale, shift = module.linear(module.silu(conditioning_embedding).to(x.dtype)).chunk(2, 1)
    return _modulated(module.norm, x, scale, shift)


def _two_streams(
    module: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shift, scale, gate, e_shift, e_scale, e_gate = module.linear(module.silu(temb)).chunk(6, 1)
    hidden = _modulated(module.norm, hidden_states, scale, shift)
    encoder = _modulated(module.norm, encoder_hidden_states, e_scale, e_shift)
    return hidden, encoder, gate[:, None], e_gate[:, None]


def _rms(module: Any, hidden_states: Tensor) -> Tensor:
    return rms_norm(hidden_states, tuple(module.dim), module.weight, module.eps)


def _gated(module: Any, x: Tensor) -> Tensor:
    return swiglu(x)


def _is_rms(norm: Any) -> bool:
    """Whether a norm is diffusers' RMSNorm, not PyTorch's, and has no bias."""
    return type(norm).__name__ == "RMSNorm" and not isinstance(norm, nn.RMSNorm) and norm.bias is None


def _around(norm: Callable[..., Any], module: Any) -> FusedNorm | None:
    return FusedNorm(module, norm) if type(module.norm) is nn.LayerNorm else None


# Classes of diffusers -> what makes their faster way, or None for a form that has none.
FUSED: Mapping[str, Callable[[Any], FusedNorm | None]] = {
    "AdaLayerNormContinuous": partial(_around, _continuous),
    "AdaLayerNormZero": partial(_around, _zero),
    "AdaLayerNormZeroSingle": partial(_around, _zero_single),
    "CogVideoXLayerNormZero": partial(_around, _two_streams),
    "Flux2SwiGLU": lambda module: FusedNorm(module, _gated),
    "RMSNorm": lambda module: FusedNorm(module, _rms) if _is_rms(module) else None,
}
