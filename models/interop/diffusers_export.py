"""Export of a DiT to a folder of diffusers: DiTPipeline.from_pretrained(folder) where it has an autoencoder.

Without one, DiTTransformer2DModel.from_pretrained(folder, subfolder="transformer").

Bit for bit the same weights, and the same output to rounding, or a refusal that says what diffusers' class cannot be.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.reading import read_json
from gen.config.spec import Json, spec_of
from gen.config.tensor_files import write_file
from gen.config.writing import replacing, write_json
from gen.data.lib.learned import latent_scale
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.net import sides
from gen.diffusion.parameterisation import X0, Eps, V, Velocity
from gen.diffusion.path import DDPM, Flow
from gen.models.autoencoders.lib.network import Network
from gen.models.autoencoders.rae import RAENet
from gen.models.dit import DiT
from gen.models.interop.diffusers_names import NOTE, to_diffusers
from gen.models.interop.lib.rae_folder import to_autoencoder_rae
from gen.models.layers.embed import grid_embedding
from gen.pipeline import Pipeline, load
from gen.training.run import Sampler

__all__ = ["export"]

SINCE = "0.30.0"  # of diffusers: since when the class has this name
DRIFT = 5e-3  # of an averaged table of positions; see gen.models.interop.lib.inferred
SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
PREDICTIONS = {Eps: "epsilon", X0: "sample", V: "v_prediction"}
CLASS, SCHEDULER = "DiTTransformer2DModel", "scheduler/scheduler_config.json"
ALONE = 'DiTTransformer2DModel.from_pretrained(folder, subfolder="transformer")'
FIELDS = ("classes", "time_scale", "time_convention", "freq_shift")  # which config.json does not say
NULL = 1000  # the label that DiTPipeline gives for "no class", whatever the table's size
WAVES = """for block in transformer.transformer_blocks:
    block.norm1.emb.time_proj.downscale_freq_shift = 0"""


def export(
    run: str | Path,
    out: str | Path,
    *,
    weights: str | None = None,
    patched: bool = False,
    autoencoder: str | Path | None = None,
) -> Path:
    """Write the DiT, or the autoencoder, of a run or of a checkpoint as a folder of diffusers, and return it.

    Raises UserError, in one line, for a model that the class cannot be; then, and whenever something fails, nothing is
    written.

    Args:
        run: folder of a run or of one checkpoint.
        out: the new folder.
        weights: label of an average, or "raw"; None for the first average.
        patched: also write a model of freq_shift 0, whose waves diffusers' class does not have; the README in the
            folder then has the two lines that add them.
        autoencoder: folder of the AutoencoderKL of diffusers whose latents these are; then the folder is whole, and
            DiTPipeline loads it. None for the transformer and its scheduler alone.
    """
    out = Path(out)
    if out.exists():
        raise UserError(f"{out} exists: give a new folder")
    pipeline = load(run, weights)
    denoiser = pipeline.denoiser
    model = denoiser.net.spec if isinstance(denoiser, Denoiser) else None
    if isinstance(denoiser, Denoiser) and isinstance(denoiser.net, Network):
        if patched or autoencoder is not None:
            raise UserError(f"{run} is an autoencoder: leave out --patched and --autoencoder")
        with replacing(out) as partial:
            _save_autoencoder(denoiser.net, partial)
        return out
    if not isinstance(denoiser, Denoiser) or not isinstance(model, DiT):
        raise UserError(
            f"{run} is a {type(model).__name__}; diffusers' DiTTransformer2DModel can only be a DiT. --to with the "
            "name of its origin (gen list models.interop.public) writes the published format"
        )
    _expressible(model, patched)
    state = {name: value.detach().cpu() for name, value in denoiser.net.state_dict().items()}
    drift = _check_positions(model, state["pos_embed"])
    rows = model.classes + 1
    files = {
        f"transformer/{NOTE}": _note(model, denoiser, pipeline.sampler),
        **_scheduler(model, denoiser, pipeline.sampler, whole=autoencoder is not None),
    }
    if autoencoder is not None:
        files |= _pipeline(pipeline, model, Path(autoencoder), files)
        rows = max(rows, NULL + 1)
    files["transformer/config.json"] = _config(model, rows - 1)
    tensors = to_diffusers(_with_rows(state, rows), model.depth)
    text = _readme(model, denoiser, pipeline, drift, files)
    _write(out, files, text, tensors, None if autoencoder is None else _weights_of(Path(autoencoder)))
    return out


def _save_autoencoder(net: Any, folder: Path) -> None:
    """Write an autoencoder's folder."""
    if not isinstance(net, RAENet):
        net.net.save_pretrained(folder)
        return
    config, tensors = to_autoencoder_rae(net)
    folder.mkdir()
    write_json(folder / "config.json", {"_class_name": "AutoencoderRAE", "_diffusers_version": SINCE, **config})
    write_file(folder / "diffusion_pytorch_model.safetensors", tensors)


