"""Objectives: the losses that are trained, one file each, on data here and from teachers in gen.distillers.

    denoise      regression of diffusion and flow models      mdlm       masked diffusion (text)
    curriculum   denoise, noisiest levels first               llada      masked diffusion after a prompt (text)
    uncertainty  denoise with learned weights (EDM2)          bd3        block diffusion (text)
    repa, urepa  denoise + alignment with an encoder          fast_dllm  block diffusion of a fine-tuned model (text)
    reg          repa with a noised class token               cart       masked diffusion by context (text)
    erw          alignment first, denoise after               reconstruct  the loss of an autoencoder
    dfm          stages at times of their own                  tokenizer  an autoencoder's, with a discriminator
    restore      of a degraded picture's residual (ResShift)   vf         tokenizer + features of another model
    docdiff      restore, with a coarse network
    straight     any of denoising, for fewer adaptive steps

This page is the contract; a class of your own is named "my_package.module:Class".
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gen.diffusion.denoiser import Cond, DenoiserLike
from gen.diffusion.noise import Noise

__all__ = ["Batch", "Objective", "Roles", "Step", "join", "to_device"]

Roles = Mapping[str, Any]  # Denoiser by role; under "teacher" any DenoiserLike
Step = tuple[str | tuple[str, ...], Tensor, dict[str, Tensor]]


@dataclass(frozen=True)
class Batch:
    """One micro-batch of a training step.

    Attributes:
        x: clean samples [B, ...], or tokens int64 [B, L].
        cond: the items' other tensors by name, [B, ...] each; labels are "y".
        noise: this step's random numbers, one seed per sample.
        origin: of pairs, the noise from which a teacher generated x.
        step: number of updates before this one.
        first: index of its first sample in the step's batch, of which it is a part.
        total: samples of the step's batch; None for this one's.
    """

    x: Tensor
    cond: Cond
    noise: Noise
    origin: Noise | None = None
    step: int = 0
    first: int = 0
    total: int | None = None

    @classmethod
    def of(
        cls,
        items: Mapping[str, Tensor],
        noise: Noise,
        step: int,
        device: torch.device,
        first: int = 0,
        total: int | None = None,
    ) -> Batch:
        """Return the batch of stacked items on a device.

        Args:
            items: tensors by name, as gen.training.stream yields them; "origin" has the seeds of pairs.
            noise, step, first, total: see the class.
            device: of the networks.
        """
        cond = {k: to_device(v, device) for k, v in items.items() if k not in ("x", "index", "origin")}
        origin = Noise(tuple(items["origin"].tolist())) if "origin" in items else None
        return cls(to_device(items["x"], device), cond, noise, origin, step, first, total)

    def normal(self, name: str) -> Tensor:
        """Draw unit noise shaped as x; the same name gives the same noise."""
        return self.to_device(self.noise.normal(name, self.x.shape[1:])).to(self.x.dtype)

    def to_device(self, tensor: Tensor) -> Tensor:
        """Return a tensor on the device of x, see the function."""
        return to_device(tensor, self.x.device)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device; from the CPU to a GPU through pinned memory, and the host does not wait.

    Args:
        tensor: on any device.
        device: where it is to be.
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def join(batches: Sequence[Batch]) -> Batch:
    """Return micro-batches of one step as one batch.

    Args:
        batches: at least one.
    """
    first = batches[0]
    noise = Noise(tuple(seed for batch in batches for seed in batch.noise.seeds))
    seeds = tuple(seed for batch in batches if batch.origin is not None for seed in batch.origin.seeds)
    cond = {key: torch.cat([batch.cond[key] for batch in batches]) for key in first.cond}
    return Batch(torch.cat([batch.x for batch in batches]), cond, noise, Noise(seeds) if seeds else None, first.step)


class Objective(Protocol):
    """A plug-in of this folder: a frozen dataclass that yields the losses of the networks it trains.

    One that names this class as its base inherits the defaults: one network, "net", validated by the call's first loss.
    """

    @property
    def rates(self) -> Mapping[str, float]:
        """Factors on the run's learning rate by role; {} by default, 1 for all."""
        return {}

    @property
    def delays(self) -> Mapping[str, int]:
        """Updates by role before the schedule of its learning rate begins; {} by default, 0 for all."""
        return {}

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        """Return the networks to train by role; the first samples. {"net": net} by default.

        A role without parameters holds state: its buffers are saved and restored with the rest.

        Args:
            net: the run's new network.
            teacher: the denoiser of run.teacher, frozen, or None.

        Raises:
            UserError: for a network or a teacher that this objective cannot train with.
        """
        return {"net": net}

    @abstractmethod
    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        """Yield (role, loss, logs); the role's optimiser steps at each yield, before the next loss is requested.

        So critics, alternation and two time scales need nothing in the trainer.

        Args:
            roles: every role's network as a Denoiser (under "teacher" the teacher): f(x, t, cond) is its Prediction,
                f.output(x, t, cond) the raw output, f.path and f.parameterisation what it is trained with.
            batch: the data and this step's random numbers; all randomness comes from batch.noise.

        Yields:
            role: a name, or a tuple of names that one loss trains.
            loss: 0-d, the mean over the micro-batch.
            logs: 0-d tensors by name for metrics.jsonl, the same names in every micro-batch.
        """
        ...

    def count(self, roles: Roles, batch: Batch) -> Tensor | None:
        """Return over how many things a loss is the mean, 0-d: the weight of a micro-batch in its step's batch.

        So a step does not depend on how its batch is cut. None, the default: over samples, micro-batches weigh alike.

        Args:
            roles, batch: as of the call.
        """
        return None

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """Return the validation loss, 0-d; called without gradients. The first loss of the call by default.

        Args:
            roles: as of the call; the sampling role's network is its average.
            batch: held-out data; the noise is the same at every validation, times are best fixed.
        """
        return next(iter(self(roles, batch)))[1]

    def validate_all(self, roles: Roles, batches: Sequence[Batch]) -> float:
        """Return the validation loss of all micro-batches: by default the mean over their samples.

        Args:
            roles: as of `validate`.
            batches: held-out data. What is no mean over samples is computed from all of them (`join`), so that it does
                not depend on how they are cut.
        """
        losses = [float(self.validate(roles, batch).detach()) * len(batch.x) for batch in batches]
        return sum(losses) / sum(len(batch.x) for batch in batches)

    def observe(self, roles: Roles, logs: dict[str, float]) -> None:
        """React to a step that is done, such as by writing into a role's buffers; nothing by default.

        Args:
            roles: as of the call.
            logs: what the step logged, the mean over all processes.
        """
        return
