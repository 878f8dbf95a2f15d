"""gen: train, distil, sample and rank generative diffusion models.

`import gen` imports nothing else: every public name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gen.config.spec import build as build
    from gen.config.spec import names as names
    from gen.eval.evaluate import evaluate as evaluate
    from gen.eval.leaderboard import leaderboard as leaderboard
    from gen.models.interop.pipelines.live import accelerate as accelerate
    from gen.models.interop.pipelines.prompted import PromptPipeline as PromptPipeline
    from gen.models.interop.pipelines.prompted import load_diffusers as load_diffusers
    from gen.pipeline import Pipeline as Pipeline
    from gen.pipeline import load as load
    from gen.samplers.interop.diffusers_scheduler import as_scheduler as as_scheduler
    from gen.text.gaps import Gap as Gap
    from gen.text.loop import decode as decode
    from gen.training.distillation import distill as distill
    from gen.training.run import Run as Run
    from gen.training.trainer import train as train

__version__ = "0.1.0"

_PUBLIC = {
    "Gap": "gen.text.gaps",
    "Pipeline": "gen.pipeline",
    "PromptPipeline": "gen.models.interop.pipelines.prompted",
    "Run": "gen.training.run",
    "accelerate": "gen.models.interop.pipelines.live",
    "as_scheduler": "gen.samplers.interop.diffusers_scheduler",
    "build": "gen.config.spec",
    "decode": "gen.text.loop",
    "distill": "gen.training.distillation",
    "evaluate": "gen.eval.evaluate",
    "leaderboard": "gen.eval.leaderboard",
    "load": "gen.pipeline",
    "load_diffusers": "gen.models.interop.pipelines.prompted",
    "names": "gen.config.spec",
    "train": "gen.training.trainer",
}

__all__ = sorted([*_PUBLIC, "__version__"])


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'gen' has no attribute {name!r}; it has {', '.join(sorted(_PUBLIC))}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
