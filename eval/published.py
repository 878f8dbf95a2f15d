"""Published numbers: rows of a leaderboard that somebody claims, and nobody measured here."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from gen.config.errors import UserError, shown
from gen.eval.protocols import PROTOCOLS, protocol_of

__all__ = ["COLUMN_ORDER", "Published"]

COLUMN_ORDER = {  # keys of columns in the order in which papers that follow a protocol print them
    "adm-imagenet512": protocol_of("adm-imagenet256").columns,
    "edm-imagenet64": ("fid", "inception_score", "precision", "recall"),
    **{protocol.name: protocol.columns for protocol in PROTOCOLS},
}


@dataclass(frozen=True, kw_only=True)
class Published:
    """A row that was published: shown apart from measured rows, without a rank, and never tied with one.

    Attributes:
        label: of the method.
        source: where it was published, in words, or an https:// address.
        values: number of each column by its key, "fid".
        protocol: how they were measured, as the source claims; a name such as "adm-imagenet256" where there is one.
        table: key of the measured table beside which it stands; by default those whose records follow its protocol.
        about: what else the source says, such as epochs and guidance.
        nfe: network evaluations per sample.
        params: of the network.
    """

    label: str
    source: str
    values: dict[str, float] = field(default_factory=dict)
    protocol: str = ""
    table: str = ""
    about: str = ""
    nfe: float | None = None
    params: int | None = None

    def __post_init__(self) -> None:
        if not self.label or not self.source or not self.values:
            raise UserError(f"a published row has a label, a source and values; this one is {shown(self.label)}")
        numbers = [v for v in self.values.values() if isinstance(v, (int, float)) and not isinstance(v, bool)]
        if len(numbers) < len(self.values) or not all(map(math.isfinite, numbers)):
            raise UserError(f"{self.label}: values {shown(self.values)}; allowed: finite numbers")
