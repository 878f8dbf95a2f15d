"""Leaderboards as data: the records that share a table, their order, the ties among them, and what others claim."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from gen.config.errors import UserError, nearest
from gen.eval.arena.board import Board, Standing
from gen.eval.arena.votes import VoteList
from gen.eval.estimate import Estimate
from gen.eval.published import COLUMN_ORDER, Published, known_columns
from gen.eval.record import UNKNOWN, Measurement, Record
from gen.eval.sampler_text import sampler_text
from gen.eval.sources import Entry

__all__ = [
    "Claims",
    "Group",
    "Preferences",
    "Ranking",
    "Row",
    "cell",
    "claimed",
    "equal_time_rival",
    "estimate_in",
    "groups",
    "options",
    "origin",
    "pareto_front",
    "ranking",
]


@dataclass(frozen=True)
class Row:
    """A ranked record.

    Attributes:
        record: what was measured.
        rank: from 1.
        ties: ranks of the rows whose ranking metric is less than two combined standard errors away.
    """

    record: Record
    rank: int
    ties: tuple[int, ...] = ()

    def tied(self, mark: str = "") -> str:
        """Return the ties in words, "1, 3", with the mark before each; four and more in a row are "5–9"."""
        words = []
        for _, run in groupby(enumerate(self.ties), lambda pair: pair[1] - pair[0]):
            ranks = [f"{mark}{rank}" for _, rank in run]
            words += [f"{ranks[0]}–{ranks[-1]}"] if len(ranks) > 3 else ranks
        return ", ".join(words)


@dataclass(frozen=True)
class Group:
    """Comparable rows, best first.

    Attributes:
        columns: one measurement for each column, in the order of the records.
        ranked_by: the column that ranks the rows; None if no column has a direction.
        rows: the ranked records.
        published: rows that others claim, in the order in which they were given; they rank nothing.
    """

    columns: tuple[Measurement, ...]
    ranked_by: Measurement | None
    rows: tuple[Row, ...]
    published: tuple[Published, ...] = ()

    @property
    def first(self) -> Record:
        return self.rows[0].record

    @property
    def cached(self) -> bool:
        """Whether any row used a feature cache, and it was measured."""
        return any(row.record.cache for row in self.rows)

    @property
    def size(self) -> int:
        return len(self.rows)

    @property
    def has_floor(self) -> bool:
        return any(m.floor for m in self.columns)

    @property
    def fastest(self) -> float | None:
        """The best speed; None without a choice."""
        speeds = [row.record.speed.images_per_second for row in self.rows if row.record.speed]
        return max(speeds) if len(speeds) > 1 else None

    def floor(self, column: Measurement) -> Estimate | None:
        """Return the score of real images in a column."""
        return next((m.floor for row in self.rows if (m := cell(row.record, column)) and m.floor), None)

    def headings(self) -> list[str]:
        """Return the heading of every column; with the options of the metric where two columns have the same."""
        plain = [m.column.heading for m in self.columns]
        return [h if plain.count(h) == 1 else f"{h} {options(m)}" for h, m in zip(plain, self.columns, strict=True)]

    def best(self, column: Measurement) -> float | None:
        """Return the best value of a column; None without a direction, or a choice."""
        values = [e.value for row in self.rows if (e := estimate_in(row.record, column))]
        if column.column.higher_is_better is None or len(values) < 2:
            return None
        return (max if column.column.higher_is_better else min)(values)

    def common(self, name: str) -> object:
        """Return an attribute of all records; None if they differ."""
        values = {getattr(row.record, name) for row in self.rows}
        return values.pop() if len(values) == 1 else None

    def known(self, name: str) -> object:
        """Return an attribute of all records in which it is known, UNKNOWN if it is in none; None if they differ."""
        values = {getattr(row.record, name) for row in self.rows} - {None, UNKNOWN}
        return values.pop() if len(values) == 1 else None if values else self.common(name)


@dataclass(frozen=True)
class Claims:
    """Published rows of a protocol that nothing here was measured by.

    Attributes:
        protocol: as the sources claim it.
        columns: keys, in the protocol's order.
        rows: in the order in which they were given.
    """

    protocol: str
    columns: tuple[str, ...]
    rows: tuple[Published, ...]


@dataclass(frozen=True)
class Preferences:
    """The ranking that an arena's votes make.

    Attributes:
        name: of the arena.
        votes: their number.
        standings: best first.
    """

    name: str
    votes: int
    standings: tuple[Standing, ...]


@dataclass(frozen=True)
class Ranking:
    """All tables of a leaderboard.

    Attributes:
        groups: of measured rows.
        claims: of published rows alone.
        preferences: of arenas.
    """

    groups: tuple[Group, ...] = ()
    claims: tuple[Claims, ...] = ()
    preferences: tuple[Preferences, ...] = ()

    def heading(self, key: str) -> str:
        """Return the heading of a published column: that of the measured or of gen's with this key, else the key."""
        known = known_columns() | {m.column.key: m.column for group in self.groups for m in group.columns}
        return known[key].heading if key in known else key

    def beside(self, row: Published, columns: Sequence[Measurement] = ()) -> str:
        """Return the published numbers that have no column among these in words: "IS 9.84, rFID 0.6".

        Args:
            row: what was published.
            columns: of the table that it stands in.
        """
        keys = {m.column.key for m in columns}
        return ", ".join(f"{self.heading(key)} {value:g}" for key, value in row.numbers.items() if key not in keys)


