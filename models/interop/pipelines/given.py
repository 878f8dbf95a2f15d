"""Arguments that users give: texts, pictures and their files, types of weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gen.config.errors import UserError, shown
from gen.config.images import from_pil
from gen.data.lib.pictures import open_picture, read_picture

__all__ = ["dtype_of", "opened", "picture_files", "pictures_of", "same_draws", "texts_of"]


def picture_files(call: Mapping[str, Any]) -> dict[str, Path]:
    """Return the files of pictures among the arguments of a call, by argument.

    Args:
        call: of a pipeline.
    """
    return {key: Path(v) for key, v in call.items() if key.endswith("image") and isinstance(v, (str, Path))}


def opened(call: Mapping[str, Any]) -> dict[str, Any]:
    """Return the pictures among the arguments of a call that are given by their files.

    Args:
        call: of a pipeline.
    """
    return {key: open_picture(path) for key, path in picture_files(call).items()}


@contextlib.contextmanager
def same_draws(pipe: Any) -> Iterator[None]:
    """Give a pipeline the same random numbers each time, such as those by which it encodes a picture.

    Args:
        pipe: of diffusers.
    """
    device = torch.device(pipe.device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield


def dtype_of(given: torch.dtype | str | None) -> torch.dtype | None:
    """Return the dtype of weights; UserError for what is none.

    Args:
        given: a dtype or its name; None for none.
    """
    found = getattr(torch, given, None) if isinstance(given, str) else given
    if found is not None and not (isinstance(found, torch.dtype) and found.is_floating_point):
        found = None
    if found is None and given is not None:
        raise UserError(f"dtype = {shown(given)}; allowed: float32, bfloat16, float16")
    return found


def pictures_of(name: str, given: Any, channels: int, size: tuple[int, int]) -> Tensor:
    """Return PIL pictures or files of them as a tensor [n, C, H, W] in [-1, 1]; files are scaled and cropped.

    Args:
        name: of the argument, for errors.
        given: one, or a list of them.
        channels: C.
        size: (H, W) of files.
    """
    several = given if isinstance(given, (list, tuple)) and given else [given]
    rows = [
        read_picture(Path(one), (channels, *size)) if isinstance(one, (str, Path)) else from_pil(one, channels)
        for one in several
    ]
    if len({row.shape for row in rows}) > 1:
        raise UserError(f"{name}: the pictures have different sizes: scale them to one")
    return torch.stack(rows)


def texts_of(name: str, given: object) -> list[str]:
    """Return one prompt or a list of them as a list; UserError for anything else.

    Args:
        name: of the argument, for errors.
        given: by the user.
    """
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(one, str) for one in texts):
        raise UserError(f"{name} = {shown(given)}; it must be a text, or a list of texts")
    return list(texts)
