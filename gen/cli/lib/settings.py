"""Settings as one would type them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gen.config.spec import Json

__all__ = ["flatten"]


def flatten(settings: object) -> list[tuple[str, str]]:
    """Return dotted keys and their values as one would type them.

    Args:
        settings: a dataclass of which there is one kind, such as a Run.
    """
    from gen.config.spec import spec_of

    def flat(spec: Json, prefix: str) -> list[tuple[str, str]]:
        rows = []
        for key, value in spec.items():
            if isinstance(value, dict) and "name" in value:
                rows.append((prefix + key, value["name"]))
                rows += flat({k: v for k, v in value.items() if k != "name"}, f"{prefix}{key}.")
            else:
                rows.append((prefix + key, value if isinstance(value, str) else json.dumps(value)))
        return rows

    return flat(spec_of(settings, named=False), "")