def _pipeline(pipeline: Pipeline, model: DiT, autoencoder: Path, files: Json) -> Json:
    """Return the files that make a DiTPipeline of a transformer; UserError for what it would sample otherwise."""
    if SCHEDULER not in files:
        raise UserError(
            f"diffusers has no scheduler for {type(pipeline.denoiser.path).__name__} with this parameterisation and "
            "time: leave out --autoencoder to export the transformer alone"
        )
    if model.classes > NULL:
        raise UserError(f"DiTPipeline's label for no class is {NULL}; this model has {model.classes} classes")
    (scale, shift), config = latent_scale(pipeline.info), read_json(autoencoder / "config.json")
    if config.get("_class_name") != "AutoencoderKL":
        raise UserError(f"{autoencoder} holds a {config.get('_class_name')}; DiTPipeline decodes by an AutoencoderKL")
    wanted = (pipeline.info or {}).get("latent", {}).get("image_range") or [-1, 1]
    if list(wanted) != [-1, 1]:
        raise UserError(f"this autoencoder's images are in {list(wanted)}; DiTPipeline's are in [-1, 1]")
    if scale.numel() > 1 or float(shift.abs().max()):
        raise UserError(
            f"these latents have scale {scale.flatten().tolist()} and shift {shift.flatten().tolist()}; DiTPipeline "
            "knows one scale and no shift: leave out --autoencoder to export the transformer alone"
        )
    names = (pipeline.info or {}).get("labels") or range(model.classes)
    parts = {"scheduler": files[SCHEDULER]["_class_name"], "transformer": CLASS, "vae": "AutoencoderKL"}
    return {
        "vae/config.json": {**config, "scaling_factor": float(scale), "shift_factor": None},
        "model_index.json": {
            "_class_name": "DiTPipeline",
            "_diffusers_version": SINCE,
            "id2label": {str(i): str(name) for i, name in enumerate(names)},
            **{name: ["diffusers", owner] for name, owner in parts.items()},
        },
    }


def _weights_of(autoencoder: Path) -> Path:
    """Return the file of an autoencoder's weights."""
    file = autoencoder / "diffusion_pytorch_model.safetensors"
    if not file.is_file():
        raise UserError(f"{autoencoder} holds no {file.name}: save the autoencoder there with save_pretrained")
    return file


def _with_rows(state: Mapping[str, Tensor], rows: int) -> Mapping[str, Tensor]:
    """Return the weights with the label table's last row, "no class", repeated until there are so many rows."""
    name = "y_embedder.embedding_table.weight"
    table = state[name]
    return {**state, name: torch.cat([table, table[-1:].expand(rows - len(table), -1)])}


