"""UNet2DModel folders of diffusers, such as DDPM's for CIFAR-10, faces and rooms (Ho et al. 2020)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor, cat

from gen.config.errors import UserError
from gen.config.reading import read_json
from gen.config.spec import Json
from gen.models.interop.lib.inferred import Conversion
from gen.models.interop.public.diffusers import read_scheduler
from gen.models.interop.weights import State, Weights
from gen.models.unet import UNet
from gen.training.run import Run, Sampler

__all__ = ["UNet2DFolder"]

# What diffusers' code could do otherwise, and this network cannot.
FIXED: dict[str, tuple[object, ...]] = {
    "act_fn": ("silu", "swish"),
    "add_attention": (True,),
    "attn_norm_num_groups": (None,),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "downsample_padding": (0, 1),
    "downsample_type": ("conv",),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2D",),
    "resnet_time_scale_shift": ("default",),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "upsample_type": ("conv",),
}
DOWN, UP = ("DownBlock2D", "AttnDownBlock2D"), ("UpBlock2D", "AttnUpBlock2D")
ONCE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "class_embedding": "label_emb",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
INNER = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
    "group_norm": "norm",
    "to_out.0": "proj_out",
    "proj_attn": "proj_out",  # as it was called before
}
QKV = (("to_q", "to_k", "to_v"), ("query", "key", "value"))
VARIANCES = {
    "fixed_small": "posterior",
    "fixed_small_log": "posterior",
    "fixed_large": "beta",
    "learned_range": "learned",
}


@dataclass(frozen=True)
class UNet2DFolder:
    """A U-Net for pixels on the table of the scheduler beside it, with DDPM's blocks.

    Sampled as DDPMPipeline does under a DDPMScheduler, all timesteps with the scheduler's variance and x0 cut to
    [-1, 1]; under any other by 50 steps of DDIM.
    """

    def claims(self, weights: Weights) -> bool:
        return weights.config is not None and "down_blocks.0.resnets.0.norm1.weight" in weights.tensors

    def read(self, weights: Weights, preset: str | None) -> Conversion:
        if preset is not None:
            raise UserError(f"preset {preset!r}: a diffusers folder says its sizes in config.json; leave it out")
        config = weights.config or {}
        model = _model(config)
        scheduler = _scheduler(weights)
        path, parameterisation, grid, notes = read_scheduler(scheduler, "scheduler_config.json")
        sampler = Sampler(solver="ddim", steps=min(50, int(path.t1)), grid=grid)
        if scheduler.get("_class_name", "DDPMScheduler") == "DDPMScheduler":
            kind, clip = scheduler.get("variance_type", "fixed_small"), scheduler.get("clip_sample", True)
            if kind not in VARIANCES or (clip and scheduler.get("clip_sample_range", 1) != 1):
                raise UserError(
                    f"scheduler_config.json: variance_type {kind!r}, clip_sample_range "
                    f"{scheduler.get('clip_sample_range')!r}; allowed: {', '.join(VARIANCES)}, 1"
                )
            solver = {"name": "ancestral", "variance": VARIANCES[kind], "clip": bool(clip)}
            sampler = Sampler(solver=solver, steps=int(path.t1), grid=grid)
            notes = tuple(note for note in notes if "clip_sample" not in note)
        run = Run(model=model, path=path, parameterisation=parameterisation, sampler=sampler, ema=())
        return Conversion(run, _tensors(weights.tensors, model, config), {"autoencoder": None}, notes=notes)


def _scheduler(weights: Weights) -> Json:
    """Return the scheduler's config, beside the network's or in the pipeline's folder; DDPM's own without one."""
    folder = weights.folder
    places = () if folder is None else (folder, folder.parent / "scheduler", folder / "scheduler")
    for place in places:
        if (place / "scheduler_config.json").is_file():
            return dict(read_json(place / "scheduler_config.json", constants=True))
    return {"_class_name": "DDPMScheduler", "beta_schedule": "linear", "variance_type": "fixed_large"}


def _model(config: Json) -> UNet:
    """Return the network that config.json describes; UserError for what ours cannot be."""
    if config.get("_class_name") != "UNet2DModel":
        raise UserError(f"config.json is of {config.get('_class_name')!r}; allowed: UNet2DModel")
    for key, allowed in FIXED.items():
        if key in config and config[key] not in allowed:
            raise UserError(f"config.json: {key} is {config[key]!r}; allowed here: {', '.join(map(str, allowed))}")
    widths, down, up = (config.get(key) or [] for key in ("block_out_channels", "down_block_types", "up_block_types"))
    mirrored = [UP[DOWN.index(kind)] for kind in reversed(down) if kind in DOWN]
    if not widths or list(up) != mirrored or len(down) != len(widths):
        raise UserError(f"config.json: {down} and {up}; allowed: {', '.join(DOWN)}, the same levels down and up")
    size, channels = config.get("sample_size"), config.get("in_channels", 3)
    if not isinstance(size, int) or config.get("out_channels", channels) not in (channels, 2 * channels):
        out = config.get("out_channels")
        raise UserError(f"config.json: sample_size {size!r}, in_channels {channels}, out_channels {out}: allowed is a "
                        "square and as many channels, or twice as many")  # fmt: skip
    head_width = config.get("attention_head_dim", 8)
    return UNet(
        size=size,
        channels=channels,
        classes=config.get("num_class_embeds") or 0,
        width=widths[0],
        multipliers=tuple(each / widths[0] for each in widths),
        blocks=config.get("layers_per_block", 2),
        attention=tuple(size >> level for level, kind in enumerate(down) if kind == DOWN[1]),
        heads=1 if head_width is None else 0,
        head_width=head_width or 64,
        qkv_order="qkv",
        resampling="conv" if config.get("downsample_padding", 1) else "conv_same",
        scale_shift=False,
        groups=config.get("norm_num_groups", 32),
        norm_eps=config.get("norm_eps", 1e-5),
        learn_sigma=config.get("out_channels", channels) == 2 * channels,
        freq_shift=config.get("freq_shift", 0),
    )


def _tensors(state: State, model: UNet, config: Json) -> dict[str, Tensor]:
    """Return the tensors under our names, q, k and v joined; an unknown name stays as it is, to be reported."""
    ours: dict[str, Tensor] = {}
    for name, value in state.items():
        stem, _, kind = name.rpartition(".")
        place, _, inner = _placed(stem, model)
        if stem in ONCE:
            ours[f"{ONCE[stem]}.{kind}"] = value
        elif (part := next((names for names in QKV if inner == names[0]), None)) is not None:
            thirds = [state.get(f"{stem.removesuffix(part[0])}{third}.{kind}") for third in part]
            if any(third is None for third in thirds):
                raise UserError(f"{name} is there without {' and '.join(part[1:])}")
            ours[f"{place}.qkv.{kind}"] = _as_conv1d(cat([third for third in thirds if third is not None]))
        elif inner in INNER:
            value = _as_conv1d(value) if "proj_out" in INNER[inner] else value
            ours[f"{place}.{INNER[inner]}.{kind}"] = value
        elif inner in ("op", "conv"):
            ours[f"{place}.{inner}.{kind}"] = value
        elif not any(inner in names for names in QKV):
            ours[name] = value
    first = "time_embed.0.weight"
    if not config.get("flip_sin_to_cos", True) and first in ours:  # sines come first
        ours[first] = cat(ours[first].chunk(2, 1)[::-1], 1)
    return ours


def _placed(stem: str, model: UNet) -> tuple[str, str, str]:
    """Return our name of the block that a tensor belongs to, the kind of part, and the rest of its name."""
    match = re.fullmatch(r"(?:(down|up)_blocks\.(\d+)|mid_block)\.(\w+?)s\.(\d+)\.(.+)", stem)
    if match is None:
        return "", "", ""
    way, level, kind, j, inner = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    per, depth = model.blocks + 1, len(model.widths)
    if way is None:
        return f"middle_block.{2 * j if kind == 'resnet' else 1}", kind, inner
    if kind == "downsampler":
        return f"input_blocks.{(level + 1) * per}.0", kind, "op" if inner == "conv" else inner
    if kind == "upsampler":
        return f"output_blocks.{level * per + model.blocks}.{1 + model.attends(depth - 1 - level)}", kind, inner
    place = f"input_blocks.{1 + level * per + j}" if way == "down" else f"output_blocks.{level * per + j}"
    return f"{place}.{0 if kind == 'resnet' else 1}", kind, inner


def _as_conv1d(value: Tensor) -> Tensor:
    """Return a matrix [out, in] as the weight [out, in, 1] of a convolution; a bias as it is."""
    return value[..., None] if value.ndim == 2 else value
