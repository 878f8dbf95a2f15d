"""Any autoencoder that diffusers saves: AutoencoderKL (Stable Diffusion's), AutoencoderTiny, AutoencoderDC, VQModel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gen.config.errors import MissingDependency, UserError
from gen.config.reading import read_json

__all__ = ["Diffusers"]


@dataclass(frozen=True)
class Diffusers:
    """A folder with config.json and a .safetensors file, as diffusers' save_pretrained writes it.

    Attributes:
        folder: path of the folder.
        dtype: of the computation; it takes and returns float32. On a GPU its convolutions are channels last.
    """

    folder: str
    dtype: Literal["float32", "bfloat16"] = "float32"

    def load(self, device: torch.device | str = "cpu") -> Coder:
        """Return the autoencoder. UserError for a folder without one, MissingDependency without diffusers."""
        folder = Path(self.folder)
        try:
            kind = read_json(folder / "config.json", constants=True)["_class_name"]
        except (UserError, KeyError, TypeError):
            raise UserError(
                f"{folder} is no autoencoder of diffusers: it holds no config.json with a _class_name"
            ) from None
        try:
            import diffusers
        except ImportError as error:
            raise MissingDependency(f"autoencoders need diffusers ({error}): pip install 'gen[diffusers]'") from None
        owner = getattr(diffusers, str(kind), None)
        if owner is None or not (hasattr(owner, "encode") and hasattr(owner, "decode")):
            raise UserError(f"{folder} holds a {kind}, which is no autoencoder")
        kinds = {"torch_dtype": getattr(torch, self.dtype), "local_files_only": True, "use_safetensors": True}
        try:
            net, info = owner.from_pretrained(folder, output_loading_info=True, **kinds)
        except Exception as error:  # of any kind: it depends on which part of the folder is wrong
            raise UserError(f"{folder}: diffusers cannot load this {kind} ({' '.join(str(error).split())})") from error
        if info["missing_keys"]:
            raise UserError(f"{folder} has no weights {', '.join(info['missing_keys'])}, which a {kind} needs")
        return Coder(net.eval().requires_grad_(False).to(device))


class Coder(nn.Module):
    """An autoencoder of diffusers between images [B, 3, H, W] in [-1, 1] and latents [B, C, h, w], both float32."""

    def __init__(self, net: Any):
        super().__init__()
        self.net = net
        if net.device.type == "cuda":
            self.net.to(memory_format=torch.channels_last)

    def encode(self, x: Tensor) -> Tensor:
        """Return the latents of images, the mean where there is a distribution."""
        coded = self.net.encode(x.to(self.net.device, self.net.dtype))
        if hasattr(coded, "latent_dist"):
            return coded.latent_dist.mode().float()
        return (coded.latents if hasattr(coded, "latents") else coded.latent).float()

    def decode(self, z: Tensor) -> Tensor:
        """Return the images of latents; UserError for a number of channels that is not the autoencoder's."""
        channels = getattr(self.net.config, "latent_channels", z.shape[1])
        if z.shape[1] != channels:
            raise UserError(f"latents are {list(z.shape)}; this autoencoder's have {channels} channels")
        return self.net.decode(z.to(self.net.device, self.net.dtype)).sample.float()
