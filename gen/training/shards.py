"""Checkpoints of sharded runs in shards: each process writes what it has, and reads what it needs.

Networks are sharded by fully_shard, by rows: process r of n has the r-th chunk of each tensor's first dimension.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gen.config import checkpoints
from gen.config.errors import NonFinite, UserError
from gen.config.spec import Json
from gen.config.writing import partial_name
from gen.training.background import Snapshot
from gen.training.distributed import broadcast, exchange, full_tensor, processes

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Files", "Shards", "from_rows", "gathered", "rows_of"]

Files = dict[str, dict[str, Tensor]]


def rows_of(tensor: Any) -> range | None:
    """Return which rows of a tensor this process has; None for a tensor that is not divided by rows.

    Args:
        tensor: a plain tensor or a DTensor.
    """
    if not hasattr(tensor, "full_tensor"):
        return None
    from torch.distributed.tensor import Shard

    if tuple(tensor.placements) != (Shard(0),):
        return None
    count, chunk = len(tensor), -(-len(tensor) // tensor.device_mesh.size())
    start = min(tensor.device_mesh.get_local_rank() * chunk, count)
    return range(start, start + len(tensor.to_local()))


def from_rows(rows: Tensor, like: Any) -> Tensor:
    """Return a tensor of which this process has some rows, sharded as another one; a plain one if that is.

    Args:
        rows: this process's, or the whole of a tensor that is not divided.
        like: a tensor of the whole's shape.
    """
    if rows_of(like) is None:
        return rows
    from torch.distributed.tensor import DTensor

    mesh, placements = like.device_mesh, like.placements
    return DTensor.from_local(
        rows.to(like.device), mesh, placements, run_check=False, shape=like.shape, stride=like.stride()
    )


@dataclass(frozen=True)
class Shards:
    """The rows of every divided tensor that a process has and, in the first process, all other tensors.

    Attributes:
        files: tensors by name and file name, those that this process writes.
        wholes: of each of these files the name of the one that is in shards.
        slices: of each of these files which rows of its tensors it has, by name.
    """

    files: Files
    wholes: dict[str, str]
    slices: dict[str, Json]

    @classmethod
    def of(cls, files: Mapping[str, Mapping[str, Tensor]]) -> Shards:
        """Return this process's shards of some files; every process has to call at once.

        Args:
            files: tensors by name and file name, the same in every process but for what is sharded.
        """
        rank, world = processes()
        own: Files = {}
        wholes, slices = dict[str, str](), dict[str, Json]()
        for whole, tensors in files.items():
            name = f"{whole.removesuffix('.safetensors')}-{rank + 1:05d}-of-{world:05d}.safetensors"
            own[name], wholes[name], slices[name] = {}, whole, {}
            for key, tensor in tensors.items():
                rows = rows_of(tensor)
                full = full_tensor(tensor) if rows is None else tensor
                if rows:
                    local: Any = tensor
                    own[name][key] = local.to_local()
                    slices[name][key] = {"start": rows.start, "stop": rows.stop, "shape": list(tensor.shape)}
                elif rows is None and rank == 0:
                    own[name][key] = full
        return cls(own, wholes, slices)

    def copied(self, snapshot: Snapshot) -> Shards:
        """Return the same from copies, so that the tensors may change while they are written.

        Args:
            snapshot: takes the copies.
        """
        own = {
            name: {key: snapshot.copy(name, key, tensor) for key, tensor in tensors.items()}
            for name, tensors in self.files.items()
        }
        snapshot.wait()
        return replace(self, files=own)

    def write(self, folder: Path, manifest: Json, group: ProcessGroup | None = None) -> None:
        """Write a checkpoint of which each process writes its own shards; it is there once all of them are.

        Args:
            folder: the checkpoint's folder, on a file system that all processes share.
            manifest: see gen.config.checkpoints.write; the first process's is taken.
            group: through which the processes agree, of gloo and for one thread of each; None for that of all of them.

        Raises:
            OSError: if another process could not write; and what that one raises. The folder is as it was before.
        """
        rank, _ = processes()
        unfinished = Path(broadcast(str(folder.parent / partial_name(folder.name)), group=group))
        problem: Exception | None = None
        written: dict[str, Json] = {}
        try:
            files = checkpoints.write_files(folder, unfinished, self.files)
            written = {
                name: about | {"shard_of": self.wholes[name], "slices": self.slices[name]}
                for name, about in files.items()
            }
        except (OSError, UserError, NonFinite) as error:
            problem = error
        said = f"process {rank}: {getattr(problem, 'strerror', None) or problem}" if problem else None
        try:
            everything = exchange({rank: (written, said)}, group)
            problems = [said for _, said in everything if said]
            if rank == 0:
                files_written = {name: about for one, _ in everything for name, about in one.items()}
                absent = [name for name in files_written if not (unfinished / name).exists()]
                try:
                    if not problems and not absent:
                        checkpoints.complete(folder, unfinished, manifest, files_written)
                except OSError as error:
                    problem, problems = error, [f"process 0: {error.strerror or error}"]
                if absent:
                    problems += [f"{folder.parent} is not the same folder for all processes: {absent[0]} is not there"]
        finally:
            if rank == 0:
                shutil.rmtree(unfinished, ignore_errors=True)
        problems = broadcast(problems, group=group)
        if problem is not None:
            raise problem
        if problems:
            raise OSError("; ".join(problems))


def gathered(files: Files, keep: bool, snapshot: Snapshot | None = None) -> Files:
    """Gather sharded tensors one by one, on the CPU; every process has to call at once.

    Args:
        files: tensors by file name and name.
        keep: false in processes that do not write: they only take part, and return none.
        snapshot: copies all tensors; else those that are not sharded are returned themselves.
    """
    whole: Files = {name: {} for name in files}
    for name, tensors in files.items():
        for key, tensor in tensors.items():
            full = full_tensor(tensor)
            if keep and snapshot is not None:
                whole[name][key] = snapshot.copy(name, key, full)
            elif keep:
                whole[name][key] = full if full is tensor else full.cpu()
    if snapshot is not None:
        snapshot.wait()
    return whole
