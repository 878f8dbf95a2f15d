"""Latents of pictures, and pictures of latents, by the pipeline's own autoencoder and its own rules.

Both ways for every family: scale, shift, statistics per channel or of a batch norm, packing and the order of frames are
those of the pipeline's own code after its last step, which runs here on given latents. `encode_images` inverts what
that code does before the autoencoder, so no table of factors is needed; it refuses pipelines that add noise there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.nn import functional

from gen.config.errors import UserError
from gen.models.interop.pipelines.calling import Step, arguments_of, call_without_networks, zeros_for
from gen.models.interop.pipelines.controls import controls_of, residuals
from gen.models.interop.pipelines.families import networks_of
from gen.models.interop.pipelines.listening import Heard

__all__ = ["Rule", "autoencoder_rule", "decode_by_rule", "decode_latents", "encode_images", "mask_latents"]

Rule = tuple[Tensor, Tensor, Tensor]  # index, scale and shift, see `autoencoder_rule`
BASE = 16  # of the digits by which positions are recognised; exact in bfloat16 too


class StepOutput(NamedTuple):
    """A scheduler's output, read by name or as a tuple."""

    prev_sample: Tensor
    pred_original_sample: Tensor


class Decoding(Exception):
    """The autoencoder's input, which ends the pipeline's call."""

    def __init__(self, z: Tensor):
        super().__init__()
        self.z = z


@torch.no_grad()
def decode_latents(heard: Heard, latents: Tensor) -> Tensor:
    """Return the pictures of latents, as the pipeline returns them.

    Args:
        heard: of the pipeline, for the size.
        latents: [n, ...], each of the shape of heard.latents.

    Returns:
        [n, 3, H, W] or, of videos, [n, frames, 3, H, W], in [-1, 1].
    """
    rows, pictures = len(heard.latents), []
    for part in latents.split(rows):
        whole = torch.cat([part, part[-1:].expand(rows - len(part), *part.shape[1:])])
        out = _tail(heard, whole, {})
        images = out[0] if isinstance(out, tuple) else next(iter(out.values()))
        pictures.append(images[: len(part)])
    return torch.cat(pictures) * 2 - 1


@torch.no_grad()
def encode_images(heard: Heard, images: Tensor) -> Tensor:
    """Return the latents of pictures: the means of the pipeline's autoencoder as its network knows them.

    Args:
        heard: of the pipeline, for the size.
        images: [n, 3, H, W] or, for videos, [n, frames, 3, H, W], in [-1, 1], of the size of the call.

    Returns:
        [n, ...], each of the shape and dtype of heard.latents.
    """
    pipe = heard.pipe
    if getattr(pipe.vae.config, "timestep_conditioning", False):
        raise UserError(f"{type(pipe).__name__} adds noise to latents before it decodes them: no pictures have them")
    index, scale, shift = autoencoder_rule(heard)
    pixels = images.to(next(pipe.vae.parameters()))
    if shift.ndim == 5:  # [n, 3, frames, H, W]
        pixels = pixels[:, :, None] if pixels.ndim == 4 else pixels.transpose(1, 2)
    encoded = pipe.vae.encode(pixels)
    z = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent
    if z.shape[1:] != shift.shape[1:]:
        raise UserError(f"pictures {list(images.shape)} have latents {list(z.shape)}, and those of the call that was "
                        f"heard [n, {', '.join(map(str, shift.shape[1:]))}]: give them in its size")  # fmt: skip
    latents = torch.empty(len(z), heard.latents[0].numel(), dtype=heard.latents.dtype, device=z.device)
    latents[:, index] = ((z - shift) / scale).flatten(1).to(latents.dtype)
    return latents.reshape(len(z), *heard.latents.shape[1:])


