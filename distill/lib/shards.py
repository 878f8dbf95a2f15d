"""A store of what a teacher generates: shards that can be made in any order, by any machine, and resumed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.spec import Json
from gen.config.writing import Lock, sweep
from gen.data.pairs import check_shard, shard_name
from gen.training.distributed import is_main
from gen.training.log import ProgressBar

__all__ = ["WHOLE_STORE", "ShardPlan", "fill_shards", "parent_hash"]


@dataclass(frozen=True)
class ShardPlan:
    """Options of writing a store.

    Attributes:
        size: rows of a shard, at least 1.
        part: (k, m), k from 1, writes every m-th shard from the k-th on, for m machines that share the folder.
        quiet: whether no progress is shown.
    """

    size: int = 4096
    part: tuple[int, int] = (1, 1)
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
        about: what all shards say of the store, and shards which are there must say.
        generate: generate(first, count) returns the columns of some rows.
        plan: how it is written.

    Raises:
        UserError: if a shard of another store is there.
    """
    k, of = plan.part
    if n < 1 or plan.size < 1 or not 1 <= k <= of:
        raise UserError(f"{name}: n = {n}, shard = {plan.size}, part = {k} of {of}; all positive, part 1 to {of}")
    with Lock(folder / f".lock-{k}-of-{of}", folder) if is_main() else nullcontext():
        sweep(folder)
        _fill(folder, name, n, about, generate, plan)


def _fill(
    folder: Path,
    name: str,
    n: int,
    about: Json,
    generate: Callable[[int, int], dict[str, Tensor]],
    plan: ShardPlan,
) -> None:
    k, of = plan.part
    shards = -(-n // plan.size)
    store = {**about, "n": n, "shards": shards, "size": plan.size}
    progress = ProgressBar(name, n, quiet=plan.quiet)
    for i in range(k - 1, shards, of):
        shard, count = folder / shard_name(i), min(plan.size, n - i * plan.size)
        if shard.exists():
            checkpoints.read_tensors(shard, f"{name}.safetensors", check_shard(shard, store, i))
        else:
            columns = generate(i * plan.size, count)
            rows = len(next(iter(columns.values())))
            checkpoints.write(shard, {f"{name}.safetensors": columns}, {"store": store, "index": i, "rows": rows})
        progress.advance(count)
    progress.close()


def parent_hash(folder: Path | None) -> str | None:
    """Return the sha256 of a teacher's checkpoint, by which a store knows its teacher; None without a folder.

    Args:
        folder: of the teacher's run, or None.
    """
    return checkpoints.manifest_of(folder)["sha256"] if folder else None
