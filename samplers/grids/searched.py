"""Times found by a search."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.formats import NEWEST, check_format
from gen.config.reading import read_json
from gen.config.spec import build, spec_of
from gen.config.trust import names_from
from gen.diffusion.path import NoisePath
from gen.samplers.grids.given import checked

__all__ = ["Searched"]


@dataclass(frozen=True)
class Searched:
    """The times of a JSON file that a search wrote, {"path": {"name": "flow"}, "times": [1.0, ..., 0.0], ...}.

    Times mean noise levels only on the path that they were searched for: on any other the file is refused.

    Attributes:
        file: what `gen search --out` wrote.
    """

    file: str

    def __post_init__(self) -> None:
        check_fields(self)

    def times(self, path: NoisePath, steps: int) -> Tensor:
        content = self.read()
        with names_from(self.file):
            own = build("diffusion.path", content["path"])
        if own != path:
            raise UserError(f"{self.file} holds times for the path {content['path']}, not for {spec_of(path)}")
        return checked(tuple(content["times"]), path, steps, self.file)

    def read(self) -> dict[str, Any]:
        """Return the file's content, checked to have a path and a list of numbers."""
        content = read_json(Path(self.file))
        if isinstance(content, dict) and "format" in content:  # it has none if it was written by hand
            check_format(content, NEWEST["search"], self.file)
        times = content.get("times") if isinstance(content, dict) else None
        if not isinstance(times, list) or not all(type(t) in (int, float) for t in times) or "path" not in content:
            raise UserError(f'{self.file} holds no searched times; it needs {{"path": spec, "times": [...]}}')
        return dict(content)
