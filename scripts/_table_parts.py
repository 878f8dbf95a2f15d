"""Parts of the tables of scripts/tables.py: results, lines, estimates."""

import json
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def load(name: str):
    """Read one file of results."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def markdown(heads: list[str], rows: list[list[str]]) -> Iterator[str]:
    """Yield the lines of a table."""
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)


def source(name: str, about: str) -> Iterator[str]:
    """Yield the line under a table that says where its numbers come from."""
    yield ""
    yield f"Source: [{name}.json](../benchmarks/results/{name}.json), {about}."


def estimate(value: dict, digits: int = 2) -> str:
    """Format a mean with its standard error."""
    return f"{value['value']:.{digits}f} ± {value['se']:.{digits}f}"


def mean(value: dict, digits: int) -> str:
    """Format a mean without its standard error."""
    return f"{value['value']:.{digits}f}"
