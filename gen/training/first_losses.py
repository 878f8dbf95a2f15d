"""Losses of a network on the first batches of its run, by which adapters may begin."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.noise import derive
from gen.training.data_start import Losses
from gen.training.noise_ahead import step_noise
from gen.training.objectives import Batch
from gen.training.stream import ShuffledStream

if TYPE_CHECKING:
    from gen.data import DataSet
    from gen.training.run import Run

__all__ = ["first_losses"]

BATCHES, SAMPLES = 8, 64  # of a batch at most: by what fits, but however many processes there are


def first_losses(
    run: Run, net: nn.Module, teacher: Denoiser | None, data: DataSet | None, device: torch.device
) -> Losses:
    """Return the losses of a network, not yet adapted, on the first batches of a run: the same in every process.

    () for a run whose adapters begin without them, and without data.

    Args:
        run: with its objective and seed.
        net: moved to the device.
        teacher: of the run, or None.
        data: the training split, or None.
        device: of the networks.
    """
    if data is None or run.lora is None or not run.lora.reads_data:
        return ()
    assert run.objective is not None
    parts = {role: part.to(device) for role, part in run.objective.roles(net.to(device), teacher).items()}
    roles: dict[str, Any] = {role: Denoiser(part, run.path, run.parameterisation) for role, part in parts.items()}
    roles |= {} if teacher is None else {"teacher": teacher}
    micro = run.micro_batch_size or min(run.batch_size, SAMPLES)
    stream = ShuffledStream(data, run.seed, run.batch_size)
    batches = []
    for k in range(BATCHES):
        items = stream.__getitems__(range(k * micro, (k + 1) * micro))
        noise = step_noise(run.seed, 0, [items["index"].tolist()])[0]
        batches.append(Batch.of(items, noise, step=0, device=device))
    return [partial(_loss, run, roles, next(iter(parts)), batch, k) for k, batch in enumerate(batches)]


def _loss(run: Run, roles: dict[str, Any], sampled: str, batch: Batch, k: int) -> Tensor:
    """Return the first loss of the role that samples."""
    torch.manual_seed(derive("adapters", run.seed, k))
    assert run.objective is not None
    for role, loss, _ in run.objective(roles, batch):
        if role == sampled or sampled in (role if isinstance(role, tuple) else ()):
            return loss
    raise UserError(f"lora.init: {type(run.objective).__name__} has no loss of {sampled!r} at the first step")
