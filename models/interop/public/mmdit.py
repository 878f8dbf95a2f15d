"""Stable Diffusion 3 and 3.5 of diffusers, and of the Hub: SD3Transformer2DModel."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.reading import read_json
from gen.config.spec import Json
from gen.diffusion.net import sides
from gen.models.interop.lib.inferred import Conversion
from gen.models.interop.weights import State, Weights
from gen.models.mmdit import MMDiT
from gen.training.run import Run, Sampler

__all__ = ["MMDiTFolder", "from_diffusers"]

SIZES = (
    "sample_size", "patch_size", "in_channels", "num_layers", "attention_head_dim", "num_attention_heads",
    "joint_attention_dim", "pooled_projection_dim", "pos_embed_max_size",
)  # fmt: skip
WHOLE = {
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "pooled_embedder.0",
    "time_text_embed.text_embedder.linear_2": "pooled_embedder.2",
    "context_embedder": "text_embedder",
    "proj_out": "final_layer.linear",
}
BLOCK = {
    "norm1.linear": "image.adaLN_modulation.1",
    "norm1_context.linear": "text.adaLN_modulation.1",
    "attn.norm_q": "image.q_norm",
    "attn.norm_k": "image.k_norm",
    "attn.norm_added_q": "text.q_norm",
    "attn.norm_added_k": "text.k_norm",
    "attn.to_out.0": "image.proj",
    "attn.to_add_out": "text.proj",
    "attn2.norm_q": "second.q_norm",
    "attn2.norm_k": "second.k_norm",
    "attn2.to_out.0": "second.proj",
    "ff.net.0.proj": "image.mlp.fc1",
    "ff.net.2": "image.mlp.fc2",
    "ff_context.net.0.proj": "text.mlp.fc1",
    "ff_context.net.2": "text.mlp.fc2",
}
JOINED = {  # q, and the other two of it, as one product
    "attn.to_q": ("image.qkv", "attn.to_k", "attn.to_v"),
    "attn.add_q_proj": ("text.qkv", "attn.add_k_proj", "attn.add_v_proj"),
    "attn2.to_q": ("second.qkv", "attn2.to_k", "attn2.to_v"),
}
LENGTH = 333  # CLIP's 77 and T5's 256
LATENT: Json = {"autoencoder": "stabilityai/stable-diffusion-3-medium", "scale": 1.5305, "shift": 0.0609}

NOTES = ("q, k and v joined; no caption is the negative prompt ''",)


@dataclass(frozen=True)
class MMDiTFolder:
    """An SD3 on the flow path, sampled by 28 Euler steps on a grid shifted by 3, guided by 7: its pipeline's defaults.

    Captions are read by the three encoders of the pipeline's folder (gen.models.text_encoders.sd3), none by the
    negative prompt "", whose embedding is no part of the weights.
    """

    def claims(self, weights: Weights) -> bool:
        return weights.config is not None and "transformer_blocks.0.attn.add_k_proj.weight" in weights.tensors

    def read(self, weights: Weights, preset: str | None) -> Conversion:
        if preset is not None:
            raise UserError(f"preset {preset!r}: a diffusers folder says its sizes in config.json; leave it out")
        config = weights.config or {}
        if config.get("_class_name") != "SD3Transformer2DModel":
            raise UserError(f"config.json is of {config.get('_class_name')!r}; allowed: SD3Transformer2DModel")
        for key in SIZES:
            if not isinstance(config.get(key), int):
                raise UserError(f"config.json: {key} is {config.get(key)!r}; expected a whole number")
        model = _model(config)
        folder = weights.folder.parent if weights.folder is not None else None
        file = None if folder is None else folder / "vae" / "config.json"
        latent = LATENT
        if file is not None and file.exists():
            vae = read_json(file, constants=True)
            latent = {"autoencoder": str(file.parent), "scale": vae.get("scaling_factor", LATENT["scale"]),
                      "shift": vae.get("shift_factor", LATENT["shift"])}  # fmt: skip
        sampler = Sampler("euler", 28, {"name": "shift", "shift": 3.0}, {"name": "cfg", "scale": 7.0})
        run = Run(model=model, path="flow", parameterisation="velocity", sampler=sampler, ema=())
        return Conversion(run, from_diffusers(weights.tensors, model), latent, notes=NOTES)


def _model(config: Json) -> MMDiT:
    dual = list(config.get("dual_attention_layers") or ())
    if dual != list(range(len(dual))) or config.get("qk_norm") not in (None, "rms_norm"):
        raise UserError(
            f"config.json: dual_attention_layers {dual}, qk_norm {config.get('qk_norm')!r}; allowed: the first ones, "
            "and rms_norm or none"
        )
    width = config["num_attention_heads"] * config["attention_head_dim"]
    if config.get("caption_projection_dim", width) != width or config.get("out_channels") not in (
        None,
        config["in_channels"],
    ):
        raise UserError("config.json: caption_projection_dim must be the width, and out_channels in_channels")
    return MMDiT(
        size=config["sample_size"],
        patch=config["patch_size"],
        channels=config["in_channels"],
        width=width,
        depth=config["num_layers"],
        heads=config["num_attention_heads"],
        dual_blocks=len(dual),
        text_width=config["joint_attention_dim"],
        text_length=LENGTH,
        pooled_width=config["pooled_projection_dim"],
        null_text="stored",
        position_max=config["pos_embed_max_size"],
        time_scale=1000.0,
        qk_norm=config.get("qk_norm") == "rms_norm",
    )


def from_diffusers(state: State, model: MMDiT) -> dict[str, Tensor]:
    """Return diffusers' weights under our names, with no embedding of the empty caption; unknown names stay.

    Args:
        state: state dict of an SD3Transformer2DModel.
        model: the spec of ours.
    """
    ours: dict[str, Tensor] = {}
    used = {name for parts in JOINED.values() for name in parts[1:]}
    last = f"blocks.{model.depth - 1}.text.adaLN_modulation.1"
    for name, value in state.items():
        stem, _, kind = name.rpartition(".")
        block = re.fullmatch(r"transformer_blocks\.(\d+)\.(.*)", stem)
        part = block[2] if block else ""
        if name == "pos_embed.pos_embed":
            ours["pos_embed"] = _middle(value, model)
        elif block and part in JOINED:
            joined, *others = JOINED[part]
            rest = [f"transformer_blocks.{block[1]}.{other}.{kind}" for other in others]
            if missing := [one for one in rest if one not in state]:
                raise UserError(f"no {missing[0]}, but its {name} is there")
            ours[f"blocks.{block[1]}.{joined}.{kind}"] = torch.cat([value, *(state[one] for one in rest)])
        elif block and part in BLOCK:
            ours[f"blocks.{block[1]}.{BLOCK[part]}.{kind}"] = value
        elif stem == "norm_out.linear":
            ours[f"final_layer.adaLN_modulation.1.{kind}"] = value
        elif part not in used:
            ours[f"{WHOLE[stem]}.{kind}" if stem in WHOLE else name] = value
    for stem in (last, "final_layer.adaLN_modulation.1"):  # theirs are scale, then shift
        ours |= {
            name: torch.cat([*ours[name].chunk(2)][::-1]) for name in (f"{stem}.weight", f"{stem}.bias") if name in ours
        }
    null = torch.zeros(model.text_length, model.text_width)
    stored = {"null_text": null, "null_mask": null[:, 0] != 0, "null_stored": torch.tensor(False)}
    stored["null_pooled"] = torch.zeros(model.pooled_width)
    return {**ours, **{f"captions.{name}": value for name, value in stored.items()}}


def _middle(table: Tensor, model: MMDiT) -> Tensor:
    """Return the rows of a table of positions [1, max^2, width] that the model's own size takes."""
    most, (rows, columns) = model.position_max, (side // model.patch for side in sides(model))
    whole = table.unflatten(1, (most, most))
    top, left = (most - rows) // 2, (most - columns) // 2
    return whole[:, top : top + rows, left : left + columns].flatten(1, 2).contiguous()
