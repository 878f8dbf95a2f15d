"""Shards: numbered rows in files of equally many, which any processes write in any order, and which outlive a kill."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gen.config.errors import UserError
from gen.config.writing import Lock, sweep
from gen.training.log import ProgressBar
from gen.training.signals import resumable

__all__ = ["WHOLE_STORE", "ShardPlan", "own_part", "write_missing"]


@dataclass(frozen=True)
class ShardPlan:
    """Options of writing shards.

    Attributes:
        size: rows of a shard, at least 1.
        part: (k, m), k from 1, writes every m-th shard from the k-th on, for m machines that share the folder.
        quiet: whether no progress is shown.
    """

    size: int = 4096
    part: tuple[int, int] = (1, 1)
    quiet: bool = False

    def __post_init__(self) -> None:
        k, m = self.part
        if self.size < 1 or not 1 <= k <= m:
            raise UserError(f"shard = {self.size}, part = {k} of {m}; a shard has at least 1 row, parts count from 1")

    def count(self, n: int) -> int:
        """Return the number of shards of n rows.

        Args:
            n: number of rows.
        """
        return -(-n // self.size)


WHOLE_STORE = ShardPlan()


def own_part(part: tuple[int, int], process: tuple[int, int]) -> tuple[int, int]:
    """Return the part of one of the processes that a launcher started to write a part together.

    Args:
        part: (k, m), k from 1, of all these processes.
        process: rank, and the number of processes.
    """
    (k, m), (rank, world) = part, process
    return (k - 1) * world + rank + 1, m * world


def write_missing(
    folder: Path,
    name: str,
    n: int,
    plan: ShardPlan,
    is_there: Callable[[int], bool],
    write: Callable[[int, range], None],
) -> None:
    """Write every shard of a part that is not there yet.

    Args:
        folder: of the shards.
        name: of the rows, for messages and the progress.
        n: number of rows in all shards.
        plan: how it is written.
        is_there: is_there(i) tells whether shard i is whole; UserError if it is another store's.
        write: write(i, rows) writes shard i, all of it or nothing.

    Raises:
        UserError: for no rows, and while another process writes the same part.
        Interrupted: after SIGTERM or Ctrl-C; shards that are whole stay.
    """
    k, of = plan.part
    if n < 1:
        raise UserError(f"{name}: n = {n}; it is positive")
    kept = resumable(f"{name}: stopped; the shards that are whole stay in {folder}, run this again to go on")
    with Lock(folder / f".lock-{k}-of-{of}", folder), kept as check_stop:
        sweep(folder)
        progress = ProgressBar(name, n, quiet=plan.quiet)
        for i in range(k - 1, plan.count(n), of):
            rows = range(i * plan.size, min((i + 1) * plan.size, n))
            if not is_there(i):
                write(i, rows)
            progress.advance(len(rows))
            check_stop()
        progress.close()
