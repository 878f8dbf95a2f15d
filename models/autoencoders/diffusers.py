"""Any autoencoder that diffusers saves: AutoencoderKL (Stable Diffusion's), AutoencoderTiny, AutoencoderDC, VQModel."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gen.config.errors import MissingDependency, UserError

__all__ = ["Diffusers"]


@dataclass(frozen=True)
class Diffusers:
    """A folder with config.json and a .safetensors file, as diffusers' save_pretrained writes it.

    dtype: what it computes in; it takes and returns float32. On a GPU its convolutions are channels last.
    """

    folder: str
    dtype: Literal["float32", "bfloat16"] = "float32"

    def load(self, device: Any = "cpu") -> Coder:
        """UserError for a folder that is none or lacks weights, MissingDependency without diffusers."""
        place = Path(self.folder)
        try:
            kind = json.loads((place / "config.json").read_text(encoding="utf-8"))["_class_name"]
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(
                f"{place} is no autoencoder of diffusers: it holds no config.json with a _class_name"
            ) from None
        try:
            import diffusers
        except ImportError as error:
            raise MissingDependency(f"autoencoders need diffusers ({error}): pip install 'gen[diffusers]'") from None
        owner = getattr(diffusers, str(kind), None)
        if owner is None or not (hasattr(owner, "encode") and hasattr(owner, "decode")):
            raise UserError(f"{place} holds a {kind}, which is no autoencoder")
        kinds = {"torch_dtype": getattr(torch, self.dtype), "local_files_only": True, "use_safetensors": True}
        try:
            net, info = owner.from_pretrained(place, output_loading_info=True, **kinds)
        except Exception as error:  # of any kind: it depends on which part of the folder is wrong
            raise UserError(f"{place}: diffusers cannot load this {kind} ({' '.join(str(error).split())})") from error
        if info["missing_keys"]:
            raise UserError(f"{place} has no weights {', '.join(info['missing_keys'])}, which a {kind} needs")
        return Coder(net.eval().requires_grad_(False).to(device))


class Coder(nn.Module):
    """encode: images [B, 3, H, W] -> latents, the mean where there is a distribution. decode: the other way.

    UserError for latents whose channels are not the autoencoder's.
    """

    def __init__(self, net: Any):
        super().__init__()
        self.net = net
        if net.device.type == "cuda":
            self.net.to(memory_format=torch.channels_last)

    def encode(self, x: Tensor) -> Tensor:
        found = self.net.encode(x.to(self.net.device, self.net.dtype))
        if hasattr(found, "latent_dist"):
            return found.latent_dist.mode().float()
        return (found.latents if hasattr(found, "latents") else found.latent).float()

    def decode(self, z: Tensor) -> Tensor:
        channels = getattr(self.net.config, "latent_channels", z.shape[1])
        if z.shape[1] != channels:
            raise UserError(f"latents are {list(z.shape)}; this autoencoder's have {channels} channels")
        return self.net.decode(z.to(self.net.device, self.net.dtype)).sample.float()
