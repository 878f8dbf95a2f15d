"""Folders of diffusers' AutoencoderRAE: their tensors under our names, and ours under theirs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.spec import Json
from gen.models.autoencoders.rae import RAE, RAENet
from gen.models.encoders.dinov2 import DINOv2
from gen.models.encoders.mae import MAE
from gen.models.encoders.siglip2 import SigLIP2
from gen.models.encoders.vit import ViT
from gen.models.interop.weights import State
from gen.models.layers.embed import grid_embedding

__all__ = ["decoder_from_diffusers", "encoder_from_diffusers", "encoder_of", "statistics_of", "to_autoencoder_rae"]

EPS = 1e-5  # their divisor is std + EPS, the authors' the root of var + EPS
STEPS = 16  # of the table of positions, on any grid
HEAD = 64  # numbers of a head of the encoder, built in there
TABLES = {"dinov2": 518, "siglip2": 256, "mae": 224}  # side of pictures of the table of positions, built in too
ATTENTION = (  # ours, which are the authors', and theirs
    ("attention.attention.query.", "attention.to_q."),
    ("attention.attention.key.", "attention.to_k."),
    ("attention.attention.value.", "attention.to_v."),
    ("attention.output.dense.", "attention.to_out.0."),
)
# names of transformers before 5, and now
FORMER = (
    (r"^vision_model\.", ""),
    (r"\.attention\.attention\.query\.", ".attention.q_proj."),
    (r"\.attention\.attention\.key\.", ".attention.k_proj."),
    (r"\.attention\.attention\.value\.", ".attention.v_proj."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
)
FORMER_MAE = (
    (r"^encoder\.layer\.", "layers."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
)


def encoder_of(config: Mapping[str, Any], tensors: State) -> ViT:
    """Return the encoder that a config describes.

    Args:
        config: of the folder; UserError for an encoder that is not known here.
        tensors: the file's, which show the width of the MLP.
    """
    kind, width = str(config["encoder_type"]), int(config["encoder_hidden_size"])
    patch, side = int(config["encoder_patch_size"]), int(config["encoder_input_size"])
    if kind not in TABLES or side % patch or width % HEAD:
        raise UserError(f"an AutoencoderRAE of a {kind} of width {width}, patch {patch}, pictures {side}: not known")
    hidden = [v.shape[0] for name, v in tensors.items() if re.search(r"(fc1|intermediate\.dense)\.weight$", name)
              and name.startswith("encoder.")]  # fmt: skip
    return ViT(
        kind=kind,  # type: ignore[arg-type]  # one of TABLES
        grid=side // patch,
        patch=patch,
        width=width,
        depth=int(config["encoder_num_hidden_layers"]),
        heads=width // HEAD,
        hidden=hidden[0] if hidden else None,
        table=TABLES[kind],
        norm="plain",
        pixel_mean=_three(tensors["encoder_mean"]),
        pixel_std=_three(tensors["encoder_std"]),
    )


def encoder_from_diffusers(tensors: State, encoder: ViT) -> dict[str, Tensor]:
    """Return the encoder's tensors under our names.

    Args:
        tensors: the file's, also as transformers named them before its version 5.
        encoder: of encoder_of.
    """
    rules = (*FORMER, *(FORMER_MAE if encoder.kind == "mae" else ()))
    renamed = dict[str, Tensor]()
    for name, value in tensors.items():
        if not name.startswith("encoder.") or name.startswith("encoder.head."):
            continue
        inner = name.removeprefix("encoder.")
        for former, now in rules:
            inner = re.sub(former, now, inner)
        renamed[f"encoder.model.{inner}"] = value
    return renamed


def decoder_from_diffusers(tensors: State, config: Mapping[str, Any], grid: int) -> dict[str, Tensor]:
    """Return the decoder's tensors under the authors' names, with the table of positions, which is computed there.

    It spreads 16 steps over any grid, so it is the authors' table for grids of 16 alone.

    Args:
        tensors: the file's.
        config: of the folder.
        grid: side of the tokens.
    """
    width = int(config["decoder_hidden_size"])
    renamed = {_swap(name.removeprefix("decoder."), 1): value for name, value in tensors.items()
               if name.startswith("decoder.")}  # fmt: skip
    return {"decoder_pos_embed": _table(width, grid), **renamed}


def statistics_of(tensors: State, config: Mapping[str, Any], dim: int) -> tuple[Tensor, Tensor]:
    """Return mean and divisor of the latents, [C, 1, 1] or [C, h, w]: those of the class's own formula.

    Args:
        tensors: the file's.
        config: of the folder.
        dim: numbers of a token.
    """
    scale = float(config.get("scaling_factor") or 1.0)
    mean, std = tensors["_latents_mean"].double(), (tensors["_latents_std"].double() + EPS) / scale
    mean, std = (value.reshape(-1, 1, 1) if value.ndim < 3 else value for value in (mean, std))
    mean, std = torch.broadcast_tensors(mean, std)
    return mean.expand(dim, *mean.shape[1:]).float().contiguous(), std.expand(dim, *std.shape[1:]).float().contiguous()


def to_autoencoder_rae(net: RAENet) -> tuple[Json, dict[str, Tensor]]:
    """Return the config and the tensors of an AutoencoderRAE.

    Args:
        net: UserError for one whose encoder the class cannot be.
    """
    spec: RAE = net.spec
    encoder: Any = spec.encoder
    kinds = {DINOv2: "dinov2", SigLIP2: "siglip2", MAE: "mae"}
    kind = encoder.kind if isinstance(encoder, ViT) else kinds.get(type(encoder))
    if kind is None or encoder.norm != "plain":
        raise UserError(f"an AutoencoderRAE has dinov2, siglip2 or mae with norm plain; this encoder is {encoder}")
    model = net.encoder.model if net.encoder is not None else encoder.load().model
    off = float((net.decoder.decoder_pos_embed - _table(spec.width, net.grid)).abs().max())
    if off > 1e-5:
        raise UserError(
            f"an AutoencoderRAE computes its table of positions, in {STEPS} steps for any grid; this decoder's, of "
            f"{net.grid}, differs by up to {off:.3g}: export it --to rae_autoencoder"
        )
    inner = model.config
    heads, table = inner.hidden_size // HEAD, TABLES[kind]
    fixed = {"num_attention_heads": heads, "image_size": table}
    if wrong := [f"{key} {getattr(inner, key)} (there {value})" for key, value in fixed.items()
                 if getattr(inner, key) != value]:  # fmt: skip
        raise UserError(f"an AutoencoderRAE cannot have this encoder: {', '.join(wrong)}")
    config: Json = {
        "encoder_type": kind,
        "encoder_hidden_size": inner.hidden_size,
        "encoder_patch_size": inner.patch_size,
        "encoder_num_hidden_layers": inner.num_hidden_layers,
        "decoder_hidden_size": spec.width,
        "decoder_num_hidden_layers": spec.depth,
        "decoder_num_attention_heads": spec.heads,
        "decoder_intermediate_size": spec.hidden,
        "patch_size": spec.patch,
        "encoder_input_size": inner.patch_size * encoder.grid,
        "image_size": spec.size,
        "num_channels": spec.channels,
        "encoder_norm_mean": net.pixel_mean.expand(3, 1, 1).flatten().tolist(),
        "encoder_norm_std": net.pixel_std.expand(3, 1, 1).flatten().tolist(),
    }
    tensors = {f"decoder.{_swap(name, 0)}": value for name, value in net.decoder.state_dict().items()
               if name != "decoder_pos_embed"}  # fmt: skip
    tensors |= {f"encoder.{name}": value for name, value in model.state_dict().items()}
    tensors |= {
        "encoder_mean": net.pixel_mean.expand(3, 1, 1)[None],
        "encoder_std": net.pixel_std.expand(3, 1, 1)[None],
    }
    if (stated := net.statistics) is not None:
        mean, std = stated.mean, (stated.std.double() - EPS).to(stated.std)
        config |= {"latents_mean": mean.tolist(), "latents_std": std.tolist()}
        return config, tensors | {"_latents_mean": mean, "_latents_std": std}
    return config, tensors | {"_latents_mean": torch.zeros(1), "_latents_std": torch.ones(1)}


def _table(width: int, grid: int) -> Tensor:
    """Return the table of positions of diffusers' decoder, with a row of zeros for the class token."""
    step = STEPS / grid
    table = grid_embedding(width, grid, steps=(step, step), device="cpu").float()
    return torch.cat([torch.zeros(1, width, device="cpu"), table])[None]


def _three(value: Tensor) -> tuple[float, float, float]:
    red, green, blue = value.flatten().tolist()
    return red, green, blue


def _swap(name: str, which: int) -> str:
    """Return a name of the decoder in the other layout; which: 0 for a name of ours, 1 for one of theirs."""
    for pair in ATTENTION:
        name = name.replace(pair[which], pair[1 - which])
    return name
