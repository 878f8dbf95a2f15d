"""A store of what a teacher generates: shards that can be made in any order, by any machine, and resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from gen.config import checkpoints
from gen.config.spec import Json
from gen.data.lib.shards import ShardPlan, write_missing
from gen.data.pairs import check_shard, shard_name
from gen.training.distributed import is_main

__all__ = ["fill_shards", "parent_hash"]


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
        about: what all shards say of the store, and shards which are there must say.
        generate: generate(first, count) returns the columns of some rows.
        plan: how it is written.

    Raises:
        UserError: if a shard of another store is there.
    """
    store = {**about, "n": n, "shards": plan.count(n), "size": plan.size}

    def is_there(i: int) -> bool:
        shard = folder / shard_name(i)
        if shard.exists():
            checkpoints.read_tensors(shard, f"{name}.safetensors", check_shard(shard, store, i))
        return shard.exists()

    def write(i: int, rows: range) -> None:
        columns = generate(rows.start, len(rows))
        manifest = {"store": store, "index": i, "rows": len(next(iter(columns.values())))}
        checkpoints.write(folder / shard_name(i), {f"{name}.safetensors": columns}, manifest)

    write_missing(folder, name, n, plan, is_there, write, locked=is_main())


def parent_hash(folder: Path | None) -> str | None:
    """Return the sha256 of a teacher's checkpoint, by which a store knows its teacher; None without a folder.

    Args:
        folder: of the teacher's run, or None.
    """
    return checkpoints.manifest_of(folder)["sha256"] if folder else None
