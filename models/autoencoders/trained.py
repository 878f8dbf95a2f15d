"""An autoencoder that was trained here, from the folder of its run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.reading import file_sha256
from gen.config.spec import Json, digest
from gen.models.autoencoders.lib.network import Network
from gen.training.resume import denoiser_of
from gen.training.run import run_from

__all__ = ["Trained"]


@dataclass(frozen=True)
class Trained:
    """The autoencoder of a run of `gen train autoencoder`: the first average of its weights.

    Attributes:
        folder: of the run, or of one of its checkpoints.
    """

    folder: str

    def __post_init__(self) -> None:
        check_fields(self)

    def identity(self) -> Json:
        """Return class, config and sha256 of the weights, and of the frozen encoder's where its folder is there."""
        manifest = checkpoints.manifest_of(self.folder)
        run = run_from(manifest["run"], self.folder)
        label = next((f"-{average.label}" for average in run.ema), "")
        files = manifest["files"]
        low, high = getattr(run.model, "image_range", (-1.0, 1.0))
        known: Json = {
            "class": manifest["run"]["model"]["name"],
            "config": {key: value for key, value in manifest["run"]["model"].items() if key != "name"},
            "sha256": files[f"{manifest['role']}{label}.safetensors"]["sha256"],
            "image_range": [low, high],
        }
        folder = getattr(getattr(run.model, "encoder", None), "path", None)
        if folder is not None and (weights := sorted(Path(folder).glob("*.safetensors"))):
            known["encoder"] = digest([file_sha256(file) for file in weights])
        return known

    def load(self, device: torch.device | str = "cpu") -> Network:
        """Return the autoencoder; UserError for a run of something else."""
        net: Any = denoiser_of(self.folder, str(device)).net
        if not isinstance(net, Network):
            raise UserError(f"{self.folder} is a run of a {type(net.spec).__name__}, no autoencoder")
        return net.eval().requires_grad_(False)
