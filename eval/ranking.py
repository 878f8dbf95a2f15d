"""Which records may stand in one table, in what order, and which of them cannot be told apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from gen.eval.estimate import Estimate
from gen.eval.record import Record, number

__all__ = ["Group", "Row", "front", "groups", "rival"]


@dataclass(frozen=True)
class Row:
    """A record at its place: rank from 1, and the ranks of the rows whose FID cannot be told from its own."""

    record: Record
    rank: int
    ties: tuple[int, ...]

    def tied(self, mark: str = "") -> str:
        """The ties in words, "1, 3", with the mark before each; four and more in a row are "5–9"."""
        words = []
        for _, run in groupby(enumerate(self.ties), lambda pair: pair[1] - pair[0]):
            ranks = [f"{mark}{rank}" for _, rank in run]
            words += [f"{ranks[0]}–{ranks[-1]}"] if len(ranks) > 3 else ranks
        return ", ".join(words)


@dataclass(frozen=True)
class Group:
    """Comparable rows, best first."""

    key: str
    rows: tuple[Row, ...]

    @property
    def cached(self) -> bool:
        """Whether any row used a feature cache, and it was measured."""
        return any(row.record.get("cache") for row in self.rows)


def groups(records: Sequence[Record]) -> list[Group]:
    """Records by comparability, in the order in which each group first appears; inside it by FID."""
    keys = list(dict.fromkeys(record["comparability"] for record in records))
    return [Group(key, _ranked([r for r in records if r["comparability"] == key])) for key in keys]


def front(group: Group) -> tuple[Row, ...]:
    """The Pareto front: the rows than which none is both better by FID and as fast, best first. It ignores errors."""
    found: list[Row] = []
    fastest = 0.0
    for row in group.rows:
        speed = number(row.record, "speed", "images_per_second")
        if speed is not None and speed > fastest:
            found.append(row)
            fastest = speed
    return tuple(found)


def rival(group: Group, row: Row) -> Row | None:
    """Of the same run and sampler without a cache, the row with as many steps as take as long as this cached one."""
    steps = number(row.record, "cache", "equal_steps")

    def kind(record: Record, **changes: object) -> object:
        return record["run"], {"cache": None, **(record.get("sampler") or {}), **changes}

    wanted = kind(row.record, cache=None, steps=steps)
    return next((other for other in group.rows if steps and kind(other.record) == wanted), None)


def _ranked(records: Sequence[Record]) -> tuple[Row, ...]:
    order = sorted(records, key=lambda r: float(r["metrics"]["fid"]["value"]))
    fids = [Estimate(r["metrics"]["fid"]["value"], r["metrics"]["fid"]["se"], r["n"]) for r in order]
    return tuple(
        Row(record, i + 1, tuple(j + 1 for j, other in enumerate(fids) if j != i and not fids[i].differs(other)))
        for i, record in enumerate(order)
    )
