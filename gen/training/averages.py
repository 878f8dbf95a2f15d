"""Averages of networks while they are trained, on their device or on the CPU; gen.training.ema has their profiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from gen.training.background import BackgroundJob, Snapshot
from gen.training.ema import EMA
from gen.training.lora import adapted_copy, adapter_tensors

__all__ = ["Averages"]

Parts = tuple[list[Tensor], list[Tensor]]  # parameters, buffers


class Averages:
    """Averages of the networks of a run; of one with adapters of these alone, beside the network's own weights.

    On a device of their own a thread updates them, from a copy of the weights, while training goes on.

    Args:
        profiles: the averages of each network.
        nets: by role.
        device: "cpu", or None for that of each network.
    """

    def __init__(self, profiles: Sequence[EMA], nets: Mapping[str, nn.Module], device: str | None = None) -> None:
        self._profiles, self._away = profiles, device is not None
        self._nets = {
            (role, profile.label): _average_of(net, device) for role, net in nets.items() for profile in profiles
        }
        self._job, self._snapshot = BackgroundJob(), Snapshot()
        self._copied: torch.cuda.Event | None = None

    @property
    def nets(self) -> dict[tuple[str, str], nn.Module]:
        """The averages by (role, label of the profile), in evaluation mode, as soon as they are up to date."""
        self._job.wait()
        return self._nets

    def follow(self, nets: Mapping[str, nn.Module]) -> None:
        """Look up the parameters to average, which then stay the same objects.

        Args:
            nets: by role, as of the constructor.
        """
        self._weights = {role: _Tensors(net) for role, net in nets.items()}
        self._averages = [
            (profile, role, _Tensors(self._nets[role, profile.label])) for profile in self._profiles for role in nets
        ]

    def update(self, update: int, unless: Tensor | None = None) -> None:
        """Average the parameters after update 1, 2, ...; copy the buffers.

        Args:
            update: its number.
            unless: 0-d, which a thread that averages reads first: where it is not 0, averages stay as they are.
        """
        weights = {role: tensors.now() for role, tensors in self._weights.items()}
        if not self._away or not self._averages:
            self._average(weights, update)
            return
        self._job.wait()  # it reads the copies that are made now
        device = next((tensor.device for tensors in weights.values() for tensor in tensors[0]), torch.device("cpu"))
        flags = [] if unless is None else [unless]
        if device.type == "cuda":
            stream = torch.cuda.Stream(device)
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                copies, held = self._copy(weights), self._copies("flags", flags)
                self._copied = stream.record_event()
        else:
            copies, held = self._copy(weights), self._copies("flags", flags)
        self._job.start(partial(self._average, copies, update, self._copied, held))

    def release_weights(self) -> None:
        """Let the device wait, before weights change, until those of the last update are copied."""
        if self._copied is not None:
            torch.cuda.current_stream().wait_event(self._copied)

    def _copy(self, weights: Mapping[str, Parts]) -> dict[str, Parts]:
        return {
            role: (self._copies(f"{role} parameters", parameters), self._copies(f"{role} buffers", buffers))
            for role, (parameters, buffers) in weights.items()
        }

    def _copies(self, of: str, tensors: list[Tensor]) -> list[Tensor]:
        return [self._snapshot.copy(of, str(i), tensor) for i, tensor in enumerate(tensors)]

    @torch.no_grad()
    def _average(
        self, weights: Mapping[str, Parts], update: int, copied: torch.cuda.Event | None = None,
        held: Sequence[Tensor] = (),
    ) -> None:  # fmt: skip
        if copied is not None:
            copied.synchronize()
        if any(held):
            return
        for profile, role, tensors in self._averages:
            (averages, ours), (parameters, theirs) = tensors.now(), weights[role]
            if averages:  # a role may have buffers only
                torch._foreach_lerp_(averages, parameters, 1 - profile.decay_at(update))
            for own, other in zip(ours, theirs, strict=True):
                own.copy_(other)


def _average_of(net: nn.Module, device: str | None) -> nn.Module:
    """Return a network for the average of one; of adapters that one's weights stay where they are."""
    average = adapted_copy(net).eval().requires_grad_(False)
    if not getattr(net, "adapted", False):
        return average.to(device)
    for adapter in adapter_tensors(dict(average.named_parameters())).values():
        adapter.data = adapter.data.to(device or adapter.device)
    return average


class _Tensors:
    """The tensors of a network that are averaged, looked up once."""

    def __init__(self, net: nn.Module) -> None:
        own, modules = dict[str, Tensor](net.named_parameters()), list(net.modules())
        if getattr(net, "adapted", False):
            own, modules = adapter_tensors(own), []
        self._parameters = list(own.values())
        self._with_buffers = [module for module in modules if any(True for _ in module.buffers(False))]

    def now(self) -> Parts:
        """Return parameters and buffers; a module may have other buffers than before."""
        return self._parameters, [buffer for module in self._with_buffers for buffer in module.buffers(False)]