def _expressible(model: DiT, patched: bool) -> None:
    """Raise UserError for what DiTTransformer2DModel has no setting for."""
    for field, value in {
        "qk_norm": False,
        "mlp_ratio": 4.0,
        "mup_base": None,
        "null_class": True,
        "cond_channels": 0,
    }.items():
        if getattr(model, field) != value:
            raise UserError(f"diffusers' DiT has {field} {value} built in; this model has {getattr(model, field)}")
    if not isinstance(model.size, int):
        raise UserError(f"diffusers' DiT takes squares only; this model's x is {model.size[0]} x {model.size[1]}")
    if not model.classes:
        raise UserError("diffusers' DiT always embeds a class; this model has none")
    if model.freq_shift not in (0, 1) or (model.freq_shift == 0 and not patched):
        raise UserError(
            f"diffusers' DiT has waves of freq_shift 1 built in; this model has {model.freq_shift}, and would err in "
            "every output: give --patched to write it with a README that says which two lines mend the loaded model"
        )


def _check_positions(model: DiT, table: Tensor) -> float:
    """Return how far the table of positions is from the one diffusers will compute; UserError for another table."""
    worst = float(
        (table - grid_embedding(model.width, *(side // model.patch for side in sides(model)))[None]).abs().max()
    )
    if worst > DRIFT:
        raise UserError(f"diffusers computes pos_embed; this model's differs from it by up to {worst:.3g}")
    return worst


def _config(model: DiT, classes: int) -> Json:
    return {
        "_class_name": CLASS,
        "_diffusers_version": SINCE,
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "attention_head_dim": model.width // model.heads,
        "dropout": 0.0,
        "in_channels": model.channels,
        "norm_elementwise_affine": False,
        "norm_eps": model.mlp_norm_eps,
        "norm_num_groups": 32,
        "norm_type": "ada_norm_zero",
        "num_attention_heads": model.heads,
        "num_embeds_ada_norm": classes,
        "num_layers": model.depth,
        "out_channels": model.channels * (2 if model.learn_sigma else 1),
        "patch_size": model.patch,
        "sample_size": model.size,
        "upcast_attention": False,
    }


def _note(model: DiT, denoiser: Denoiser, sampler: Sampler) -> Json:
    """Return what config.json cannot say, for `gen import` to read back."""
    return {
        "model": {key: getattr(model, key) for key in FIELDS},
        "path": spec_of(denoiser.path),
        "parameterisation": spec_of(denoiser.parameterisation),
        "sampler": spec_of(sampler, named=False),
    }


def _scheduler(model: DiT, denoiser: Denoiser, how: Sampler, whole: bool) -> Json:
    """Return a scheduler whose timesteps and predictions are exactly this model's, if diffusers has one.

    Its times are the plan's where it can have them. For a whole pipeline that of flows is the one with which
    DiTPipeline runs, which calls scale_model_input.
    """
    path, parameterisation, grid = denoiser.path, denoiser.parameterisation, spec_of(how.grid)
    time = (model.time_scale, model.time_convention)
    if isinstance(path, DDPM) and type(parameterisation) in PREDICTIONS and time == (1.0, "noise"):
        table = {
            "beta_schedule": SCHEDULES[path.schedule],
            "num_train_timesteps": path.steps,
            "beta_start": path.beta_start,
            "beta_end": path.beta_end,
        }
        fixed = {"_class_name": "DDIMScheduler", "clip_sample": False, "set_alpha_to_one": True}
        spaced: Json = {"timestep_spacing": "trailing"}  # which even times are, too
        if grid.get("spacing") == "leading":
            spaced = {"timestep_spacing": "leading", "steps_offset": grid["offset"]}
        return {SCHEDULER: {**fixed, "prediction_type": PREDICTIONS[type(parameterisation)], **table, **spaced}}
    if isinstance(path, Flow) and parameterisation == Velocity() and time == (1000.0, "noise"):
        shift = how.grid.factor if grid["name"] == "shift" and not grid["stop"] else 1.0
        owner = "FlowMapEulerDiscreteScheduler" if whole else "FlowMatchEulerDiscreteScheduler"
        return {SCHEDULER: {"_class_name": owner, "num_train_timesteps": 1000, "shift": shift}}
    return {}


def _readme(model: DiT, denoiser: Denoiser, pipeline: Pipeline, drift: float, files: Json) -> str:
    """Return the README: what is in the folder, what is guaranteed, and what is not."""
    scheduler, whole, weights = files.get(SCHEDULER), "model_index.json" in files, pipeline.weights
    one = "1 - t" if model.time_convention == "data" else "t"
    timestep = f"{model.time_scale:g} ({one})" if model.time_scale != 1 else one
    if isinstance(denoiser.path, DDPM):
        timestep = f"{timestep}, t being the entry of the table, 0 to {denoiser.path.steps - 1}"
    mend = "Before use, run\n\n```python\n" + WAVES + "\n```\n\nwithout which every output is wrong.\n\n"
    exact = f"its table of positions is computed anew, and differs from the trained one by up to {drift:.2g}"
    return (
        "---\nlibrary_name: diffusers\n---\n\n"
        "A DiT written by gen. Load it with "
        + (_usage(pipeline, model, scheduler or {}) if whole else f"`{ALONE}`.\n\n")
        + ("" if model.freq_shift else mend)
        + f"- weights: {weights}, unchanged to the bit; "
        + ("the output is gen's to rounding\n" if drift == 0 else f"{exact}\n")
        + f"- `timestep` is {timestep}; it may be a fraction\n"
        + f"- `class_labels` are 0 to {model.classes - 1}; {model.classes} is no class\n"
        + f"- the output's first {model.channels} channels are `{json.dumps(spec_of(denoiser.parameterisation))}` "
        + f"on the path `{json.dumps(spec_of(denoiser.path))}`{', the others unused' if model.learn_sigma else ''}\n"
        + ("- scheduler/ has exactly these conventions\n" if scheduler else "- diffusers has no scheduler of these\n")
        + (
            ""
            if whole
            else "- there is no model_index.json: DiTPipeline needs an autoencoder (gen export --autoencoder)\n"
        )
    )


def _usage(pipeline: Pipeline, model: DiT, scheduler: Json) -> str:
    """Return how to sample the whole folder, there and here, to the same pictures."""
    how, spacing = pipeline.sampler, scheduler.get("timestep_spacing")
    grid = {"name": "shift", "shift": scheduler.get("shift")} if spacing is None else {
        "name": "timesteps", "spacing": spacing, "total": scheduler["num_train_timesteps"],
        "offset": scheduler.get("steps_offset", 0),
    }  # fmt: skip
    scale = getattr(how.guide, "scale", 1.0)
    there = f"pipe([0, 1], guidance_scale={scale:g}, num_inference_steps={how.steps})"
    guide = json.dumps({"name": "cfg", "scale": scale}) if scale > 1 else "none"
    return (
        f"`pipe = DiTPipeline.from_pretrained(folder)`; `{there}` then gives, for the same noise, the pictures of\n\n"
        f"```sh\ngen sample {pipeline.name} --autoencoder vae --solver euler --steps {how.steps} "
        f"--grid '{json.dumps(grid)}' --guide '{guide}'\n```\n\n"
        f"Labels 0 to {model.classes - 1}, and {NULL} for no class. It guides all channels in all steps.\n\n"
    )


def _write(output: Path, files: Json, readme: str, tensors: Mapping[str, Tensor], decoder: Path | None) -> None:
    """Write the whole folder, with a copy of the decoder's weights if there is one, or nothing."""
    from safetensors.torch import save_file

    with replacing(output) as partial:
        for name, content in files.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        (partial / "README.md").write_text(readme, encoding="utf-8")
        separate = {name: torch.empty_like(value).copy_(value) for name, value in tensors.items()}
        save_file(separate, partial / "transformer" / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
        if decoder is not None:
            shutil.copyfile(decoder, partial / "vae" / decoder.name)
