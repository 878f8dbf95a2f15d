"""Averages of networks while they are trained; gen.training.ema has their profiles."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from gen.training.ema import EMA

__all__ = ["Averages"]


class Averages:
    """Averages of the networks of a run.

    Args:
        profiles: the averages of each network.
        nets: by role.

    Attributes:
        nets: the averages by (role, label of the profile), in evaluation mode.
    """

    def __init__(self, profiles: Sequence[EMA], nets: Mapping[str, nn.Module]) -> None:
        self._profiles = profiles
        self.nets = {
            (role, profile.label): copy.deepcopy(net).eval().requires_grad_(False)
            for role, net in nets.items()
            for profile in profiles
        }

    def follow(self, nets: Mapping[str, nn.Module]) -> None:
        """Look up the tensors to average, which then stay the same objects.

        Args:
            nets: by role, as of the constructor.
        """
        self._followed = [
            _Pair(profile, self.nets[role, profile.label], net)
            for profile in self._profiles
            for role, net in nets.items()
        ]

    @torch.no_grad()
    def update(self, update: int) -> None:
        """Average the parameters after update 1, 2, ...; copy the buffers."""
        for pair in self._followed:
            pair.update(update)


class _Pair:
    """A network and one of its averages."""

    def __init__(self, profile: EMA, average: nn.Module, net: nn.Module) -> None:
        self._profile = profile
        self._averages: list[Tensor] = list(average.parameters())
        self._weights: list[Tensor] = list(net.parameters())
        pairs = zip(average.modules(), net.modules(), strict=True)
        self._with_buffers = [(ours, theirs) for ours, theirs in pairs if any(True for _ in ours.buffers(False))]

    def update(self, update: int) -> None:
        if self._averages:  # a role may have buffers only
            torch._foreach_lerp_(self._averages, self._weights, 1 - self._profile.decay_at(update))
        for average, net in self._with_buffers:
            for ours, theirs in zip(average.buffers(False), net.buffers(False), strict=True):
                ours.copy_(theirs)
