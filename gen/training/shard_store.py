"""A store of what a teacher generates: shards that can be made in any order, by any machine, and resumed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from gen.config import checkpoints
from gen.config.spec import Json
from gen.data.lib.shards import ShardPlan, own_part, write_missing
from gen.data.pairs import check_shard, shard_name
from gen.training.distributed import is_main, processes

__all__ = ["fill_shards", "parent_hash"]

PAUSE = 0.2  # seconds between two looks for the shards of other processes


def fill_shards(
    folder: Path,
    name: str,
    n: int,
    about: Json,
    generate: Callable[[int, int], dict[str, Tensor]],
    plan: ShardPlan,
) -> None:
    """Write every shard of n numbered rows that is not there yet; a launcher's processes share them out.

    Each of them returns when all shards of their part are there.

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

    own = replace(plan, part=own_part(plan.part, processes()), quiet=plan.quiet or not is_main())
    write_missing(folder, name, n, own, is_there, write)
    k, of = plan.part
    while not all((folder / shard_name(i)).exists() for i in range(k - 1, plan.count(n), of)):
        time.sleep(PAUSE)  # the launcher ends all processes if one fails


def parent_hash(folder: Path | None) -> str | None:
    """Return the sha256 of a teacher's checkpoint, by which a store knows its teacher; None without a folder.

    Args:
        folder: of the teacher's run, or None.
    """
    return checkpoints.manifest_of(folder)["sha256"] if folder else None
