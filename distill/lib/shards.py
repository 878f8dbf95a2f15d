"""A store of what a teacher made: shards that can be made in any order, by any machine, and resumed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from gen.config import checkpoints
from gen.config.errors import UserError
from gen.training.log import Progress

__all__ = ["SHARD", "fill_shards"]

SHARD = 4096


def fill_shards(
    folder: Path,
    what: str,
    n: int,
    about: Mapping[str, Any],
    made: Callable[[int, int], dict[str, Tensor]],
    quiet: bool,
    shard: int = SHARD,
    part: tuple[int, int] = (0, 1),
) -> None:
    """Makes every shard of n numbered things that is not there yet: made(first, count) gives its columns.

    what: the name of the tensors' file, and of the progress. about: what all shards have in common; those that are
    there must have the same, else UserError. part: (k, m) makes every m-th shard from the k-th on.
    """
    k, of = part
    if n < 1 or shard < 1 or not 0 <= k < of:
        raise UserError(f"{what}: n = {n}, shard = {shard}, part = {k} of {of}; all positive, parts count from 0")
    shards = -(-n // shard)
    about = {**about, "n": n, "shards": shards}
    progress = Progress(what, n, quiet=quiet)
    for i in range(k, shards, of):
        place, count = folder / f"shard-{i:05d}", min(shard, n - i * shard)
        if place.exists():
            there = {key: v for key, v in checkpoints.read(place).items() if key not in ("format", "files", "sha256")}
            differs = [key for key in {**there, **about} if there.get(key) != about.get(key)]
            if differs:
                raise UserError(f"{place} holds other {what}: {', '.join(differs)} differ. Choose another folder")
        else:
            checkpoints.write(place, {f"{what}.safetensors": made(i * shard, count)}, about)
        progress.advance(count)
    progress.close()
