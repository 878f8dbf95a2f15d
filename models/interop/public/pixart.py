"""PixArt folders of diffusers, and of the Hub: PixArtTransformer2DModel, of PixArt-alpha and PixArt-Sigma."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.reading import read_json
from gen.config.spec import Json
from gen.diffusion.net import sides
from gen.models.interop.lib.inferred import SD_VAE, Conversion, check_table
from gen.models.interop.public.diffusers import PUBLISHED, read_scheduler
from gen.models.interop.weights import State, Weights
from gen.models.layers.embed import grid_embedding
from gen.models.pixart import PixArt
from gen.training.run import Run, Sampler

__all__ = ["PixArtFolder", "from_diffusers"]

CLASSES = ("PixArtTransformer2DModel", "Transformer2DModel")
# What diffusers' code could do otherwise, and this network cannot.
FIXED = {
    "activation_fn": "gelu-approximate",
    "norm_type": "ada_norm_single",
    "attention_bias": True,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
}
SIZES = ("sample_size", "in_channels", "num_attention_heads", "attention_head_dim", "num_layers", "caption_channels")
WHOLE = {
    "pos_embed.proj": "x_embedder.proj",
    "adaln_single.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "adaln_single.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "adaln_single.emb.resolution_embedder.linear_1": "size_embedder.mlp.0",
    "adaln_single.emb.resolution_embedder.linear_2": "size_embedder.mlp.2",
    "adaln_single.emb.aspect_ratio_embedder.linear_1": "ratio_embedder.mlp.0",
    "adaln_single.emb.aspect_ratio_embedder.linear_2": "ratio_embedder.mlp.2",
    "adaln_single.linear": "t_block",
    "caption_projection.linear_1": "text_proj.0",
    "caption_projection.linear_2": "text_proj.2",
    "proj_out": "final_layer",
}
BLOCK = {
    "attn1.to_out.0": "attn.proj",
    "attn2.to_q": "cross.q",
    "attn2.to_k": "cross.k",
    "attn2.to_v": "cross.v",
    "attn2.to_out.0": "cross.proj",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
}
LENGTH = 300  # Sigma's longest caption; alpha's is 120


@dataclass(frozen=True)
class PixArtFolder:
    """A PixArt on the table of the scheduler beside it, sampled as its pipeline does: 20 steps of DPM-Solver++, 4.5.

    The embedding of the empty caption is no part of the folder: without it give the negative prompt "", which the
    pipeline's text encoder reads (gen.models.text_encoders).
    """

    def claims(self, weights: Weights) -> bool:
        return weights.config is not None and "adaln_single.linear.weight" in weights.tensors

    def read(self, weights: Weights, preset: str | None) -> Conversion:
        if preset is not None:
            raise UserError(f"preset {preset!r}: a diffusers folder says its sizes in config.json; leave it out")
        model = _model(_checked(weights), weights)
        folder = weights.folder.parent if weights.folder is not None and weights.folder.name == "transformer" else None
        file = None if folder is None else folder / "scheduler" / "scheduler_config.json"
        config = read_json(file, constants=True) if file is not None and file.exists() else PUBLISHED
        path, parameterisation, grid, notes = read_scheduler(config, file)
        guide = {"name": "cfg", "scale": 4.5}
        run = Run(model=model, path=path, parameterisation=parameterisation, ema=(),
                  sampler=Sampler("dpmpp", 20, grid, guide))  # fmt: skip
        tensors = from_diffusers(weights.tensors, model)
        notes = ("q, k and v joined; no caption is the negative prompt ''", *notes)
        return Conversion(run, tensors, _latent(folder), notes=notes)


def from_diffusers(state: State, model: PixArt) -> dict[str, Tensor]:
    """Return diffusers' weights under our names, with the table of positions and no embedding of the empty caption.

    Unknown names stay as they are.

    Args:
        state: state dict of a PixArtTransformer2DModel.
        model: the spec of ours.
    """
    ours: dict[str, Tensor] = {}
    for name, value in state.items():
        stem, _, kind = name.rpartition(".")
        block = re.fullmatch(r"transformer_blocks\.(\d+)(?:\.(.*))?", stem)
        part = (block[2] or "") if block else ""
        if name == "scale_shift_table":
            ours["final_table"] = value
        elif block and kind == "scale_shift_table":
            ours[f"blocks.{block[1]}.table"] = value
        elif block and part == "attn1.to_q":
            thirds = [f"{stem[:-1]}{letter}.{kind}" for letter in "qkv"]
            if missing := [third for third in thirds if third not in state]:
                raise UserError(f"no {missing[0]}, but its {name} is there")
            ours[f"blocks.{block[1]}.attn.qkv.{kind}"] = torch.cat([state[third] for third in thirds])
        elif block and part in BLOCK:
            ours[f"blocks.{block[1]}.{BLOCK[part]}.{kind}"] = value
        elif part not in ("attn1.to_k", "attn1.to_v"):
            ours[f"{WHOLE[stem]}.{kind}" if stem in WHOLE else name] = value
    rows, columns = (side // model.patch for side in sides(model))
    step = 1 / model.position_scale
    table = grid_embedding(model.width, rows, columns, steps=(step, step))[None]
    theirs = ours.pop("pos_embed.pos_embed", None)  # some versions wrote it
    if theirs is not None:
        check_table("pos_embed.pos_embed", theirs, table)
    null = torch.zeros(model.text_length, model.text_width)
    stored = {"null_text": null, "null_mask": null[:, 0] != 0, "null_stored": torch.tensor(False)}
    return {**ours, "pos_embed": table, **{f"captions.{name}": value for name, value in stored.items()}}


def _checked(weights: Weights) -> Json:
    """Return config.json; UserError unless it is of a network that ours can be."""
    config = weights.config or {}
    if config.get("_class_name") not in CLASSES:
        raise UserError(f"config.json is of {config.get('_class_name')!r}; allowed: {', '.join(CLASSES)}")
    for key, value in FIXED.items():
        if config.get(key, value) != value:
            raise UserError(f"config.json: {key} is {config[key]!r}; only {value!r} is PixArt's")
    for key in SIZES:
        if not isinstance(config.get(key), int):
            raise UserError(f"config.json: {key} is {config.get(key)!r}; expected a whole number")
    return config


def _model(config: Json, weights: Weights) -> PixArt:
    channels, size = config["in_channels"], config["sample_size"]
    out = config.get("out_channels") or channels
    if out not in (channels, 2 * channels):
        raise UserError(f"config.json: out_channels {out} for in_channels {channels}; allowed: as many, or twice")
    return PixArt(
        size=size,
        patch=config.get("patch_size", 2),
        channels=channels,
        width=config["num_attention_heads"] * config["attention_head_dim"],
        depth=config["num_layers"],
        heads=config["num_attention_heads"],
        learn_sigma=out == 2 * channels,
        text_width=config["caption_channels"],
        text_length=LENGTH,
        null_text="stored",
        position_scale=config.get("interpolation_scale") or max(size // 64, 1),
        size_condition="adaln_single.emb.resolution_embedder.linear_1.weight" in weights.tensors,
    )


def _latent(folder: Any) -> Json:
    """Return the scale of latents: that of the autoencoder beside the transformer, or PixArt-alpha's."""
    file = None if folder is None else folder / "vae" / "config.json"
    if file is None or not file.exists():
        return SD_VAE
    config = read_json(file, constants=True)
    scale, shift = config.get("scaling_factor", 0.18215), config.get("shift_factor") or 0.0
    return {"autoencoder": str(file.parent), "scale": scale, "shift": shift}