def cell(record: Record, column: Measurement) -> Measurement | None:
    """Return a record's measurement in a column.

    Args:
        record: a row.
        column: any measurement of that column.
    """
    return next((m for m in record.metrics if m.same_column(column)), None)


def estimate_in(record: Record, column: Measurement | None) -> Estimate | None:
    """Return a record's number in a column.

    Args:
        record: a row.
        column: any measurement of that column.
    """
    found = column and cell(record, column)
    return found.estimate if found else None


def origin(record: Record) -> str:
    """Say in a few words how samples came about: by which sampler, or from which files.

    Args:
        record: a row.
    """
    given = record.samples
    if record.sampler or given is None:
        return sampler_text(record.brief or record.sampler)
    words = f"{given.kind} of {given.format}" if given.format else given.kind
    return words if given.available is None else f"{words}, {record.n:,} of {given.available:,}"


def claimed(row: Published, column: Measurement) -> Estimate | None:
    """Return a published number in a measured column.

    Args:
        row: what was published.
        column: any measurement of that column.
    """
    value = row.numbers.get(column.column.key)
    return None if value is None else Estimate(value, None, 0)


def options(measurement: Measurement) -> str:
    """Return the options of a metric in words: "nearest=3, groups=20".

    Args:
        measurement: a number of it.
    """
    return ", ".join(f"{key}={value}" for key, value in measurement.metric.items() if key != "name")


def ranking(entries: Sequence[Entry], rank_by: str | None = None) -> Ranking:
    """Return the tables of everything that a leaderboard shows.

    A published row stands beside the records of the table that it names, or else of every table whose records follow
    its protocol; the others make tables of their own, one for each protocol.

    Args:
        entries: as gen.eval.sources.collect_all returns them.
        rank_by: as of `groups`.

    Raises:
        UserError: as of `groups`; for a published row that names a table which is not there.
    """
    measured = groups([entry for entry in entries if isinstance(entry, Record)], rank_by)
    keys, alone = {group.first.comparability for group in measured}, dict[str, list[Published]]()
    beside: dict[str, list[Published]] = {key: [] for key in keys}
    for row in (entry for entry in entries if isinstance(entry, Published)):
        if row.table and row.table not in keys:
            raise UserError(f"{row.label}: there is no table {row.table!r}. {nearest(row.table, keys)}")
        followed = {g.first.comparability for g in measured if row.protocol and g.common("protocol") == row.protocol}
        homes = {row.table} if row.table else followed
        for home in homes:
            beside[home].append(row)
        if not homes:
            alone.setdefault(row.claim, []).append(row)
    return Ranking(
        groups=tuple(replace(group, published=tuple(beside[group.first.comparability])) for group in measured),
        claims=tuple(_claims(protocol, rows) for protocol, rows in alone.items()),
        preferences=tuple(_preferences(entry) for entry in entries if isinstance(entry, VoteList)),
    )


