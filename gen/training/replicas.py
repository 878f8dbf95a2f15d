"""Networks of processes that step apart and meet every so many steps (gen.training.outer), and their checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.spec import Json
from gen.training.distributed import gather, processes
from gen.training.run import Run
from gen.training.shards import Files

__all__ = ["Replicas"]


class Replicas:
    """The replica of a run that a process trains, and its outer weights; in a run without `outer` nothing of its own.

    Args:
        run: with `outer` or without.
        parameters: that are trained, by role, the same in every process.

    Attributes:
        rank, count: number of this replica and of all; one where processes share their gradients.

    Raises:
        UserError: for a precision whose loss is scaled.
    """

    def __init__(self, run: Run, parameters: Mapping[str, Sequence[nn.Parameter]]) -> None:
        self._outer, self._seed = run.outer, run.seed
        self.rank, self.count = (0, 1) if run.outer is None else processes()
        if run.outer is not None and run.precision == "fp16":
            raise UserError(
                "outer: processes that step apart would scale fp16 apart; allowed precisions: no, bf16, fp8"
            )
        self._parameters = {} if run.outer is None else {role: own for role, own in parameters.items() if own}
        self._outer_weights = {f"{role}/phi": _vector(own) for role, own in self._parameters.items()}
        self._outer_weights |= {
            f"{role}/velocity": torch.zeros_like(self._outer_weights[f"{role}/phi"]) for role in self._parameters
        }

    def meets(self, step: int) -> bool:
        """Return whether a process hears of the others after so many steps."""
        return self.count == 1 or self._outer is None or step % self._outer.every == 0

    @torch.no_grad()
    def meet(self, step: int) -> None:
        """Make the outer step, if one is due after so many steps."""
        outer = self._outer
        if outer is None or step % outer.every:
            return
        partners = outer.partners(self._seed, step // outer.every, self.count)
        mean = self._mean if partners is None else partial(self._mean_of_pair, partner=partners[self.rank])
        for role, parameters in self._parameters.items():
            phi, velocity = (self._outer_weights[f"{role}/{name}"] for name in ("phi", "velocity"))
            phi, velocity = outer.update(_vector(parameters), phi, velocity, mean)
            self._outer_weights |= {f"{role}/phi": phi, f"{role}/velocity": velocity}
            for parameter, values in zip(parameters, phi.split([p.numel() for p in parameters]), strict=True):
                parameter.copy_(values.view_as(parameter))

    def _mean(self, value: Tensor) -> Tensor:
        if self.count == 1:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total / self.count

    def _mean_of_pair(self, value: Tensor, partner: int) -> Tensor:
        if partner == self.rank:
            return value
        theirs = torch.empty_like(value)
        messages = [dist.P2POp(dist.isend, value, partner), dist.P2POp(dist.irecv, theirs, partner)]
        for message in dist.batch_isend_irecv(messages):
            message.wait()
        return (value + theirs) / 2

    # -- what is sampled, and checkpoints ------------------------------------------------------------------------------

    @torch.no_grad()
    def averaged(self, net: nn.Module) -> nn.Module:
        """Give a network the mean of all replicas' weights, in place; every process has to call at once."""
        net.load_state_dict(self._means(net.state_dict()))
        return net

    def _means(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the means over replicas; of integers this one's."""
        return {key: self._mean(value) if value.is_floating_point() else value for key, value in tensors.items()}

    def weight_files(self, files: Files) -> Files:
        """Return the model's tensors, the mean of all replicas; every process has to call at once."""
        return files if self.count == 1 else {name: self._means(tensors) for name, tensors in files.items()}

    def state_files(self, weights: Files, states: Files, optim: Json) -> tuple[Files, Json]:
        """Return what a checkpoint holds beside the model; every process has to call at once.

        Args:
            weights: of this process's networks and averages.
            states: of its optimisers.
            optim: what else these know.

        Returns:
            Tensors by file name and name, of all replicas in the first process; what else is for the manifest.
        """
        if self._outer is None:
            return states, {"optim": optim}
        own = {name: {key: value.cpu() for key, value in tensors.items()} for name, tensors in weights.items()}
        own |= states | {"outer.safetensors": self._outer_weights}
        every = gather((own, optim))
        files = {_of_replica(i, name): tensors for i, (files, _) in enumerate(every) for name, tensors in files.items()}
        return files, {"replicas": [known for _, known in every]}

    def restored(self, folder: Path, manifest: Json) -> tuple[str, Json]:
        """Restore the outer weights; return where in a checkpoint this replica's state lies, and its manifest.

        Raises:
            UserError: for a checkpoint of another number of replicas.
        """
        if self._outer is None:
            return "", manifest
        there = len(manifest["replicas"])
        if there != self.count:
            raise UserError(
                f"{folder} is of {there} processes that step apart, and here are {self.count}: start {there}, or "
                f"choose another folder, with --init {folder} to start from the mean of their weights"
            )
        saved = checkpoints.read_tensors(folder, _of_replica(self.rank, "outer.safetensors"), manifest)
        self._outer_weights = {key: saved[key].to(value) for key, value in self._outer_weights.items()}
        return _of_replica(self.rank, ""), manifest | {"optim": manifest["replicas"][self.rank]}


def _vector(parameters: Sequence[nn.Parameter]) -> Tensor:
    return parameters_to_vector(parameters).detach()


def _of_replica(number: int, name: str) -> str:
    """Return the name, in a checkpoint, of a replica's file."""
    return f"state/replica-{number}/{name}"
