"""Networks beside the student: frozen copies, averages, evaluation mode, outputs in another's terms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from gen.diffusion.denoiser import Cond, Denoiser, DenoiserLike
from gen.diffusion.net import unwrap
from gen.training.lora import adapted_copy

__all__ = ["ema_update", "eval_mode", "forked_rng", "frozen_copy", "output_as", "requires_grad_frozen"]


def frozen_copy(net: nn.Module) -> nn.Module:
    """Return a copy of a network that no loss trains, beside the same weights if adapters are; as a role it is saved.

    Args:
        net: the network, whose weights the copy has.
    """
    return adapted_copy(net).requires_grad_(False)


@contextmanager
def requires_grad_frozen(*nets: nn.Module) -> Iterator[None]:
    """Let gradients through networks to their inputs, but not to their weights, inside a `with` block.

    Args:
        *nets: the networks; on exit, weights that were trained are trained again.
    """
    held = [p for net in nets for p in net.parameters() if p.requires_grad]
    try:
        for p in held:
            p.requires_grad_(False)
        yield
    finally:
        for p in held:
            p.requires_grad_(True)


@torch.no_grad()
def ema_update(average: nn.Module, net: nn.Module, decay: float) -> None:
    """Move the weights of a target network: average <- decay average + (1 - decay) net; buffers are copied.

    Args:
        average: the network that follows.
        net: the network that is followed, bare or under DistributedDataParallel.
        decay: share of the old average that stays, in [0, 1]; 0 copies.
    """
    net = unwrap(net)
    for old, new in zip(average.parameters(), net.parameters(), strict=True):
        if old is not new:  # as the weights beside adapters are
            old.lerp_(new, 1 - decay)
    for buffer, newer in zip(average.buffers(), net.buffers(), strict=True):
        buffer.copy_(newer)


@contextmanager
def eval_mode(*denoisers: DenoiserLike) -> Iterator[None]:
    """Switch networks to evaluation mode (no dropout) inside a `with` block.

    Args:
        *denoisers: those that are no Denoiser have no network, and are passed over.
    """
    nets = [f.net for f in denoisers if isinstance(f, Denoiser)]
    was = [net.training for net in nets]
    for net in nets:
        net.eval()
    try:
        yield
    finally:
        for net, training in zip(nets, was, strict=True):
            net.train(training)


def forked_rng(x: Tensor) -> AbstractContextManager[None]:
    """Return a `with` block after which torch draws again what it drew inside, such as the masks of dropout.

    Args:
        x: a tensor on the device whose generator is rewound, beside the CPU's.
    """
    return torch.random.fork_rng(devices=[x.device] if x.is_cuda else [])


def output_as(f: Denoiser, other: DenoiserLike, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    """Return another denoiser's prediction at x_t in the terms of f's network output, [B, ...].

    Args:
        f: the denoiser whose parameterisation is meant.
        other: the denoiser that is evaluated.
        x, t: noisy samples [B, ...] and their times [B].
        cond: the condition.
    """
    if isinstance(other, Denoiser) and (other.path, other.parameterisation) == (f.path, f.parameterisation):
        return other.output(x, t, cond)
    return f.parameterisation.target(f.path, *other(x, t, cond), t)
