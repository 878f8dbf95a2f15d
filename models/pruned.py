"""Pruned: any denoiser without some of its operators."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gen.config.errors import UserError, nearest
from gen.diffusion.denoiser import Cond
from gen.diffusion.net import members
from gen.diffusion.tap import Compute, Skip, Tap
from gen.models.dit import DiT
from gen.models.layers import family
from gen.models.layers.wrapper import Wrapper, WrapperSpec

__all__ = ["Pruned", "PrunedNet"]


@dataclass(frozen=True)
class Pruned(WrapperSpec):
    """A denoiser without the residuals of some sites, and without all weights that only they used.

    Where every site stays it is the inner network, to the bit. Presets: "digits", a DiT of 5 blocks less one.

    Attributes:
        sites: names as taps see them, "blocks.3.attn" or a whole "blocks.3".
    """

    presets: ClassVar[family.Presets] = {
        "digits": {"inner": DiT.preset("digits", depth=5), "sites": ("blocks.2",)},
    }

    sites: tuple[str, ...] = ()

    def build(self) -> PrunedNet:
        """Return a fresh network. Raises UserError for sites that there are not, or that are no residuals."""
        return PrunedNet(self)

    def unused(self) -> set[str]:
        """Return the names of the inner network's trained parameters that only the pruned sites use."""
        with torch.device("meta"):
            net = self.inner.build()
            whole, residual = _reached(net, Skip(()))
            for site in self.sites:
                if site not in residual:
                    raise UserError(f"Pruned: there is no site {site!r}. {nearest(site, residual)}")
                if not residual[site]:
                    raise UserError(f"Pruned: {site} has an output unlike its input, so it cannot be left out")
            return whole - _reached(net, Skip(self.sites))[0]


class PrunedNet(Wrapper):
    """The inner network without what is pruned, which no tap meets.

    load_state_dict also takes the whole inner network's weights, of which those that are left are used.
    """

    def __init__(self, spec: Pruned):
        super().__init__(spec)
        self.inner = spec.inner.build()
        self.skip = frozenset(spec.sites)
        if spec.sites:
            _remove(self.inner, spec.unused())
            # A block whose attention and MLP are both pruned is gone as a whole, and so is its site.
            self.skip |= {name for name, module in self.inner.named_modules() if isinstance(module, Removed)}

    def forward(self, x: Tensor, t: Tensor, cond: Cond, *, s: Tensor | None = None, tap: Tap | None = None) -> Tensor:
        def remaining(site: str, compute: Compute, h: Tensor) -> Tensor:
            if site in self.skip:
                return torch.zeros_like(h)
            return compute(h) if tap is None else tap(site, compute, h)

        return self.inner(x, t, cond, s=s, tap=remaining if self.skip else tap)

    def inner_weights(self, given: Mapping[str, Tensor]) -> Mapping[str, Tensor] | None:
        """Return what is left of the weights of a whole inner network; None for weights of another network."""
        left = set(self.inner.state_dict())
        if not left <= set(given):
            return None
        with torch.device("meta"):
            whole = set(self.spec.inner.build().state_dict())
        return {name: given[name] for name in left} if set(given) <= whole else None


class Removed(nn.Module):
    """A module in the slot of a removed one: its number in a list stays in use."""


def _reached(net: Any, tap: Skip) -> tuple[set[str], dict[str, bool]]:
    """Return the trained parameters that an output depends on, and by site whether its output is like its input.

    net is on the meta device: nothing is computed.
    """
    alike: dict[str, bool] = {}

    def look(site: str, compute: Compute, h: Tensor) -> Tensor:
        out = tap(site, compute, h)
        alike[site] = out.shape == h.shape
        return out

    x, y = torch.zeros(1, *(members(net).state_shape or ())), torch.zeros(1, dtype=torch.int64)
    with torch.enable_grad():
        out = net(x, torch.zeros(1), {"y": y} if net.spec.classes else {}, tap=look)
        trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
        grads = torch.autograd.grad(out.sum(), list(trained.values()), allow_unused=True)
    return {name for name, grad in zip(trained, grads, strict=True) if grad is not None}, alike


def _remove(net: nn.Module, unused: set[str], prefix: str = "") -> None:
    """Replace every module all of whose trained parameters are unused, the outermost, by an empty one."""
    for name, child in list(net.named_children()):
        own = {f"{prefix}{name}.{p}" for p, weight in child.named_parameters() if weight.requires_grad}
        if own and own <= unused:
            setattr(net, name, Removed())
        elif own & unused:
            _remove(child, unused, f"{prefix}{name}.")
