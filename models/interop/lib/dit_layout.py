"""The DiT's own layout of weights, which most of its descendants share."""

from __future__ import annotations

from typing import Any

from gen.models.dit import DiT
from gen.models.interop.lib.inferred import Reader, build_spec, check_pos_embed, published_heads
from gen.models.interop.lib.rope_table import check_rope, head_width
from gen.models.interop.weights import State, Weights

__all__ = ["MARKS", "is_dit_layout", "read_dit_layout"]

MARKS = ("x_embedder.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight", "final_layer.linear.weight")


def is_dit_layout(weights: Weights) -> bool:
    """Return whether the names are the DiT's, with projectors or without.

    Args:
        weights: the file's.
    """
    return all(mark in weights.tensors for mark in MARKS) and "cls_projectors2.weight" not in weights.tensors


def read_dit_layout(
    tensors: State,
    origin: str,
    heads: int | None,
    preset: str | None,
    *,
    owner: Any = DiT,
    mlp: str = "fc1",
    front: int = 0,
    **kept: object,
) -> tuple[Any, tuple[str, ...]]:
    """Return the model's spec, with sizes from shapes, and notes; the tensors themselves have our names.

    Args:
        tensors: the file's.
        origin: in words, for errors.
        heads: of attention; None to find them by the published sizes.
        preset: published size that the weights must have, or None.
        owner: the family.
        mlp: name of the MLP's first matrix; "w12" is that of two gated halves.
        front: number of tokens without a position that precede the image's.
        **kept: fields that the weights do not show.
    """
    reader = Reader(tensors, origin)
    width, channels, patch, _ = reader.shape("x_embedder.proj.weight", 4)
    depth = reader.count("blocks")
    side, note = check_pos_embed(reader, width, front=front)
    out = reader.ratio(reader.shape("final_layer.linear.weight", 2)[0], patch**2, "final_layer.linear.weight")
    hidden = reader.shape(f"blocks.0.mlp.{mlp}.weight", 2)[0]
    if preset is not None and heads is None:
        heads = owner.preset(preset).heads
    gain, notes = "blocks.0.attn.q_norm.weight", [note]
    if gain in tensors:
        heads = reader.ratio(width, reader.shape(gain, 1)[0], gain)
    if mlp == "w12":
        dim = head_width(reader, "feat_rope")
        heads = reader.ratio(width, dim, "feat_rope")
        notes.append(check_rope(reader, "feat_rope", dim, side))
    fields = {
        "size": side * patch,
        "patch": patch,
        "channels": channels,
        "classes": reader.classes(),
        "width": width,
        "depth": depth,
        "heads": published_heads(owner.presets, heads, width=width, depth=depth),
        "mlp_ratio": hidden / width if mlp == "fc1" else 4.0,  # two thirds of it, rounded: the shapes will tell
        "learn_sigma": reader.ratio(out, channels, "final_layer.linear.weight") == 2,
        "qk_norm": gain in tensors,
    }
    return build_spec(owner, preset, fields, **kept), tuple(notes)
