"""Times found by a search."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gen.config.errors import UserError
from gen.config.spec import build, spec_of
from gen.diffusion.path import NoisePath
from gen.samplers.grids.given import checked

__all__ = ["Searched"]


@dataclass(frozen=True)
class Searched:
    """The times of a JSON file that a search wrote, {"path": {"name": "flow"}, "times": [1.0, ..., 0.0], ...}.

    Times mean noise levels only on the path that they were searched for: on any other the file is refused.
    """

    file: str

    def times(self, path: NoisePath, steps: int) -> Tensor:
        found = self.read()
        if build("diffusion.path", found["path"]) != path:
            raise UserError(f"{self.file} holds times for the path {found['path']}, not for {spec_of(path)}")
        return checked(tuple(found["times"]), path, steps, self.file)

    def read(self) -> dict[str, Any]:
        """The file's content, known to have a path and a list of numbers."""
        try:
            found = json.loads(Path(self.file).read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read searched times from {self.file}: {' '.join(str(error).split())}") from error
        times = found.get("times") if isinstance(found, dict) else None
        if not isinstance(times, list) or not all(type(t) in (int, float) for t in times) or "path" not in found:
            raise UserError(f'{self.file} holds no searched times; it needs {{"path": spec, "times": [...]}}')
        return dict(found)
