"""The names of a DiT's weights here and in diffusers' DiTTransformer2DModel, both ways.

There q, k and v are three matrices, and every block has an embedder of time and class of its own, all alike.
"""

from __future__ import annotations

import re

from torch import Tensor, cat

from gen.config.errors import UserError
from gen.models.interop.weights import State

__all__ = ["NOTE", "from_diffusers", "to_diffusers"]

NOTE = "gen.json"  # beside an exported config.json: what that cannot say

WHOLE = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}
BLOCK = {
    "adaLN_modulation.1": "norm1.linear",
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
}
QKV = ("attn1.to_q", "attn1.to_k", "attn1.to_v")
EMBEDDERS = {
    "t_embedder.mlp.0": "timestep_embedder.linear_1",
    "t_embedder.mlp.2": "timestep_embedder.linear_2",
    "y_embedder.embedding_table": "class_embedder.embedding_table",
}


def to_diffusers(state: State, depth: int) -> dict[str, Tensor]:
    """Return our weights under diffusers' names; pos_embed, which it computes, is left out.

    Args:
        state: state dict of a DiT.
        depth: number of blocks.
    """
    theirs: dict[str, Tensor] = {}
    for name, value in state.items():
        stem, _, kind = name.rpartition(".")  # "blocks.3.mlp.fc1", "weight"
        in_block = re.fullmatch(r"blocks\.(\d+)\.(.*)", stem)
        if name == "pos_embed":
            continue
        if stem in EMBEDDERS:
            theirs |= {f"transformer_blocks.{i}.norm1.emb.{EMBEDDERS[stem]}.{kind}": value for i in range(depth)}
        elif in_block and in_block[2] == "attn.qkv":
            parts = zip(QKV, value.chunk(3), strict=True)
            theirs |= {f"transformer_blocks.{in_block[1]}.{part}.{kind}": third for part, third in parts}
        elif in_block:
            theirs[f"transformer_blocks.{in_block[1]}.{BLOCK[in_block[2]]}.{kind}"] = value
        else:
            theirs[f"{WHOLE[stem]}.{kind}"] = value
    return theirs


def from_diffusers(state: State) -> dict[str, Tensor]:
    """Return diffusers' weights under our names; unknown names stay as they are.

    Args:
        state: state dict of a DiTTransformer2DModel; UserError if its blocks embed time differently.
    """
    ours: dict[str, Tensor] = {}
    embedders, blocks, whole = ({theirs: mine for mine, theirs in table.items()} for table in (EMBEDDERS, BLOCK, WHOLE))
    for name, value in state.items():
        stem, _, kind = name.rpartition(".")
        in_block = re.fullmatch(r"transformer_blocks\.(\d+)\.(.*)", stem)
        part = in_block[2] if in_block else ""
        if in_block and part.removeprefix("norm1.emb.") in embedders:
            mine = f"{embedders[part.removeprefix('norm1.emb.')]}.{kind}"
            _same(name, ours.setdefault(mine, value), value)
        elif in_block and part in blocks:
            ours[f"blocks.{in_block[1]}.{blocks[part]}.{kind}"] = value
        elif in_block and part == QKV[0]:
            thirds = [f"transformer_blocks.{in_block[1]}.{third}.{kind}" for third in QKV]
            if missing := [third for third in thirds if third not in state]:
                raise UserError(f"no {missing[0]}, but its {name} is there")
            ours[f"blocks.{in_block[1]}.attn.qkv.{kind}"] = cat([state[third] for third in thirds])
        elif part not in QKV[1:]:
            ours[f"{whole[stem]}.{kind}" if stem in whole else name] = value
    return ours


def _same(name: str, first: Tensor, other: Tensor) -> None:
    if first.shape != other.shape or not bool((first == other).all()):
        by = float((first - other).abs().max()) if first.shape == other.shape else float("inf")
        raise UserError(
            f"{name} differs from that of another block by {by:.3g}: this network embeds time and class once, for all"
        )