@torch.no_grad()
def mask_latents(heard: Heard, mask: Tensor) -> Tensor:
    """Return a mask of pictures as one of latents: the mean over the pixels of each position, for all its channels.

    Args:
        heard: of the pipeline, for the size.
        mask: [n, 1, H, W] of any size, for all frames of a film.

    Returns:
        [n, ...], each of the shape of heard.latents.
    """
    index, _, shift = autoencoder_rule(heard)
    small = functional.interpolate(mask.float(), size=shift.shape[-2:], mode="area").to(index.device)
    if shift.ndim == 5:
        small = small[:, :, None]
    latents = torch.empty(len(mask), len(index), device=index.device)
    latents[:, index] = small.expand(-1, *shift.shape[1:]).flatten(1)
    return latents.reshape(len(mask), *heard.latents.shape[1:])


def decode_by_rule(heard: Heard, rule: Rule, latents: Tensor) -> Tensor:
    """Return the pictures of latents by the autoencoder alone, differentiable and not clamped, [n, 3, H, W].

    Args:
        heard: of the pipeline.
        rule: its `autoencoder_rule`.
        latents: [n, ...], each of the shape of heard.latents.

    Returns:
        Of videos [n, 3, frames, H, W].
    """
    index, scale, shift = rule
    z = latents.flatten(1)[:, index].reshape(len(latents), *shift.shape[1:]) * scale + shift
    out = heard.pipe.vae.decode(z.to(next(heard.pipe.vae.parameters())), return_dict=False)[0].to(latents.dtype)
    return out[:, :, 0] if out.ndim == 5 and out.shape[2] == 1 else out


@torch.no_grad()
def autoencoder_rule(heard: Heard) -> Rule:
    """Return how the autoencoder's input z comes from latents: z = scale * latents.flatten()[index] + shift.

    Position, scale and shift of each number are seen by latents of which every number is known.

    Args:
        heard: of the pipeline.

    Returns:
        index: [numbers] of the flattened latents of one sample.
        scale, shift: [1, ...], shaped as z.
    """
    like = heard.latents[:1]
    shift = _autoencoder_input(heard, torch.zeros_like(like))
    scale = _autoencoder_input(heard, torch.ones_like(like)) - shift
    count = torch.arange(like.numel(), device=like.device)
    index = torch.zeros(shift.numel(), dtype=torch.long, device=shift.device)
    unit = 1
    while unit < len(count):
        digit = _autoencoder_input(heard, (count // unit % BASE).to(like).reshape(like.shape))
        index += unit * ((digit - shift) / scale).flatten().round().long()
        unit *= BASE
    if len(index) != len(count) or not torch.equal(index.sort().values, count.to(index.device)):
        raise UserError(f"{type(heard.pipe).__name__} does more to latents than scale and arrange them to decode")
    return index, scale, shift


def _autoencoder_input(heard: Heard, latents: Tensor) -> Tensor:
    """Return what the autoencoder gets of the latents [1, ...] of one sample, [1, ...]."""

    def decode(z: Tensor, *args: Any, **kwargs: Any) -> NoReturn:
        raise Decoding(z)

    try:
        _tail(heard, latents.expand(heard.latents.shape), {"decode": (heard.pipe.vae, decode)})
    except Decoding as decoding:
        return decoding.z[:1]
    raise UserError(f"{type(heard.pipe).__name__} does not decode by its vae")


def _tail(heard: Heard, latents: Tensor, methods: Mapping[str, Any]) -> Any:
    """Return what the pipeline makes of latents, of as many rows as were heard, after its last step."""
    pipe, encoded = heard.pipe, iter(heard.encoded)
    networks, controls = networks_of(pipe, heard.family), controls_of(pipe)

    def forward(name: str, *args: Any, **kwargs: Any) -> Any:
        if name in controls:
            return residuals(kwargs)
        return zeros_for(networks[name], arguments_of(networks[name], args, kwargs)[heard.family.x])

    def last(step: Step) -> StepOutput:
        state = torch.cat([latents, latents]) if heard.doubled else latents
        return StepOutput(state.to(step.sample), state.to(step.sample))

    if heard.encoded:  # as before, without the text encoders
        methods = {**methods, "encode_prompt": (pipe, lambda *args, **kwargs: next(encoded))}
    return call_without_networks(
        pipe, {**heard.call, "output_type": "pt"}, {**networks, **controls}, forward, last, methods
    )
