"""A plan of gen bench: which cases, in which order, so that the most telling ones are measured first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from gen.config.errors import UserError
from gen.config.reading import read_toml
from gen.config.spec import convert, find
from gen.eval.bench import BenchContext, Case

__all__ = ["BenchStep", "read_plan"]


@dataclass(frozen=True)
class BenchStep:
    """Some cases of one part.

    Attributes:
        part: of gen bench.
        only: text that the names of its cases contain; None for all of them.
        without: ways to compute whose names contain one of these texts are left out.
    """

    part: str
    only: str | None = None
    without: tuple[str, ...] = ()

    def cases(self, context: BenchContext) -> Iterator[Case]:
        """Yield the cases.

        Args:
            context: device, dtype and size.
        """
        for case in find(self.part, "cli.benches")(context):
            if self.only is None or self.only in case.name:
                calls = [call for call in case.calls if not any(text in call.name for text in self.without)]
                yield replace(case, calls=calls)


def read_plan(path: Path, quick: bool) -> list[BenchStep]:
    """Return the steps of a TOML file, its tables [[step]].

    Args:
        path: the file.
        quick: take every tiny case of the parts, which have other names.

    Raises:
        UserError: if the file is no plan.
    """
    content = read_toml(path)
    if set(content) != {"step"}:
        raise UserError(
            f"{path}: a plan has tables [[step]] and nothing else, it has {', '.join(content) or 'nothing'}"
        )
    steps = convert(content["step"], tuple[BenchStep, ...], str(path))
    return list(dict.fromkeys(replace(step, only=None) if quick else step for step in steps))
