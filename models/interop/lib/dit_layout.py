"""The DiT's own layout of weights, which most of its descendants share."""

from __future__ import annotations

from typing import Any

from gen.config.errors import UserError
from gen.config.spec import Json
from gen.models.dit import DiT
from gen.models.interop.lib.inferred import Reader, build_spec, check_pos_embed, published_heads
from gen.models.interop.lib.rope_table import check_rope, head_width
from gen.models.interop.lib.settings import model_name, said
from gen.models.interop.weights import Weights

__all__ = ["MARKS", "is_dit_layout", "read_dit_layout"]

MARKS = ("x_embedder.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight", "final_layer.linear.weight")


def is_dit_layout(weights: Weights, model: str | None = None) -> bool:
    """Return whether the names are the DiT's, with projectors or without.

    Args:
        weights: the file's.
        model: family, "DiT" or "SiT", that the file's settings must name if they name any.
    """
    named = model_name(weights)
    own = model is None or named is None or named == model
    return own and all(mark in weights.tensors for mark in MARKS) and "cls_projectors2.weight" not in weights.tensors


def read_dit_layout(
    weights: Weights,
    origin: str,
    heads: int | None,
    preset: str | None,
    *,
    owner: Any = DiT,
    mlp: str = "fc1",
    front: int = 0,
    classes: int | None = None,
    **kept: object,
) -> tuple[Any, tuple[str, ...]]:
    """Return the model's spec, with sizes from shapes, and notes; the tensors themselves have our names.

    Args:
        weights: the file's.
        origin: in words, for errors.
        heads: of attention; None to find them by the file's settings or the published sizes.
        preset: published size that the weights must have, or None.
        owner: the family.
        mlp: name of the MLP's first matrix; "w12" is that of two gated halves.
        front: number of tokens without a position that precede the image's.
        classes: number of classes; None for what the settings say, or one less than the table has rows.
        **kept: fields that the weights do not show.
    """
    tensors = weights.tensors
    reader = Reader(tensors, origin)
    width, channels, patch, _ = reader.shape("x_embedder.proj.weight", 4)
    depth = reader.count("blocks")
    side, note = check_pos_embed(reader, width, front=front)
    out = reader.ratio(reader.shape("final_layer.linear.weight", 2)[0], patch**2, "final_layer.linear.weight")
    hidden = reader.shape(f"blocks.0.mlp.{mlp}.weight", 2)[0]
    if preset is not None and heads is None:
        heads = owner.preset(preset).heads
    heads = heads or said(weights, "num_heads")
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
        **_classes(reader, classes or said(weights, "num_classes"), owner),
        "width": width,
        "depth": depth,
        "heads": published_heads(owner.presets, heads, width=width, depth=depth),
        "mlp_ratio": hidden / width if mlp == "fc1" else 4.0,  # two thirds of it, rounded: the shapes will tell
        "learn_sigma": reader.ratio(out, channels, "final_layer.linear.weight") == 2,
        "qk_norm": gain in tensors,
    }
    return build_spec(owner, preset, fields, **kept), tuple(notes)


def _classes(reader: Reader, classes: Any, owner: Any) -> Json:
    """Return the fields of the table of labels, whose last row may be "no class"."""
    rows = reader.classes() + 1
    if rows == 1:
        return {"classes": 0}
    if classes is None and rows % 10 == 0 and owner.presets is DiT.presets:  # 10 classes, or 9 and one row more?
        raise UserError(
            f'the table of labels has {rows} rows, and the weights do not show whether the last is "no class": '
            f'say it, as in --from \'{{"name": "dit", "classes": {rows}}}\''
        )
    if classes not in (None, rows, rows - 1):
        raise UserError(f"the table of labels has {rows} rows for {classes} classes; expected as many, or one more")
    if classes != rows:
        return {"classes": rows - 1}
    if not issubclass(owner, DiT):
        raise UserError(f'{rows} classes without a row for "no class"; a {owner.__name__} has one here')
    return {"classes": rows, "null_class": False}
