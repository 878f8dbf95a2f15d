"""Any autoencoder of images or video that diffusers saves: AutoencoderKL, -Tiny, -DC, -RAE, -KLQwenImage, VQModel."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gen.config.errors import MissingDependency, UserError
from gen.config.fields import check_fields
from gen.config.reading import file_sha256, read_json
from gen.config.spec import Json, digest
from gen.diffusion.autoencoder import Posterior, Statistics
from gen.models.autoencoders.lib.network import check_images, check_latents

__all__ = ["Diffusers"]


@dataclass(frozen=True)
class Diffusers:
    """A folder with config.json and a .safetensors file, as diffusers' save_pretrained writes it.

    Attributes:
        folder: path of the folder.
        dtype: of the computation; it takes and returns float32. On a GPU its convolutions are channels last.
        image_range: lowest and highest value of the images that the network itself takes and gives; None for that of
            its class, (0, 1) for AutoencoderRAE and (-1, 1) for all others. EDM2 gives Stable Diffusion's (0, 1).
    """

    folder: str
    dtype: Literal["float32", "bfloat16"] = "float32"
    image_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.image_range is not None and not self.image_range[0] < self.image_range[1]:
            raise UserError(f"Diffusers: image_range = {self.image_range}; it must be low < high")

    def identity(self) -> Json:
        """Return class, config and sha256 of the weights; the computation's dtype and the images' range."""
        folder = Path(self.folder)
        config = {k: v for k, v in self._config().items() if k not in VOLATILE}
        files = sorted(file for file in folder.glob("*.safetensors") if WEIGHTS.fullmatch(file.name))
        if not files:
            raise UserError(f"{folder} holds no diffusion_pytorch_model.safetensors")
        hashes = [file_sha256(file) for file in files]
        return {
            "class": config.pop("_class_name"),
            "config": config,
            "sha256": hashes[0] if len(hashes) == 1 else digest(hashes),
            "dtype": self.dtype,
            "image_range": list(self.image_range or RANGES.get(str(self._config()["_class_name"]), (-1.0, 1.0))),
        }

    def load(self, device: torch.device | str = "cpu") -> Coder:
        """Return the autoencoder. UserError for a folder without one, MissingDependency without diffusers."""
        folder, kind = Path(self.folder), self._config()["_class_name"]
        try:
            import diffusers
        except ImportError as error:
            raise MissingDependency(
                f"autoencoders need diffusers ({error}): pip install 'gen-diffusion[diffusers]'"
            ) from None
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
        return Coder(net.eval().requires_grad_(False).to(device), self.image_range or RANGES.get(kind, (-1.0, 1.0)))

    def _config(self) -> Json:
        config = None
        with suppress(UserError):
            config = read_json(Path(self.folder) / "config.json", constants=True)
        if not isinstance(config, dict) or "_class_name" not in config:
            inner = f"; a pipeline's own is {Path(self.folder) / 'vae'}" if (Path(self.folder) / "vae").is_dir() else ""
            raise UserError(
                f"{self.folder} is no autoencoder of diffusers: it holds no config.json with a _class_name{inner}"
            )
        return config


VOLATILE = ("_diffusers_version", "_name_or_path")  # of a config: what says nothing of the network
WEIGHTS = re.compile(r"diffusion_pytorch_model(-\d+-of-\d+)?\.safetensors")
RANGES = {"AutoencoderRAE": (0.0, 1.0)}  # of the classes whose images are not in [-1, 1]


class Coder(nn.Module):
    """An autoencoder of diffusers, as the contract gen.diffusion.autoencoder.Autoencoder has it.

    A network of video codes each image as a video of one frame. FLUX.2's latents are squares of 2 x 2 positions as
    channels, which its pipelines normalise and denoise. `channels` and `stride` are None where the config of its class
    does not say them.
    """

    def __init__(self, net: Any, image_range: tuple[float, float]):
        super().__init__()
        self.net, self.image_range = net, image_range
        convs = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
        dims = [size for module in net.modules() for conv, size in convs.items() if isinstance(module, conv)]
        if dims[:1] == [1]:
            raise UserError(f"a {type(net).__name__} codes sound, no images")
        self.video = dims[:1] == [3]
        if net.device.type == "cuda" and not self.video:
            self.net.to(memory_format=torch.channels_last)
        self.image_channels = int(_first(net.config, "in_channels", "input_channels") or 3)
        self.channels: int | None = _first(net.config, "latent_channels", "z_dim", "encoder_hidden_size")
        self.stride: int | None = _stride(net)
        self.statistics = _statistics(net)
        self.patch = int(net.config["patch_size"][0]) if hasattr(net, "bn") else 1  # FLUX.2's, whose norm is of patches
        if self.patch > 1 and self.channels is not None and self.stride is not None:
            self.channels, self.stride = self.channels * self.patch**2, self.stride * self.patch

    def encode(self, x: Tensor) -> Posterior:
        """Return the latents of images: a normal distribution, or points where the network has none."""
        check_images(self, x)
        low, high = self.image_range
        coded = self.net.encode(self._given((x + 1) * ((high - low) / 2) + low))
        if hasattr(coded, "latent_dist"):
            normal = coded.latent_dist
            if hasattr(normal, "logvar") and not normal.deterministic:
                return Posterior(self._latent(normal.mean), self._latent(normal.logvar))
            return Posterior(self._latent(normal.mode()))
        return Posterior(self._latent(coded.latents if hasattr(coded, "latents") else coded.latent))

    def decode(self, z: Tensor) -> Tensor:
        """Return the images of latents; UserError for a number of channels that is not the autoencoder's."""
        check_latents(self, z)
        low, high = self.image_range
        z = F.pixel_shuffle(z, self.patch)
        return (self._image(self.net.decode(self._given(z)).sample) - low) * (2 / (high - low)) - 1

    def _given(self, x: Tensor) -> Tensor:
        """Return x as the network takes it."""
        x = x.to(self.net.device, self.net.dtype)
        return x[:, :, None] if self.video else x

    def _latent(self, z: Tensor) -> Tensor:
        """Return what the network gave as latents, [B, C, h, w] in float32."""
        return F.pixel_unshuffle(self._image(z), self.patch)

    def _image(self, x: Tensor) -> Tensor:
        """Return what the network gave, [B, C, H, W] in float32."""
        if self.video and x.shape[2] != 1:
            raise UserError(f"{type(self.net).__name__} makes {x.shape[2]} frames of one image")
        return (x[:, :, 0] if self.video else x).float()