def groups(records: Sequence[Record], rank_by: str | None = None) -> list[Group]:
    """Group records by comparability, in the order in which each group first appears, and rank them inside it.

    Records of the same samples share a row, unless they have different numbers of the same thing.

    Columns stand in the order of the protocol that all records of a table followed, else in that of the records.

    Args:
        records: to be ranked.
        rank_by: key of a column; by default the first with a direction, of those that all rows have if there is one.

    Raises:
        UserError: for a key that no record has, or that has no direction.
    """
    keys = {m.column.key: m.column.higher_is_better for r in records for m in r.metrics}
    if rank_by is not None and keys.get(rank_by) is None:
        able = [key for key, direction in keys.items() if direction is not None]
        raise UserError(f"no records can be ranked by {rank_by!r}. {nearest(rank_by, able)}")
    by_key: dict[str, list[Record]] = {}
    for record in records:
        _add(by_key.setdefault(record.comparability, []), record)
    return [_ranked(group, rank_by) for group in by_key.values()]


def pareto_front(group: Group) -> tuple[Row, ...]:
    """Return the rows than which none is both better by the ranking metric and as fast, best first; errors are ignored.

    Args:
        group: rows, best first.
    """
    front: list[Row] = []
    fastest = 0.0
    for row in group.rows:
        if row.record.speed is not None and row.record.speed.images_per_second > fastest:
            front.append(row)
            fastest = row.record.speed.images_per_second
    return tuple(front)


def equal_time_rival(group: Group, row: Row) -> Row | None:
    """Return the uncached row of the same run and sampler with as many steps as take as long as a cached one.

    Args:
        group: rows to look in.
        row: the cached one.
    """
    steps = row.record.cache and row.record.cache.equal_steps

    def kind(record: Record, **changes: object) -> tuple[str, dict[str, object]]:
        return record.run, {"cache": None, **record.sampler, **changes}

    wanted = kind(row.record, cache=None, steps=steps)
    return next((other for other in group.rows if steps and kind(other.record) == wanted), None)


def _add(records: list[Record], record: Record) -> None:
    """Add a record, or what it has more to a record of the same samples whose numbers are no others."""
    for i, other in enumerate(records):
        known = {m.column.key: m for m in other.metrics}
        if other.identity == record.identity and all(known.get(m.column.key, m) == m for m in record.metrics):
            new = tuple(m for m in record.metrics if m.column.key not in known)
            classes = tuple(table for table in record.per_class if table not in other.per_class)
            beside = other.neighbours or record.neighbours
            metrics, per_class = other.metrics + new, other.per_class + classes
            records[i] = replace(other, metrics=metrics, per_class=per_class, neighbours=beside)
            return
    records.append(record)


def _in_order(columns: list[Measurement], records: Sequence[Record]) -> list[Measurement]:
    """Return columns in the order of the protocol that all records followed; others come after, in their own order."""
    followed = {record.protocol for record in records}
    order = COLUMN_ORDER.get(followed.pop() or "", ()) if len(followed) == 1 else ()
    return sorted(columns, key=lambda c: order.index(c.column.key) if c.column.key in order else len(order))


def _claims(protocol: str, rows: Sequence[Published]) -> Claims:
    keys = dict.fromkeys(key for row in rows for key in row.numbers)
    order = COLUMN_ORDER.get(protocol, ())
    return Claims(
        protocol, tuple(sorted(keys, key=lambda k: order.index(k) if k in order else len(order))), tuple(rows)
    )


def _preferences(votes: VoteList) -> Preferences:
    return Preferences(votes.name, len(votes.votes), tuple(Board.of(votes.votes).standings()))


def _ranked(records: Sequence[Record], rank_by: str | None) -> Group:
    columns: list[Measurement] = []
    for measurement in (m for record in records for m in record.metrics):
        if not any(measurement.same_column(c) for c in columns):
            columns.append(measurement)
    columns = _in_order(columns, records)
    directed = [c for c in columns if c.column.higher_is_better is not None and rank_by in (None, c.column.key)]
    shared = [c for c in directed if all(cell(record, c) for record in records)]
    ranked_by = next(iter(shared or directed), None)

    sign = -1 if ranked_by and ranked_by.column.higher_is_better else 1

    def key(record: Record) -> tuple[bool, float]:
        found = estimate_in(record, ranked_by)
        return found is None, sign * found.value if found else 0.0

    order = sorted(records, key=key)
    estimates = [estimate_in(record, ranked_by) for record in order]
    rows = []
    for i, (record, mine) in enumerate(zip(order, estimates, strict=True)):
        tied = [j + 1 for j, other in enumerate(estimates) if j != i and mine and other and not mine.differs(other)]
        rows.append(Row(record, i + 1, tuple(tied)))
    return Group(tuple(columns), ranked_by, tuple(rows))
