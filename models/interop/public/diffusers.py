"""DiT folders of diffusers, and of the Hub: DiTTransformer2DModel, or Transformer2DModel as it was called before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gen.config.checkpoints import read_json
from gen.config.errors import UserError
from gen.config.spec import Json, build
from gen.diffusion.parameterisation import X0, Eps, V
from gen.diffusion.path import DDPM
from gen.models.dit import DiT
from gen.models.interop.diffusers_names import NOTE, from_diffusers
from gen.models.interop.lib.inferred import SD_VAE, Conversion, Reader, cfg_spec, check_table
from gen.models.interop.weights import Weights
from gen.models.layers.embed import grid_embedding
from gen.training.run import Run, Sampler

__all__ = ["DiffusersFolder"]

CLASSES = ("DiTTransformer2DModel", "Transformer2DModel")
# What diffusers' code could do otherwise, and this network cannot.
FIXED = {
    "activation_fn": "gelu-approximate",
    "norm_type": "ada_norm_zero",
    "attention_bias": True,
    "norm_elementwise_affine": False,
}
SIZES = ("sample_size", "patch_size", "in_channels", "num_attention_heads", "attention_head_dim", "num_layers")
PREDICTIONS = {"epsilon": Eps(), "sample": X0(), "v_prediction": V()}
SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}


@dataclass(frozen=True)
class DiffusersFolder:
    """A DiT with diffusers' own waves (freq_shift 1) and its norms' eps, on the table of the scheduler beside it.

    Sampled by 250 steps of DDIM, guided by 4 on all channels: DiTPipeline's defaults but for its 50 steps. A folder
    that `gen export` wrote also says the time convention, and what the output means.
    """

    def claims(self, weights: Weights) -> bool:
        return weights.config is not None and "transformer_blocks.0.norm1.linear.weight" in weights.tensors

    def read(self, weights: Weights, preset: str | None) -> Conversion:
        if preset is not None:
            raise UserError(f"preset {preset!r}: a diffusers folder says its sizes in config.json; leave it out")
        note = _note(weights)
        model = _model(_checked(weights), weights, note.get("model", {}))
        tensors, notes = _tensors(weights, model)
        path, parameterisation = _conventions(weights, note)
        grid = {"name": "timesteps", "spacing": "linspace"} if isinstance(path, DDPM) else "linear"
        sampler = Sampler(solver="ddim", steps=250, grid=grid, guide=cfg_spec(model, 4.0))
        return Conversion(
            Run(model=model, path=path, parameterisation=parameterisation, sampler=sampler, ema=()),
            tensors,
            SD_VAE,
            notes=notes,
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
    tensors, table = from_diffusers(weights.tensors), grid_embedding(model.width, model.size // model.patch)[None]
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
    said = read_json(file)
    fields = {"time_scale", "time_convention", "freq_shift"}
    if not isinstance(said, dict) or not set(said.get("model", {})) <= fields:
        raise UserError(f"{file} is none that gen export writes")
    for part in ("path", "parameterisation"):
        if not isinstance(said.get(part), Mapping) or ":" in str(said[part].get("name")):
            raise UserError(f"{file}: {part} is {said.get(part)!r}; allowed: a spec of gen's own")
    return said


def _conventions(weights: Weights, said: Json) -> tuple[Any, Any]:
    """Return path and parameterisation: from our own note, or the scheduler's config, or the published DiT's."""
    if said:
        return build("diffusion.path", said["path"]), build("diffusion.parameterisation", said["parameterisation"])
    file = None if weights.folder is None else weights.folder.parent / "scheduler" / "scheduler_config.json"
    if file is None or weights.folder is None or weights.folder.name != "transformer" or not file.exists():
        return DDPM(), Eps()
    config = read_json(file)
    kind, schedule = config.get("prediction_type", "epsilon"), config.get("beta_schedule")  # flow's have no betas
    changed = [key for key in CHANGES if config.get(key)]
    if kind not in PREDICTIONS or schedule not in SCHEDULES or changed:
        raise UserError(
            f"{file}: prediction_type {kind!r}, beta_schedule {schedule!r}{''.join(f', {key}' for key in changed)}; "
            f"allowed: {', '.join(PREDICTIONS)} on {', '.join(SCHEDULES)}, without {', '.join(CHANGES)}"
        )
    table = {key: config[name] for key, name in TABLE.items() if name in config}
    return DDPM(SCHEDULES[schedule], **table), PREDICTIONS[kind]


# Settings that change the table of betas.
CHANGES = ("trained_betas", "rescale_betas_zero_snr", "use_flow_sigmas")
TABLE = {"steps": "num_train_timesteps", "beta_start": "beta_start", "beta_end": "beta_end"}
