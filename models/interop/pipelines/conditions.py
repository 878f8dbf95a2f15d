"""Conditions of many prompts: each is encoded once, in batches, and kept in memory or in a folder."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.spec import Json, digest
from gen.config.tensor_files import Damaged, read_file, write_file
from gen.diffusion.denoiser import Cond

__all__ = ["PromptConditions", "joined"]

KEPT = 2**30  # bytes of conditions that stay in memory
SUFFIX = ".safetensors"


@dataclass(frozen=True, eq=False)
class PromptConditions:
    """Prompts -> their conditions, tensors [n, ...] on the CPU; samples are asked for by prompts, and not without.

    Attributes:
        encode: prompts -> tensors [B, ...]; row i depends on prompt i alone.
        batch: prompts that are encoded at a time.
        store: folder that conditions are kept in, in half precision where they were float32, so that no other process
            encodes a prompt again; None for memory alone.
        prompts: those of samples for which none are given: sample i has prompt i mod their number.
        about: what decides a condition beside its prompt, so that a folder may hold those of several pipelines.
    """

    encode: Callable[[list[str]], Cond]
    batch: int = 16
    store: Path | None = None
    prompts: tuple[str, ...] = ()
    about: Json = field(default_factory=dict)
    _kept: dict[str, Cond] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, prompts: Sequence[str]) -> Cond:
        """Return tensors [n, ...], a row for each prompt; texts are padded to the longest."""
        distinct = list(dict.fromkeys(prompts))
        known = {prompt: cond for prompt in distinct if (cond := self._known(prompt)) is not None}
        new = [prompt for prompt in distinct if prompt not in known]
        for i in range(0, len(new), self.batch):
            some = new[i : i + self.batch]
            rows = self.encode(some)
            for row, prompt in enumerate(some):
                known[prompt] = self._keep(prompt, {key: value[row : row + 1].cpu() for key, value in rows.items()})
        index = torch.tensor([distinct.index(prompt) for prompt in prompts])
        whole = joined([known[prompt] for prompt in distinct])
        return {key: value[index] for key, value in whole.items()}

    def _known(self, prompt: str) -> Cond | None:
        if prompt in self._kept or self.store is None:
            return self._kept.get(prompt)
        for file in self.store.glob(f"{self._key(prompt)}-*{SUFFIX}"):
            try:
                return _widened(read_file(file, file.name.removesuffix(SUFFIX).rpartition("-")[2]))
            except (Damaged, OSError):
                file.unlink(missing_ok=True)  # it is encoded again
        return None

    def _keep(self, prompt: str, cond: Cond) -> Cond:
        """Keep the condition of a prompt, and return it as it is kept."""
        if self.store is not None:
            self.store.mkdir(parents=True, exist_ok=True)
            halved = _halved(cond)
            cond = _widened(halved)
            handle, partial = tempfile.mkstemp(dir=self.store, prefix=".partial-")
            os.close(handle)
            sha256 = write_file(Path(partial), halved)
            Path(partial).rename(self.store / f"{self._key(prompt)}-{sha256}{SUFFIX}")
        while self._kept and (len(self._kept) + 1) * _bytes(cond) > KEPT:
            self._kept.pop(next(iter(self._kept)))
        self._kept[prompt] = cond
        return cond

    def _key(self, prompt: str) -> str:
        return hashlib.sha256(f"{digest(self.about)}\n{prompt}".encode()).hexdigest()[:32]


def _bytes(cond: Cond) -> int:
    return sum(value.nbytes for value in cond.values())


def _halved(cond: Cond) -> dict[str, Tensor]:
    """Return tensors as they are stored, under names that say their dtype: float32 in float16 where that holds them."""
    stored = dict[str, Tensor]()
    for key, value in cond.items():
        half = value.half() if value.dtype == torch.float32 else value
        fits = bool(half.isfinite().all()) if half.is_floating_point() else True
        stored[f"{key}@{str(value.dtype).removeprefix('torch.')}"] = (half if fits else value).contiguous()
    return stored


def _widened(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return stored tensors under their own names, in their own dtypes."""
    pairs = ((name.rpartition("@"), value) for name, value in stored.items())
    return {key: value.to(getattr(torch, dtype)) for (key, _, dtype), value in pairs}


def joined(conds: Sequence[Cond]) -> dict[str, Tensor]:
    """Return conditions one below the other; texts of unequal length are padded with zeros, and so are their masks.

    Args:
        conds: tensors [n, ...] of the same keys.

    Raises:
        UserError: for other keys, and for shapes that differ in more than their length.
    """
    if any(cond.keys() != conds[0].keys() for cond in conds):
        raise UserError("the conditions of these prompts have different arguments: encode them by one call")
    whole = dict[str, Tensor]()
    for key in conds[0]:
        rows = [cond[key] for cond in conds]
        if len({row.shape[1:] for row in rows}) > 1:
            if len({(row.ndim, row.shape[2:]) for row in rows}) > 1:
                raise UserError(f"{key} of these prompts has the shapes {sorted({tuple(row.shape) for row in rows})}")
            longest = max(row.shape[1] for row in rows)
            rows = [
                torch.cat([row, row.new_zeros(len(row), longest - row.shape[1], *row.shape[2:])], 1) for row in rows
            ]
        whole[key] = torch.cat(rows)
    return whole
