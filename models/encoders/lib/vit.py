"""Vision transformers of the package transformers, read from a folder on this machine."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gen.config.errors import MissingDependency, UserError
from gen.config.reading import read_json
from gen.config.spec import Json
from gen.diffusion.alignment import Features

__all__ = ["IMAGENET", "PLAIN", "Norm", "Vit", "config_of", "last_norm", "pretrained", "resample_positions"]

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and standard deviation of pixels in [0, 1]
PLAIN = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)  # pixels stay in [-1, 1]
Norm = Literal["own", "plain", "none"]  # the last norm: with its gain and bias, without them, or left out


def config_of(path: str, *kinds: str) -> Json:
    """Return the config.json of a folder, or its part for images.

    Args:
        path: folder; MissingDependency without a config.json.
        *kinds: allowed model_types; UserError for others.
    """
    file = Path(path) / "config.json"
    if not file.is_file():
        raise MissingDependency(
            f"{path!r} holds no config.json: save a model of type {' or '.join(kinds)} there with save_pretrained"
        )
    config = read_json(file, constants=True)
    if not isinstance(config, dict):
        raise UserError(f"{file} is no config: it holds {type(config).__name__}")
    vision: Json = config.get("vision_config", config)  # where a model has a part for text too
    if vision.get("model_type") not in kinds:
        raise UserError(f"{file} is of type {vision.get('model_type')!r}; allowed here: {', '.join(kinds)}")
    if "hidden_size" not in vision:
        raise UserError(f"{file} says no hidden_size: save the model there with save_pretrained")
    return vision


def pretrained(path: str, owner: str, **changes: object) -> Any:
    """Load a model of transformers from a folder's safetensors.

    Args:
        path: folder; UserError if it cannot be read as such a model.
        owner: name of the model's class; MissingDependency without the package.
        **changes: settings that differ from the folder's config.
    """
    try:
        model = getattr(importlib.import_module("transformers"), owner)
    except (ImportError, AttributeError) as error:
        why = " ".join(str(error).split())
        raise MissingDependency(
            f"{owner} needs transformers: pip install 'gen-diffusion[transformers]' ({why})"
        ) from error
    # PyTorch lists its constructors when a device context is first used. transformers' loader is one, and has replaced
    # PyTorch's linspace by then: from there on torch.device("meta") would miss the real one.
    with torch.device("meta"):
        torch.empty(0)
    logging: Any = importlib.import_module("transformers.utils.logging")

    shows = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        return model.from_pretrained(path, local_files_only=True, use_safetensors=True, **changes)
    except Exception as error:  # of any kind: it depends on which part of the folder is wrong
        raise UserError(f"{path!r} cannot be read as a {owner}: {' '.join(str(error).split())[:300]}") from error
    finally:
        if shows:
            logging.enable_progress_bar()


def last_norm(norm: nn.LayerNorm, kind: Norm) -> nn.Module:
    """Return the last norm of a model, as it is wanted.

    Args:
        norm: the model's own.
        kind: "plain" for each token of mean 0 and variance 1, as the latents of RAE (Zheng et al. 2025).
    """
    if kind == "none":
        return nn.Identity()
    return norm if kind == "own" else nn.LayerNorm(norm.normalized_shape, norm.eps, elementwise_affine=False)


def resample_positions(table: Tensor, grid: int, antialias: bool, front: int = 1) -> Tensor:
    """Resample a table of position embeddings to a grid of another side.

    Bicubic, in one of two ways that differ when it grows too, since torch's cubic has another coefficient in each.

    Args:
        table: [front + side^2, D].
        grid: the new side.
        antialias: True is timm's way, and with it REPA's; False that of most models of transformers.
        front: number of rows that come first and stay, the class token's.

    Returns:
        [front + grid^2, D].
    """
    cls, positions = table[:front], table[front:]
    side = round(len(positions) ** 0.5)
    if side == grid:
        return table
    image = positions.T.reshape(1, -1, side, side).float()
    image = F.interpolate(image, (grid, grid), mode="bicubic", antialias=antialias, align_corners=False)
    return torch.cat([cls, image[0].flatten(1).T.to(table)])


class Vit(nn.Module):
    """Images [B, 3, H, W] in [-1, 1] to Features: pixels normalised, then resized to side x side.

    run: from the model (a copy of this module has its own) and resized images to hidden states [B, before + T, D], of
    which the first is the class token's, if there are any before, and the last T are patches'. resize: "bicubic" or
    "bilinear".
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        run: Callable[[Any, Tensor], Tensor],
        side: int,
        before: int,
        statistics: Sequence[Any],
        resize: str = "bicubic",
    ):
        super().__init__()
        self.model, self.run, self.side, self.before, self.resize = model, run, side, before, resize
        mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in statistics)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Features:
        if images.ndim != 4 or images.shape[1] != 3:
            raise UserError(f"this encoder takes images [B, 3, H, W], this is {list(images.shape)}")
        x = ((images.to(self.mean.dtype) + 1) / 2 - self.mean) / self.std
        if x.shape[2:] != (self.side, self.side):
            x = F.interpolate(x, (self.side, self.side), mode=self.resize, align_corners=False)
        h = self.run(self.model, x)
        return Features(h[:, self.before :], h[:, 0] if self.before else None)
