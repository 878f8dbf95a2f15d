"""The DiT's own layout of weights, which most of its descendants share."""

from __future__ import annotations

from typing import Any

from gen.models.dit import DiT
from gen.models.interop.lib.inferred import Reader, heads_of, pos_embed, sized
from gen.models.interop.lib.rope import head_width, rope
from gen.models.interop.weights import State, Weights

__all__ = ["MARKS", "is_plain", "read_plain"]

MARKS = ("x_embedder.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight", "final_layer.linear.weight")


def is_plain(weights: Weights) -> bool:
    """Whether the names are the DiT's, projectors beside it or not."""
    return all(mark in weights.tensors for mark in MARKS) and "cls_projectors2.weight" not in weights.tensors


def read_plain(
    tensors: State,
    origin: str,
    heads: int | None,
    preset: str | None,
    *,
    owner: Any = DiT,
    mlp: str = "fc1",
    front: int = 0,
    **kept: Any,
) -> tuple[Any, tuple[str, ...]]:
    """The sizes, from shapes, and notes; the tensors themselves have our names.

    owner: the family. mlp: the name of its first matrix; "w12" is that of two gated halves. front: how many tokens
    without a place precede the image's. kept: fields that the weights do not tell.
    """
    reader = Reader(tensors, origin)
    width, channels, patch, _ = reader.shape("x_embedder.proj.weight", 4)
    depth = reader.count("blocks")
    side, note = pos_embed(reader, width, front=front)
    out = reader.ratio(reader.shape("final_layer.linear.weight", 2)[0], patch**2, "final_layer.linear.weight")
    hidden = reader.shape(f"blocks.0.mlp.{mlp}.weight", 2)[0]
    if preset is not None and heads is None:
        heads = owner.preset(preset).heads
    table, gain = "y_embedder.embedding_table.weight", "blocks.0.attn.q_norm.weight"
    if gain in tensors:
        heads = reader.ratio(width, reader.shape(gain, 1)[0], gain)
    notes = [note]
    if mlp == "w12":
        dim = head_width(reader, "feat_rope")
        heads = reader.ratio(width, dim, "feat_rope")
        notes.append(rope(reader, "feat_rope", dim, side))
    fields = {
        "size": side * patch,
        "patch": patch,
        "channels": channels,
        "classes": reader.shape(table, 2)[0] - 1 if table in tensors else 0,
        "width": width,
        "depth": depth,
        "heads": heads_of(owner.presets, heads, width=width, depth=depth),
        "mlp_ratio": hidden / width if mlp == "fc1" else 4.0,  # two thirds of it, rounded: the shapes will tell
        "learn_sigma": reader.ratio(out, channels, "final_layer.linear.weight") == 2,
        "qk_norm": gain in tensors,
    }
    return sized(owner, preset, fields, **kept), tuple(notes)
