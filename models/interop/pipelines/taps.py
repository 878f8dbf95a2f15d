"""Taps into the networks of a pipeline that is used as a denoiser."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase

from torch import nn

from gen.config.errors import UserError, nearest
from gen.diffusion.tap import BoundTap, Chain, Tap
from gen.models.interop.pipelines.families import plain_module
from gen.models.interop.pipelines.hooks import SiteHooks

__all__ = ["NetworkTaps", "branch_of_network"]

INNER = ("trunk", "hidden.*", "deep.*", "blocks.*")  # sites within a network


class NetworkTaps:
    """Hooks on the networks of a pipeline, from their first tap on until they are released; idle in between."""

    def __init__(self) -> None:
        self.hooks: dict[nn.Module, SiteHooks] = {}
        weakref.finalize(self, _release, self.hooks)

    @contextmanager
    def tapped(self, network: nn.Module, tap: Tap | None, number: int = 0) -> Iterator[None]:
        """Let a network call a tap at its sites, but for "net", within.

        Args:
            network: of diffusers.
            tap: None for none.
            number: index of the network in its pipeline.
        """
        if tap is None:
            yield
            return
        hooks = self._hooks_of(network)
        hooks.refresh()
        hooks.tap = _tap_of_network(tap, number)
        try:
            yield
        finally:
            hooks.tap = None

    def check(self, network: nn.Module, sites: Sequence[str]) -> None:
        """Raise UserError for a name that is no block of a network."""
        known = [site for site in self._hooks_of(network).known if fnmatchcase(site, "blocks.*")]
        for site in sites:
            if site not in known:
                raise UserError(f"without: {type(network).__name__} has no {site!r}. {nearest(site, known)}")

    def _hooks_of(self, network: nn.Module) -> SiteHooks:
        network = plain_module(network)
        if network not in self.hooks:
            self.hooks[network] = SiteHooks(network, INNER, attach=False)
        return self.hooks[network]

    def release(self) -> None:
        """Take all hooks off."""
        _release(self.hooks)


def branch_of_network(branch: str, number: int) -> str:
    """Return the branch of one of several networks of a pipeline: those after the first have branches of their own.

    Args:
        branch: of the evaluation.
        number: index of the network; 1 adds ".2".
    """
    return f"{branch}.{number + 1}" if number else branch


def _tap_of_network(tap: Tap, number: int) -> Tap:
    if isinstance(tap, BoundTap):
        return BoundTap(tap.tap, replace(tap.context, branch=branch_of_network(tap.context.branch, number)))
    return Chain(tuple(_tap_of_network(t, number) for t in tap.taps)) if isinstance(tap, Chain) else tap


def _release(hooks: dict[nn.Module, SiteHooks]) -> None:
    for each in hooks.values():
        each.remove()
    hooks.clear()
