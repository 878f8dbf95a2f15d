"""DiT folders of diffusers, and of the Hub: DiTTransformer2DModel, or Transformer2DModel as it was called before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gen.config.errors import UserError
from gen.config.reading import read_json
from gen.config.spec import Json, build, convert
from gen.config.trust import external_names
from gen.diffusion.net import sides
from gen.diffusion.parameterisation import X0, Eps, Parameterisation, V
from gen.diffusion.path import DDPM, NoisePath, ZeroSNR
from gen.models.dit import DiT
from gen.models.interop.diffusers_names import NOTE, from_diffusers
from gen.models.interop.lib.inferred import SD_VAE, Conversion, Reader, cfg_spec, check_table
from gen.models.interop.weights import Weights
from gen.models.layers.embed import grid_embedding
from gen.training.run import Run, Sampler

__all__ = ["DiffusersFolder", "read_scheduler"]

CLASSES = ("DiTTransformer2DModel", "Transformer2DModel")
# What diffusers' code could do otherwise, and this network cannot.
FIXED = {
    "activation_fn": "gelu-approximate",
    "norm_type": "ada_norm_zero",
    "attention_bias": True,
    "norm_elementwise_affine": False,
}
SIZES = ("sample_size", "patch_size", "in_channels", "num_attention_heads", "attention_head_dim", "num_layers")
PREDICTIONS: dict[str, Parameterisation] = {"epsilon": Eps(), "sample": X0(), "v_prediction": V()}
SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}


@dataclass(frozen=True)
class DiffusersFolder:
    """A DiT with diffusers' own waves (freq_shift 1) and its norms' eps, on the table of the scheduler beside it.

    Sampled by 250 steps of DDIM at the timesteps that the scheduler's timestep_spacing says, guided by 4 on all
    channels: DiTPipeline's defaults but for its 50 steps. A folder that `gen export` wrote also says the time
    convention, what the output means, and how it is sampled.
    """

    def claims(self, weights: Weights) -> bool:
        block, names = "transformer_blocks.0", weights.tensors.keys()
        joint = f"{block}.attn.add_k_proj.weight" in names  # SD3's blocks have a norm of that name too
        return weights.config is not None and f"{block}.norm1.linear.weight" in names and not joint

    def read(self, weights: Weights, preset: str | None) -> Conversion:
        if preset is not None:
            raise UserError(f"preset {preset!r}: a diffusers folder says its sizes in config.json; leave it out")
        note = _note(weights)
        model = _model(_checked(weights), weights, note.get("model", {}))
        tensors, notes = _tensors(weights, model)
        path, parameterisation, sampler, more = _conventions(weights, note, model)
        return Conversion(
            Run(model=model, path=path, parameterisation=parameterisation, sampler=sampler, ema=()),
            tensors,
            SD_VAE,
            notes=(*notes, *more),
        )


def _checked(weights: Weights) -> Json:
    """Return config.json; UserError unless it is of a network that ours can be."""
    config = weights.config
    if config is None:
        raise UserError(f"{weights.folder} has no config.json beside the weights, which says what they are")
    if config.get("_class_name") not in CLASSES:
        raise UserError(f"config.json is of {config.get('_class_name')!r}; allowed: {', '.join(CLASSES)}")
    for key, value in FIXED.items():
        if config.get(key, value) != value:
            raise UserError(f"config.json: {key} is {config[key]!r}; only {value!r} is the DiT's")
    for key in SIZES:
        if not isinstance(config.get(key), int):
            raise UserError(f"config.json: {key} is {config.get(key)!r}; expected a whole number")
    return config


def _model(config: Json, weights: Weights, said: Json) -> DiT:
    channels = config["in_channels"]
    out = config.get("out_channels") or channels
    if out not in (channels, 2 * channels):
        raise UserError(f"config.json: out_channels {out} for in_channels {channels}; allowed: as many, or twice")
    table = "transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"
    fields = {
        "size": config["sample_size"],
        "patch": config["patch_size"],
        "channels": channels,
        "classes": Reader(weights.tensors, "diffusers' DiT").shape(table, 2)[0] - 1,
        "width": config["num_attention_heads"] * config["attention_head_dim"],
        "depth": config["num_layers"],
        "heads": config["num_attention_heads"],
        "learn_sigma": out == 2 * channels,
        "freq_shift": 1,
        "mlp_norm_eps": config.get("norm_eps", 1e-5),
    }
    return build("models", {"name": "dit", **fields, **said})


def _tensors(weights: Weights, model: DiT) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the tensors under our names, with the table of positions, which theirs computes; and notes."""
    tensors, label = from_diffusers(weights.tensors), "y_embedder.embedding_table.weight"
    tensors[label] = tensors[label][: model.classes + 1]  # the last may be repeated for DiTPipeline
    table = grid_embedding(model.width, *(side // model.patch for side in sides(model)))[None]
    theirs = tensors.pop("pos_embed.pos_embed", None)  # some versions wrote it
    if theirs is not None:
        check_table("pos_embed.pos_embed", theirs, table)
    notes = ("q, k and v joined; the embedders of all blocks are one",)
    return {**tensors, "pos_embed": table if theirs is None else theirs}, notes


def _note(weights: Weights) -> Json:
    """Return what `gen export` wrote beside the config: values only, and names of gen's own parts only."""
    file = None if weights.folder is None else weights.folder / NOTE
    if file is None or not file.exists():
        return {}
    said = read_json(file, constants=True)
    fields = {"classes", "time_scale", "time_convention", "freq_shift"}
    if not isinstance(said, dict) or not set(said.get("model", {})) <= fields:
        raise UserError(f"{file} is none that gen export writes")
    for part in ("path", "parameterisation", "sampler"):
        if not isinstance(said.get(part), Mapping) or external_names(said[part]):
            raise UserError(f"{file}: {part} is {said.get(part)!r}; allowed: a spec of gen's own")
    return said


def _conventions(weights: Weights, said: Json, model: DiT) -> tuple[Any, Any, Sampler, tuple[str, ...]]:
    """Return path, parameterisation, sampler and notes: our own note's, the scheduler's, or the DiT's."""
    if said:
        sampler = convert(said["sampler"], Sampler, f"{NOTE}: sampler")
        parts = build("diffusion.path", said["path"]), build("diffusion.parameterisation", said["parameterisation"])
        return *parts, sampler, ()
    folder = weights.folder
    file = None if folder is None else folder.parent / "scheduler" / "scheduler_config.json"
    config = (
        read_json(file, constants=True)
        if file and folder and folder.name == "transformer" and file.exists()
        else PUBLISHED
    )
    path, parameterisation, grid, notes = read_scheduler(config, file)
    return path, parameterisation, Sampler("ddim", min(250, int(path.t1)), grid, cfg_spec(model, 4.0)), notes


def read_scheduler(config: Json, file: object) -> tuple[NoisePath, Parameterisation, Json, tuple[str, ...]]:
    """Return the path, the parameterisation, the grid and notes of a scheduler; UserError for one of another kind.

    Args:
        config: content of scheduler_config.json.
        file: its name, for errors.
    """
    kind, schedule = config.get("prediction_type", "epsilon"), config.get("beta_schedule")  # flow's have no betas
    changed = [key for key in CHANGES if config.get(key)]
    if kind not in PREDICTIONS or schedule not in SCHEDULES or changed:
        raise UserError(
            f"{file}: prediction_type {kind!r}, beta_schedule {schedule!r}{''.join(f', {key}' for key in changed)}; "
            f"allowed: {', '.join(PREDICTIONS)} on {', '.join(SCHEDULES)}, without {', '.join(CHANGES)}"
        )
    path = _table(config, SCHEDULES[schedule])
    grid, notes = _grid(config, int(path.t1))
    return path, PREDICTIONS[kind], grid, notes


def _table(config: Json, schedule: str) -> NoisePath:
    """Return the path of a scheduler's betas."""
    table = {key: config[name] for key, name in TABLE.items() if name in config}
    path: DDPM = build("diffusion.path", "ddpm", schedule=schedule, **table)
    return ZeroSNR(path) if config.get("rescale_betas_zero_snr") else path


def _grid(config: Json, total: int) -> tuple[Json, tuple[str, ...]]:
    """Return the timesteps of a scheduler as a grid, and notes of what it does and DDIM here does not."""
    owner, notes = config.get("_class_name", "DDIMScheduler"), []
    if owner not in SPACED:
        notes.append(f"the timesteps are DDIMScheduler's, not those of {owner}")
    spacing = config.get("timestep_spacing") or ("leading" if owner in SPACED else "linspace")
    if spacing not in ("leading", "trailing", "linspace"):
        raise UserError(f"scheduler_config.json: timestep_spacing {spacing!r}; allowed: leading, trailing, linspace")
    offset = (config.get("steps_offset") or 0) if spacing == "leading" else 0
    for key in ("clip_sample", "thresholding"):
        if config.get(key, key == "clip_sample" and owner in SPACED[:2]):
            notes.append(f"its {key} is not applied")
    grid: Json = {"name": "timesteps", "spacing": spacing, "total": total, "offset": offset}
    if not config.get("set_alpha_to_one", True):  # the loop ends at the table's first entry
        if spacing == "trailing" or offset:
            grid["stop"] = 0
        else:
            notes.append("the last step ends in clean data, there where it began (set_alpha_to_one false)")
    return grid, tuple(notes)


# Of facebook/DiT-XL-2-256, for a folder without a scheduler.
PUBLISHED: Json = {"beta_schedule": "linear", "timestep_spacing": "leading", "clip_sample": False}
SPACED = ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler")  # whose spacing is "leading" where the file says none
# Settings that change the table of betas.
CHANGES = ("trained_betas", "use_flow_sigmas")
TABLE = {"steps": "num_train_timesteps", "beta_start": "beta_start", "beta_end": "beta_end"}
