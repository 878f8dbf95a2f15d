"""Pruned: any denoiser without some of its operators."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gen.config.errors import UserError, nearest
from gen.config.spec import build, part
from gen.diffusion.tap import Compute, Skip, Tap
from gen.models.dit import DiT
from gen.models.layers.wrapper import Wrapper, state_shape

__all__ = ["Pruned", "PrunedNet"]


@dataclass(frozen=True)
class Pruned:
    """A denoiser whose residuals at some sites are gone, with all weights that only they used (structured pruning).

    inner: the whole denoiser. sites: names as its taps see them, "blocks.3.attn" or a whole "blocks.3". Where every
    site stays it is the inner network, to the bit.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "digits": {"inner": DiT.preset("digits", depth=5), "sites": ("blocks.2",)},
    }

    inner: Any = part("models", default=DiT())
    sites: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "inner", build("models", self.inner))
        if isinstance(self.inner, Pruned):
            raise UserError("Pruned.inner is Pruned already; add its sites to those of the whole network")

    @property
    def size(self) -> int:
        return int(self.inner.size)

    @property
    def channels(self) -> int:
        return int(self.inner.channels)

    @property
    def classes(self) -> int:
        return int(self.inner.classes)

    @staticmethod
    def preset(name: str, **changes: Any) -> Pruned:
        """ "digits", a DiT of 5 blocks less one; changes that are no fields of this are the inner network's."""
        if name not in Pruned.presets:
            raise UserError(f"unknown preset {name!r} of Pruned. {nearest(name, Pruned.presets)}")
        own = {f.name: changes.pop(f.name) for f in fields(Pruned) if f.name in changes}
        made = replace(Pruned(**Pruned.presets[name]), **own)
        return replace(made, inner=replace(made.inner, **changes))

    def build(self) -> PrunedNet:
        """The network, freshly initialised. Raises UserError for sites that there are not, or that are no residuals."""
        return PrunedNet(self)

    def unused(self) -> set[str]:
        """The names of the inner network's trained parameters that only the pruned sites use."""
        with torch.device("meta"):
            net = self.inner.build()
            whole, shapes = _reached(net, Skip(()))
            for site in self.sites:
                if site not in shapes:
                    raise UserError(f"Pruned: there is no site {site!r}. {nearest(site, shapes)}")
                if not shapes[site]:
                    raise UserError(f"Pruned: {site} has an output unlike its input, and so no identity in its place")
            return whole - _reached(net, Skip(self.sites))[0]


class PrunedNet(Wrapper):
    """The inner network as a net; what is pruned is not computed, and no tap is told of it.

    load_state_dict also takes the whole inner network's weights: those of what is gone are left out.
    """

    def __init__(self, spec: Pruned):
        super().__init__()
        self.spec = spec
        self.inner = spec.inner.build()
        self.skip = frozenset(spec.sites)
        if spec.sites:
            _remove(self.inner, spec.unused())
        self.register_load_state_dict_pre_hook(_load_inner_only)  # type: ignore[no-untyped-call]

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        cond: Mapping[str, Tensor],
        *,
        s: Tensor | None = None,
        tap: Tap | None = None,
    ) -> Tensor:
        def remaining(site: str, compute: Compute, h: Tensor) -> Tensor:
            if site in self.skip:
                return torch.zeros_like(h)
            return compute(h) if tap is None else tap(site, compute, h)

        return self.inner(x, t, cond, s=s, tap=remaining if self.skip else tap)

    def lr_scales(self) -> dict[str, float]:
        """The inner network's learning rates, relative to the run's, of what is left."""
        left = {name for name, _ in self.inner.named_parameters()}
        scales: dict[str, float] = getattr(self.inner, "lr_scales", dict)()
        return {f"inner.{name}": scale for name, scale in scales.items() if name in left}


class Removed(nn.Module):
    """Where a module was: its number in a list stays taken."""


def _reached(net: Any, tap: Skip) -> tuple[set[str], dict[str, bool]]:
    """The trained parameters that an output depends on, by name; and whether each site's output is like its input.

    net is on the meta device: nothing is computed.
    """
    alike: dict[str, bool] = {}

    def look(site: str, compute: Compute, h: Tensor) -> Tensor:
        out = tap(site, compute, h)
        alike[site] = out.shape == h.shape
        return out

    x, cond = torch.zeros(1, *state_shape(net)), {"y": torch.zeros(1, dtype=torch.int64)}
    with torch.enable_grad():
        out = net(x, torch.zeros(1), cond if net.spec.classes else {}, tap=look)
        trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
        slopes = torch.autograd.grad(out.sum(), list(trained.values()), allow_unused=True)
    return {name for name, slope in zip(trained, slopes, strict=True) if slope is not None}, alike


def _remove(net: nn.Module, unused: set[str], prefix: str = "") -> None:
    """Replaces every module all of whose trained parameters are unused, the outermost, by nothing."""
    for name, child in list(net.named_children()):
        own = {f"{prefix}{name}.{p}" for p, weight in child.named_parameters() if weight.requires_grad}
        if own and own <= unused:
            setattr(net, name, Removed())
        elif own & unused:
            _remove(child, unused, f"{prefix}{name}.")


def _load_inner_only(net: PrunedNet, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Puts the weights of a whole inner network in their places, and drops those that have none any more."""
    given, mine = {name.removeprefix(prefix) for name in state if name.startswith(prefix)}, set(net.inner.state_dict())
    if given <= {f"inner.{name}" for name in mine}:
        return
    with torch.device("meta"):
        whole = set(net.spec.inner.build().state_dict())
    if not given <= whole:  # of some other network: torch says which names differ
        return
    for name in given:
        weight = state.pop(f"{prefix}{name}")
        if name in mine:
            state[f"{prefix}inner.{name}"] = weight