def _first(config: Mapping[str, Any], *keys: str) -> Any:
    """Return the first value that a config has under some keys; None for none."""
    return next((config[key] for key in keys if config.get(key) is not None), None)


def _stride(net: Any) -> int | None:
    """Return the side of an image over that of its latent, as a network or its config says it."""
    config = net.config
    if "encoder_input_size" in config:  # AutoencoderRAE: a patch of the decoder for each token of the encoder
        return int(config["patch_size"])
    known = _first({**config, **vars(net)}, "spatial_compression_ratio", "scale_factor_spatial")
    if known is not None:  # of most video
        return int(known)
    if "dim_mult" in config:
        return int(2 ** (len(config["dim_mult"]) - 1))
    levels = _first(config, "block_out_channels", "down_block_out_channels", "encoder_block_out_channels")
    return None if levels is None or not isinstance(levels, (list, tuple)) else int(2 ** (len(levels) - 1))


def _statistics(net: Any) -> Statistics | None:
    """Return mean and deviation of the latents that a network states; None where they come as a denoiser takes them.

    Pipelines scale by scaling_factor after shift_factor, or, where there is a mean for each channel, after that and
    divided by its deviation, of the config or, in LTX's, of the weights; FLUX.2's are running ones of a norm without
    gain. AutoencoderRAE has applied its own in encode.
    """
    config = net.config
    if "encoder_input_size" in config:
        return None
    scale, shift = float(config.get("scaling_factor") or 1.0), float(config.get("shift_factor") or 0.0)
    kept = dict(net.named_buffers(recurse=False))
    if hasattr(net, "bn"):
        std = (net.bn.running_var.float().cpu() + float(config["batch_norm_eps"])).sqrt()
        kept = dict(zip(("latents_mean", "latents_std"), (net.bn.running_mean, std), strict=True))
    mean, std = (
        torch.as_tensor(config.get(key) or kept.get(key, [same])).float().cpu().reshape(-1, 1, 1)
        for key, same in MOMENTS_OF
    )
    mean, std = mean + shift, std / scale
    return None if bool((mean == 0).all() and (std == 1).all()) else Statistics(mean, std)


MOMENTS_OF = (("latents_mean", 0.0), ("latents_std", 1.0))
