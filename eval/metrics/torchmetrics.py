"""Any image metric of the package torchmetrics."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from gen.config.errors import MissingDependency, UserError
from gen.config.fields import check_fields
from gen.config.spec import Json
from gen.eval.metrics import Column, Estimate
from gen.eval.metrics.lib.pairs import check_pairs

__all__ = ["TorchMetrics"]

IMAGES = 64  # of an update


@dataclass(frozen=True)
class TorchMetrics:
    """A class of torchmetrics, fed with uint8 images, or with images in [0, 1] where it compares pairs.

    Which it needs is read off its `update`: (preds, target) takes pairs, (imgs, real) both sets, (imgs) the samples;
    other metrics are refused.
    Random numbers that it draws start from `seed`, whatever was drawn before, and leave no trace. The first of several
    results is the value; torchmetrics has no standard errors. {"name": "torchmetrics", "metric":
    "torchmetrics.image.UniversalImageQualityIndex"}.

    Attributes:
        metric: the class, from "torchmetrics." on.
        options: of its construction.
        seed: of the random numbers that it draws.
    """

    default: ClassVar = False

    metric: str
    options: Json = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, seed="[0, inf)")
        if not self.metric.startswith("torchmetrics."):
            raise UserError(f"torchmetrics: metric {self.metric!r}; allowed: a class torchmetrics.MODULE.CLASS")

    def __hash__(self) -> int:
        return hash((self.metric, repr(self.options), self.seed))

    @cached_property
    def _class(self) -> Any:
        module, _, name = self.metric.rpartition(".")
        try:
            owner = getattr(importlib.import_module(module), name, None)
        except (ImportError, RuntimeError) as error:  # a torchvision of another torch raises RuntimeError
            raise MissingDependency(f"{self.metric} cannot be imported: {' '.join(str(error).split())}") from error
        if not inspect.isclass(owner) or not 1 <= len(arguments(owner)) <= 2:
            raise UserError(f"torchmetrics: {self.metric} is no class whose update takes images and nothing else")
        return owner

    @property
    def columns(self) -> tuple[Column, ...]:
        """The column of its value, named after the class."""
        name = self.metric.rpartition(".")[2]
        better = getattr(self._class, "higher_is_better", None)
        return (
            Column(f"torchmetrics_{name.lower()}", name, better, note=f"{self.metric} of torchmetrics", priority=1),
        )

    @property
    def needs(self) -> str:
        """Pairs, or both sets of images."""
        return "images" if arguments(self._class)[1:] in ([], ["real"]) else "pairs"

    def __call__(self, samples: Tensor, reference: Tensor) -> Estimate:
        """Compute it from uint8 images [N, C, H, W], and those of the reference, or that samples should be."""
        if self.needs == "pairs":
            check_pairs(self.columns[0].key, samples, reference)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            try:
                metric = self._class(**self.options)
                for part, *others in self._updates(samples, reference):
                    metric.update(part, *others)
                result = metric.compute()
            except (TypeError, ValueError, RuntimeError) as error:  # its own refusals
                raise UserError(f"{self.metric}: {' '.join(str(error).split())}") from error
        return Estimate(float(result[0] if isinstance(result, (tuple, list)) else result), None, len(samples))

    def _updates(self, samples: Tensor, reference: Tensor) -> Iterator[tuple[Any, ...]]:
        """Iterate over the arguments of each update."""
        two_sets = arguments(self._class)[1:] == ["real"]
        if self.needs == "pairs":
            pairs = zip(samples.split(IMAGES), reference.split(IMAGES), strict=True)
            yield from ((a.float() / 255, b.float() / 255) for a, b in pairs)
            return
        yield from ((part, False) if two_sets else (part,) for part in samples.split(IMAGES))
        if two_sets:
            yield from ((part, True) for part in reference.split(IMAGES))


def arguments(owner: Any) -> list[str]:
    """Return the names of the arguments of a class's update; none if it has no update.

    Args:
        owner: the class.
    """
    return list(inspect.signature(owner.update).parameters)[1:] if hasattr(owner, "update") else []
