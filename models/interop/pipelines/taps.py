"""Taps into the networks of a pipeline that is used as a denoiser."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from gen.config.errors import UserError, nearest
from gen.config.spec import name_of
from gen.diffusion.contracts import Cache
from gen.diffusion.tap import BoundTap, Chain, Tap
from gen.models.interop.pipelines.families import plain_module
from gen.models.interop.pipelines.hooks import SiteHooks

__all__ = ["NetworkTaps", "branch_of_network", "check_sites", "policy_and_sites"]

INNER = ("trunk", "hidden.*", "deep.*", "blocks.*")  # sites within a network


class NetworkTaps:
    """Hooks on the networks of a pipeline, for an evaluation with a tap, or for all within `kept`."""

    def __init__(self) -> None:
        self.hooks: dict[nn.Module, SiteHooks] = {}
        self.keep = False

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Leave the hooks on from one evaluation to the next within: to put them on takes time."""
        before, self.keep = self.keep, True
        try:
            yield
        finally:
            self.keep = before
            if not before:
                self.release()

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
            if not self.keep:
                hooks.remove()

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
        for hooks in self.hooks.values():
            hooks.remove()


def policy_and_sites(cache: Cache) -> tuple[Any, tuple[str, ...]]:
    """Return policy and sites of a cache's sessions; None and () for a cache of another make.

    Args:
        cache: of gen.samplers.caches, or any other.
    """
    try:
        session: Any = cache.start(1)
    except UserError:  # it is for another number of steps
        return None, ()
    return getattr(session, "policy", None), tuple(getattr(session, "sites", ()))


def check_sites(cache: Cache, hooks: SiteHooks) -> None:
    """Raise UserError for a cache that cannot work in a network.

    Args:
        cache: to be used.
        hooks: of the network.
    """
    policy, patterns = policy_and_sites(cache)
    probe, check = ("", "") if policy is None else (policy.probe, policy.check)
    kind = type(hooks.network).__name__
    for pattern in (*patterns, *([probe] if probe else ())):
        if not any(fnmatchcase(site, pattern) for site in hooks.sites):
            raise UserError(f"{kind}: no site matches {pattern!r}; it has {', '.join(hooks.kinds())}")
    checks = [site for site in hooks.sites if fnmatchcase(site, check)]
    if probe in hooks.opaque or (check and len(checks) < 2):
        raise UserError(f"{name_of(type(cache))} decides inside the trunk of a {kind}, which is left out as a whole; "
                        "allowed: a cache that decides before it, such as taylorseer_lite or fbcache")  # fmt: skip


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
