"""The DiT's own layout of weights, which most of its descendants share."""

from __future__ import annotations

from typing import Any

from gen.config.errors import UserError
from gen.config.spec import Json
from gen.models.dit import DiT
from gen.models.interop.lib.inferred import Reader, build_spec, check_pos_embed, published_heads
from gen.models.interop.lib.rope_table import check_rope, head_width
from gen.models.interop.lib.settings import model_name, said_number
from gen.models.interop.weights import Weights

__all__ = ["MARKS", "grid_side", "is_dit_layout", "read_dit_layout"]

MARKS = ("x_embedder.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight", "final_layer.linear.weight")

OTHERS = ("cls_projectors2.weight", "feat_rope.freqs_cos", "blocks.0.norm1.weight")  # REG's, LightningDiT's


def is_dit_layout(weights: Weights, model: str) -> bool:
    """Return whether the names are the DiT's, with projectors or without.

    Args:
        weights: the file's.
        model: family, such as "SiT", that the file's settings must name if they name any.
    """
    named = model_name(weights)
    own = named is None or named == model
    return own and all(mark in weights.tensors for mark in MARKS) and not any(m in weights.tensors for m in OTHERS)


def read_dit_layout(
    weights: Weights,
    origin: str,
    heads: int | None,
    preset: str | None,
    *,
    owner: Any = DiT,
    front: int = 0,
    classes: int | None = None,
    size: int | None = None,
    **kept: object,
) -> tuple[Any, tuple[str, ...]]:
    """Return the model's spec, with sizes from shapes, and notes; the tensors themselves have our names.

    Args:
        weights: the file's.
        origin: in words, for errors.
        heads: of attention; None to find them by the file's settings or the published sizes.
        preset: published size that the weights must have, or None.
        owner: the family.
        front: number of tokens without a position that precede the image's.
        classes: number of classes; None for what the settings say, or one less than the table has rows.
        size: height of x, where no table of positions shows it.
        **kept: fields that the weights do not show.
    """
    tensors = weights.tensors
    reader = Reader(tensors, origin)
    width, channels, patch, _ = reader.shape("x_embedder.proj.weight", 4)
    depth, swiglu = reader.count("blocks"), "blocks.0.mlp.w12.weight" in tensors
    side, notes = grid_side(reader, width, front, size and size // patch, "feat_rope")
    out = reader.ratio(reader.shape("final_layer.linear.weight", 2)[0], patch**2, "final_layer.linear.weight")
    hidden = reader.shape(f"blocks.0.mlp.{'w12' if swiglu else 'fc1'}.weight", 2)[0]
    if preset is not None and heads is None:
        heads = owner.preset(preset).heads
    heads = heads or said_number(weights, "num_heads")
    gain = "blocks.0.attn.q_norm.weight"
    if gain in tensors:
        heads = reader.ratio(width, reader.shape(gain, 1)[0], gain)
    if "feat_rope.freqs_cos" in tensors:
        dim = head_width(reader, "feat_rope")
        heads = reader.ratio(width, dim, "feat_rope")
        notes.append(check_rope(reader, "feat_rope", dim, side))
    fields = {
        "size": side * patch,
        "patch": patch,
        "channels": channels,
        **_classes(reader, classes or said_number(weights, "num_classes"), owner),
        "width": width,
        "depth": depth,
        "heads": published_heads(owner.presets, heads, width=width, depth=depth),
        "mlp_ratio": 4.0 if swiglu else hidden / width,  # two thirds of it, rounded: the shapes will tell
        "learn_sigma": reader.ratio(out, channels, "final_layer.linear.weight") == 2,
        "qk_norm": "layer" if "blocks.0.attn.q_norm.bias" in tensors else gain in tensors,
    }
    if not issubclass(owner, DiT):
        fields |= {"rms": "blocks.0.norm1.weight" in tensors, "swiglu": swiglu}
    return build_spec(owner, preset, fields, **kept), tuple(notes)


def grid_side(reader: Reader, width: int, front: int, side: int | None, rope: str) -> tuple[int, list[str]]:
    """Return the side of the grid of positions, and notes: by a table of positions, or a rotary one, or as given.

    Args:
        reader: the tensors.
        width: columns of the table of positions.
        front: number of its rows that come first, of other tokens.
        side: None if it is not given.
        rope: name of the rotary table's module.
    """
    if "pos_embed" in reader.tensors:
        side, note = check_pos_embed(reader, width, front=front)
        return side, [note]
    if f"{rope}.freqs_cos" in reader.tensors:
        return reader.side(reader.shape(f"{rope}.freqs_cos", 2)[0]), []
    if side is None:
        raise UserError(
            f"the weights of {reader.origin} have no table of positions, and so do not show the size of x: say it, as "
            'in --from \'{"name": "rae", "size": 16}\''
        )
    return side, []


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
