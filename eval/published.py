"""Published numbers: rows of a leaderboard that somebody claims, and nobody measured here."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field

from gen.config.errors import UserError, nearest, shown
from gen.eval.metrics import Column
from gen.eval.protocols import PROTOCOLS, protocol_of

__all__ = ["COLUMN_ORDER", "Published", "known_columns"]

COLUMN_ORDER = {  # keys of columns in the order in which papers that follow a protocol print them
    "adm-imagenet512": protocol_of("adm-imagenet256").columns,
    "edm-imagenet64": ("fid", "inception_score", "precision", "recall"),
    **{protocol.name: protocol.columns for protocol in PROTOCOLS},
}


@dataclass(frozen=True, kw_only=True)
class Published:
    """A row that was published: shown apart from measured rows, without a rank, and never tied with one.

    Names are checked, so that a misspelt one is no column of its own; what gen does not measure is given as such.

    Attributes:
        label: of the method.
        source: where it was published, in words, or an https:// address.
        values: number of each of gen's columns by its key, "fid"; shares from 0 to 1.
        other_values: numbers of columns that gen does not measure, by the heading that they get, "rFID".
        protocol: how they were measured, as the source claims it: a key of COLUMN_ORDER, such as "adm-imagenet256".
        other_protocol: one that gen does not know, in words.
        table: key of the measured table beside which it stands; by default those whose records follow its protocol.
        about: what else the source says, such as epochs and guidance.
        nfe: network evaluations per sample.
        params: of the network.
    """

    label: str
    source: str
    values: dict[str, float] = field(default_factory=dict)
    other_values: dict[str, float] = field(default_factory=dict)
    protocol: str = ""
    other_protocol: str = ""
    table: str = ""
    about: str = ""
    nfe: float | None = None
    params: int | None = None

    def __post_init__(self) -> None:
        if not self.label or not self.source or not self.numbers:
            raise UserError(f"a published row has a label, a source and values; this one is {shown(self.label)}")
        numbers = [v for v in self.numbers.values() if isinstance(v, (int, float)) and not isinstance(v, bool)]
        if len(numbers) < len(self.numbers) or not all(map(math.isfinite, numbers)):
            raise UserError(f"{self.label}: values {shown(self.numbers)}; allowed: finite numbers")
        if self.protocol and self.other_protocol:
            raise UserError(f"{self.label}: protocol, or other_protocol: one of the two")
        if self.protocol and self.protocol not in COLUMN_ORDER:
            hint = 'One that gen does not know: other_protocol = "in words"'
            raise UserError(
                f"{self.label}: no protocol {self.protocol!r}. {nearest(self.protocol, COLUMN_ORDER)} {hint}"
            )
        known = known_columns() if self.values else {}
        for key, value in self.values.items():
            if key not in known:
                hint = "One that gen does not measure: other_values = {...}, by its heading"
                meant = next((k for k, c in known.items() if c.heading.casefold() == key.casefold()), key.lower())
                raise UserError(f"{self.label}: no column {key!r}. {nearest(meant, known)} {hint}")
            if known[key].percent and not 0 <= value <= 1:
                raise UserError(f"{self.label}: {key} = {value}; allowed: a share, from 0 to 1")
        if twice := self.other_values.keys() & self.values.keys() | self.other_values.keys() & vars(self).keys():
            raise UserError(f"{self.label}: other_values has {', '.join(sorted(twice))}, which has a place of its own")

    @property
    def numbers(self) -> dict[str, float]:
        """All values by the key of their column."""
        return {**self.values, **self.other_values}

    @property
    def claim(self) -> str:
        """The protocol as the source claims it, by name or in words; "" for none."""
        return self.protocol or self.other_protocol


@functools.cache
def known_columns() -> dict[str, Column]:
    """Return the columns of all metrics of gen by key; the first call imports the metrics, and torch with them."""
    from gen.eval.measuring import plain_metrics

    return {column.key: column for metric in plain_metrics() for column in metric.columns}
