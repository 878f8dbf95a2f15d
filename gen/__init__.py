"""gen: train, distil, sample and rank generative diffusion models.

`import gen` imports nothing else: every public name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gen.decode import decode as decode
    from gen.distill._run import distill as distill
    from gen.eval.evaluate import evaluate as evaluate
    from gen.eval.leaderboard import leaderboard as leaderboard
    from gen.pipeline import Pipeline as Pipeline
    from gen.pipeline import load as load
    from gen.run import Run as Run
    from gen.spec import build as build
    from gen.spec import names as names
    from gen.train import train as train

__version__ = "0.1.0"

_PUBLIC = {
    "Pipeline": "gen.pipeline",
    "Run": "gen.run",
    "build": "gen.spec",
    "decode": "gen.decode",
    "distill": "gen.distill._run",
    "evaluate": "gen.eval.evaluate",
    "leaderboard": "gen.eval.leaderboard",
    "load": "gen.pipeline",
    "names": "gen.spec",
    "train": "gen.train",
}

__all__ = sorted([*_PUBLIC, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'gen' has no attribute {name!r}; it has {', '.join(sorted(_PUBLIC))}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


class _CallableModule(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        name = self.__name__.rpartition(".")[2]
        return getattr(importlib.import_module(_PUBLIC[name]), name)(*args, **kwargs)


def callable_module(name: str) -> None:
    """Lets the module gen.train be called as the function gen.train.train, for whose name it stands in `gen`."""
    sys.modules[name].__class__ = _CallableModule


def __dir__() -> list[str]:
    return __all__
