"""Folders of the DDiT of MDLM and BD3-LM, as their authors publish it for transformers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch import Tensor

from gen.config.spec import Json
from gen.models.ddit import DDiT
from gen.models.interop.lib.inferred import Conversion
from gen.models.interop.lib.text_config import checked_config, convert, rename_tensors, special_ids, whole_number
from gen.models.interop.weights import Weights
from gen.text.decoding import Decoding

__all__ = ["read_ddit"]

WHOLE = {
    "backbone.vocab_embed.embedding": "embed.weight",
    **{f"backbone.sigma_map.mlp.{i}.{end}": f"sigma_map.mlp.{i}.{end}" for i in (0, 2) for end in ("weight", "bias")},
    "backbone.output_layer.norm_final.weight": "final_norm.weight",
    "backbone.output_layer.linear.weight": "head_weight",
    "backbone.output_layer.linear.bias": "head_bias",
    "backbone.output_layer.adaLN_modulation.weight": "final_modulation.weight",
    "backbone.output_layer.adaLN_modulation.bias": "final_modulation.bias",
}
INNER = {
    "norm1": "norm1",
    "attn_q": "attn.q",
    "attn_k": "attn.k",
    "attn_v": "attn.v",
    "attn_out": "attn.o",
    "norm2": "norm2",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
    "adaLN_modulation": "adaLN_modulation",
}
UNUSED = ("sampling_eps_min", "sampling_eps_max")  # the times that BD3-LM was trained at
GPT2, END = 50258, 50256  # GPT-2's ids and a mask, and its end of text


def read_ddit(
    weights: Weights,
    name: str,
    fixed: Json,
    mask_token_id: int | None,
    eos_token_ids: tuple[int, ...] | None,
    preset: str | None,
    decoding: Decoding,
    block_size: int | None = None,
) -> Conversion:
    """Return the model of a folder.

    Args:
        weights: the file's.
        name: of the format, in words.
        fixed: values of config.json that the format fixes.
        mask_token_id: None for config.json's, or else the last id.
        eos_token_ids: None for config.json's and, of GPT-2's ids, their end of text.
        preset: published size that the weights must have, or None.
        decoding: as the model is decoded by default.
        block_size: tokens of a block; None where every position sees all.
    """
    config = checked_config(weights, name, {**fixed, "time_conditioning": False})
    vocab = whole_number(config, "vocab_size")
    fields: Json = {
        "vocab_size": vocab,
        "length": whole_number(config, "model_length"),
        "width": whole_number(config, "hidden_dim"),
        "depth": whole_number(config, "n_blocks"),
        "heads": whole_number(config, "n_heads"),
        "cond_width": whole_number(config, "cond_dim"),
        "tied": False,
        "block_size": block_size,
        **special_ids(config, mask_token_id, eos_token_ids, vocab - 1, (END,) if vocab == GPT2 else ()),
    }
    tensors = rename_tensors(_separate(weights.tensors), "backbone.blocks", WHOLE, INNER)
    unused = {key: "is of its training" for key in UNUSED if key in tensors}
    conversion = convert(weights, fields, tensors.without(unused), preset, decoding, DDiT)
    return dataclasses.replace(conversion, dropped={**conversion.dropped, **unused})


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors, the products of queries, keys and values by themselves."""
    out = dict[str, Tensor]()
    for name, tensor in tensors.items():
        if name.endswith(".attn_qkv.weight"):
            for kind, part in zip("qkv", tensor.chunk(3), strict=True):
                out[name.replace("attn_qkv", f"attn_{kind}")] = part.clone()
        else:
            out[name] = tensor
    return out
