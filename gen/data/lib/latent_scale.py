"""Scale and shift of latents: a number, one for each channel, or one for each position."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.spec import Json
from gen.config.torch_file import read_torch
from gen.data.lib.latent_store import read_stored

__all__ = ["LatentScale", "stored_statistics"]


@dataclass(frozen=True, eq=False)
class LatentScale:
    """Scale and shift of latents; a model learns (latent - shift) * scale.

    Attributes:
        scale, shift: numbers, or tensors [C, 1, 1] or [C, H, W].
    """

    scale: float | Tensor
    shift: float | Tensor

    def __post_init__(self) -> None:
        for name in ("scale", "shift"):
            value = getattr(self, name)
            if isinstance(value, Tensor):
                object.__setattr__(self, name, value.float())

    @classmethod
    def given(
        cls, path: str, scale: float | tuple[float, ...], shift: float | tuple[float, ...], channels: int
    ) -> LatentScale:
        """Return what fields say; UserError for another number of channels than the latents of `path` have."""
        values = list[float | Tensor]()
        for name, value in (("scale", scale), ("shift", shift)):
            if isinstance(value, tuple) and len(value) != channels:
                raise UserError(f"Latents: {name} has {len(value)} numbers; {path} has {channels} channels")
            values.append(torch.tensor(value).reshape(-1, 1, 1) if isinstance(value, tuple) else float(value))
        return cls(*values)

    def __call__(self, z: Tensor, unit: float = 1.0) -> Tensor:
        """Scale a latent that was kept times `unit`."""
        if unit == 1:
            plain = not isinstance(self.scale, Tensor) and not isinstance(self.shift, Tensor)
            return z if plain and (self.scale, self.shift) == (1, 0) else (z - self.shift).mul_(self.scale)
        return z * (self.scale / unit) - self.shift * self.scale  # exactly z where the scale is the unit

    def json(self) -> Json:
        """Return scale and shift for a manifest; of positions, words and the name of the file that has them."""
        if self.tensors():
            file = "latents.safetensors"
            return {"scale": f"of each position, in {file}", "shift": f"of each position, in {file}", "file": file}
        return {
            name: value.flatten().tolist() if isinstance(value, Tensor) else value
            for name, value in (("scale", self.scale), ("shift", self.shift))
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return scale and shift of every position; {} where channels have one."""
        if isinstance(self.scale, Tensor) and isinstance(self.shift, Tensor) and self.scale.shape[1:] != (1, 1):
            return {"scale": self.scale, "shift": self.shift}
        return {}


def stored_statistics(path: Path, manifest: Json | None, by: str, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Return mean and variance that are stored with latents, float64 [C, 1, 1] or [C, H, W], or [1, 1, 1].

    Args:
        path: the folder.
        manifest: gen's, or None for LightningDiT's latents_stats.pt.
        by: "channel" or "position"; "autoencoder" for those that it states itself.
        shape: of one latent.

    Raises:
        UserError: if there are none, or a number never varies.
    """
    if manifest is not None:
        mean, var = _of_manifest(path, manifest, by)
    else:
        mean, var = _of_lightning_dit(path, by)
    allowed = {"channel": [(shape[0], 1, 1)], "position": [shape]}.get(by, [(1, 1, 1), (shape[0], 1, 1), shape])
    if tuple(mean.shape) not in allowed or mean.shape != var.shape:
        raise UserError(f"{path}: the statistics are {list(mean.shape)}; those of its latents are {list(allowed[-1])}")
    if not bool(((var > 0) & torch.isfinite(var) & torch.isfinite(mean)).all()):
        raise UserError(f"{path}: {int((var <= 0).sum())} of {var.numel()} numbers never vary: they have no scale")
    return mean, var


def _of_manifest(path: Path, manifest: Json, by: str) -> tuple[Tensor, Tensor]:
    statistics = manifest["statistics"]
    if by == "channel":
        mean, var = (
            torch.tensor(statistics["channel"][key], dtype=torch.float64).reshape(-1, 1, 1) for key in ("mean", "var")
        )
        return mean, var
    if by == "autoencoder":
        if "stated" not in manifest:
            raise UserError(f"{path}: its autoencoder states no mean and deviation: standardise by channel or position")
        stated = read_stored(path, manifest["stated"])
        return stated["mean"].double(), stated["std"].double() ** 2
    found = read_stored(path, statistics["position"])
    return found["mean"], found["var"]


def _of_lightning_dit(path: Path, by: str) -> tuple[Tensor, Tensor]:
    file = (path if path.is_dir() else path.parent) / "latents_stats.pt"
    if by != "channel" or not file.is_file():
        raise UserError(f"{path} stores no statistics by {by}: give scale and shift, or encode it by gen encode")
    content = read_torch(file)
    found = [content.get(key) for key in ("mean", "std")] if isinstance(content, Mapping) else []
    tensors = [value.double().reshape(-1, 1, 1) for value in found if isinstance(value, Tensor)]
    if len(tensors) != 2:
        raise UserError(f"{file} does not hold mean and std")
    return tensors[0], tensors[1] ** 2
