"""A store of what a teacher generates: shards that can be made in any order, by any machine, and resumed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.spec import Json
from gen.training.log import ProgressBar

__all__ = ["WHOLE_STORE", "ShardPlan", "fill_shards", "parent_hash"]


@dataclass(frozen=True)
class ShardPlan:
    """Options of writing a store.

    Attributes:
        size: rows of a shard, at least 1.
        part: (k, m) writes every m-th shard from the k-th on, for m machines that share the folder.
        quiet: whether no progress is shown.
    """

    size: int = 4096
    part: tuple[int, int] = (0, 1)
    quiet: bool = False


WHOLE_STORE = ShardPlan()


def fill_shards(
    folder: Path,
    name: str,
    n: int,
    about: Json,
    generate: Callable[[int, int], dict[str, Tensor]],
    plan: ShardPlan,
) -> None:
    """Write every shard of n numbered rows that is not there yet.

    Args:
        folder: of the store.
        name: of the tensors' file, and of the progress.
        n: number of rows in all shards.
        about: the manifest that all shards share, and that shards which are there must have.
        generate: generate(first, count) returns the columns of some rows.
        plan: how it is written.

    Raises:
        UserError: if a shard of another store is there.
    """
    k, of = plan.part
    if n < 1 or plan.size < 1 or not 0 <= k < of:
        raise UserError(f"{name}: n = {n}, shard = {plan.size}, part = {k} of {of}; all positive, parts count from 0")
    shards = -(-n // plan.size)
    about = {**about, "n": n, "shards": shards}
    progress = ProgressBar(name, n, quiet=plan.quiet)
    for i in range(k, shards, of):
        shard, count = folder / f"shard-{i:05d}", min(plan.size, n - i * plan.size)
        if shard.exists():
            there = {key: v for key, v in checkpoints.read(shard).items() if key not in ("format", "files", "sha256")}
            differs = [key for key in {**there, **about} if there.get(key) != about.get(key)]
            if differs:
                raise UserError(f"{shard} holds other {name}: {', '.join(differs)} differ. Choose another folder")
        else:
            checkpoints.write(shard, {f"{name}.safetensors": generate(i * plan.size, count)}, about)
        progress.advance(count)
    progress.close()


def parent_hash(folder: Path | None) -> str | None:
    """Return the sha256 of a teacher's checkpoint, by which a store knows its teacher; None without a folder.

    Args:
        folder: of the teacher's run, or None.
    """
    return checkpoints.manifest_of(folder)["sha256"] if folder else None
