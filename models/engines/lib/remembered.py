"""The engine that was the fastest for a network, a batch and a machine, remembered in the user's cache folder.

A file per choice, written whole; one that is damaged or of another format counts as not there. The folder
gen/engines of XDG_CACHE_HOME, or else of ~/.cache, may be removed at any time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

import gen
from gen.config.machine import cache_folder, processor
from gen.config.spec import Json
from gen.config.writing import write_json

__all__ = ["RememberedChoice"]


class RememberedChoice:
    """The choice among engines for a network's batches of one size.

    Args:
        net: the network as it is.
        x: such a batch.
        rows: the number of rows that it stands for.
        engines: what is chosen from, in words.
    """

    def __init__(self, net: nn.Module, x: Tensor, rows: int, engines: Iterable[str]):
        shapes = [(name, tuple(weight.shape), str(weight.dtype)) for name, weight in net.named_parameters()]
        about = f"{type(net).__qualname__} {getattr(net, 'spec', None)} {shapes}"
        self.engines = list(engines)
        self.key: Json = {
            "network": hashlib.sha256(about.encode()).hexdigest(),
            "rows": rows,
            "x": [*map(int, x.shape[1:]), str(x.dtype)],
            "engines": self.engines,
            "machine": {**processor(), "threads": torch.get_num_threads()},
            "versions": {"gen": gen.__version__, "torch": torch.__version__},
        }
        name = hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()[:32]
        self.file: Path = cache_folder("engines") / f"{name}.json"

    def read(self) -> str | None:
        """Return the engine; None if none is remembered."""
        try:
            content = json.loads(self.file.read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        known = isinstance(content, dict) and content.get("key") == json.loads(json.dumps(self.key))
        return content["engine"] if known and content.get("engine") in self.engines else None

    def write(self, engine: str, seconds: Mapping[str, float]) -> None:
        """Remember an engine; where the folder cannot be written, nothing is.

        Args:
            engine: the fastest.
            seconds: of one evaluation, by engine.
        """
        with suppress(OSError):
            write_json(self.file, {"key": self.key, "engine": engine, "seconds": dict(seconds)})
