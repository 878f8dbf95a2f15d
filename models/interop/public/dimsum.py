"""VinAIResearch/DiMSUM: imnet256_510ep.pt, celeb256_225ep.pt, and what its train.py saves (Phung et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from gen.config.fields import check_fields
from gen.config.spec import Json
from gen.models.dimsum import DiMSUM
from gen.models.interop.lib.inferred import SDE, Conversion, Reader, build_spec, cfg_spec, check_pos_embed
from gen.models.interop.lib.settings import ode_plan, said_number, transport, vae_latent
from gen.models.interop.weights import State, Weights
from gen.training.run import Run, Sampler

__all__ = ["DiMSUMWeights"]


@dataclass(frozen=True)
class DiMSUMWeights:
    """The velocity towards data of the GVP path, whose t = 1 is the data, unless the file's settings say otherwise.

    The Mambas' projections of the condition are left out: the public convolution never reads what they compute. A table
    of one label, as unconditional models have, becomes part of the time embedding's bias. Guided by 4 on all channels,
    as the repository's script for ImageNet says.

    Attributes:
        heads, fusion_heads, levels: as of DiMSUM; the published models'.
        shared_every: the same; None for what the settings say, or 4, the published models'.
        sampler: "ode" or "sde", as of the origin sit.
    """

    heads: int = 16
    fusion_heads: int = 8
    levels: int = 2
    shared_every: int | None = None
    sampler: Literal["ode", "sde"] = "ode"

    def __post_init__(self) -> None:
        check_fields(self, heads="[1, inf)", fusion_heads="[1, inf)", levels="[0, inf)", shared_every="[1, inf)")

    def claims(self, weights: Weights) -> bool:
        names = ("blocks.0.spatial_mamba.mixer.A_log", "blocks.0.freq_mamba.mixer.A_log", "x_embedder.proj.weight")
        return all(name in weights.tensors for name in names)

    def read(self, weights: Weights, preset: str | None) -> Conversion:
        tensors, dropped = _without_labels(weights.tensors)
        unread = {name: "a projection that the public code does not read" for name in tensors if ".cond_proj." in name}
        tensors, dropped = {n: v for n, v in tensors.items() if n not in unread}, dropped | unread
        reader = Reader(tensors, "DiMSUM")
        width, channels, patch, _ = reader.shape("x_embedder.proj.weight", 4)
        side, note = check_pos_embed(reader, width)
        shared = self.shared_every or said_number(weights, "use_attn_every_k_layers") or DiMSUM.shared_every
        fields: Json = {
            "size": side * patch,
            "patch": patch,
            "channels": channels,
            "classes": reader.classes(),
            "width": width,
            "depth": reader.count("blocks"),
            "heads": self.heads,
            "shared_every": shared if any(name.startswith("attn_block.") for name in tensors) else 0,
            "fusion_heads": self.fusion_heads,
            "levels": self.levels,
            "state": reader.shape("blocks.0.spatial_mamba.mixer.A_log", 2)[1],
            "final_norm": "norm_f.weight" in tensors,
        }
        settings = {"path_type": "GVP", **weights.settings}
        path, parameterisation = transport(replace(weights, settings=settings), "data", ("velocity",))
        conventions: Json = {"condition": False, "time_convention": "data", "t_end": path.t1, "time_scale": 1.0}
        model = build_spec(DiMSUM, preset, fields, **conventions)
        plan = SDE if self.sampler == "sde" else ode_plan(path, parameterisation)
        sampler = Sampler(**plan, guide=cfg_spec(model, 4.0))
        run = Run(model=model, path=path, parameterisation=parameterisation, sampler=sampler, ema=())
        return Conversion(run, tensors, vae_latent(weights), dropped, (note,))


def _without_labels(tensors: State) -> tuple[State, Json]:
    """Return the tensors with a table of one label in the time embedding's bias, to which its row is always added."""
    table, bias = "y_embedder.embedding_table.weight", "t_embedder.mlp.2.bias"
    if table not in tensors or bias not in tensors or len(tensors[table]) != 1:
        return tensors, {}
    kept = {name: value for name, value in tensors.items() if name != table}
    return {**kept, bias: tensors[bias] + tensors[table][0]}, {table: "its one row is added to the time embedding"}
