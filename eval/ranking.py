"""Which records may stand in one table, in what order, and which of them cannot be told apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gen.eval.estimate import Estimate
from gen.eval.record import Record

__all__ = ["Group", "Row", "groups"]


@dataclass(frozen=True)
class Row:
    """A record at its place: rank from 1, and the ranks of the rows whose FID cannot be told from its own."""

    record: Record
    rank: int
    ties: tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """Comparable rows, best first."""

    key: str
    rows: tuple[Row, ...]


def groups(records: Sequence[Record]) -> list[Group]:
    """Records by comparability, in the order in which each group first appears; inside it by FID."""
    keys = list(dict.fromkeys(record["comparability"] for record in records))
    return [Group(key, _ranked([r for r in records if r["comparability"] == key])) for key in keys]


def _ranked(records: Sequence[Record]) -> tuple[Row, ...]:
    order = sorted(records, key=lambda r: float(r["metrics"]["fid"]["value"]))
    fids = [Estimate(r["metrics"]["fid"]["value"], r["metrics"]["fid"]["se"], r["n"]) for r in order]
    return tuple(
        Row(record, i + 1, tuple(j + 1 for j, other in enumerate(fids) if j != i and not fids[i].differs(other)))
        for i, record in enumerate(order)
    )
