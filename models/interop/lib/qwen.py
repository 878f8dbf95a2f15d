"""Folders under Qwen2's names: the formats of models that were derived from Qwen2.5."""

from __future__ import annotations

from torch import Tensor

from gen.config.errors import UserError
from gen.config.spec import Json
from gen.models.interop.lib.text_config import checked_config, number, rename_tensors, whole_number
from gen.models.interop.weights import Weights

__all__ = ["read_qwen"]

WHOLE = {
    "model.embed_tokens.weight": "embed.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "head.weight",
}
INNER = {
    "input_layernorm": "norm1",
    "self_attn.q_proj": "attn.q",
    "self_attn.k_proj": "attn.k",
    "self_attn.v_proj": "attn.v",
    "self_attn.o_proj": "attn.o",
    "self_attn.q_norm": "attn.q_norm",
    "self_attn.k_norm": "attn.k_norm",
    "post_attention_layernorm": "norm2",
    "mlp.gate_proj": "mlp.w1",
    "mlp.up_proj": "mlp.w3",
    "mlp.down_proj": "mlp.w2",
}
FIXED = {"hidden_act": "silu", "use_sliding_window": False, "use_mrope": False, "rope_scaling": None}


def read_qwen(weights: Weights, name: str) -> tuple[Json, dict[str, Tensor], Json]:
    """Return the fields of a Text but for its ids, the tensors under our names, and config.json.

    Args:
        weights: the file's.
        name: of the format, in words.
    """
    config = checked_config(weights, name, FIXED)
    kinds = set(config.get("layer_types") or ()) - {"full_attention"}
    rope = config.get("rope_parameters") or {}
    if kinds or rope.get("rope_type", "default") != "default" or config.get("rope_scaling"):
        said = ", ".join(sorted(kinds)) or f"rope {config.get('rope_scaling') or rope}"
        raise UserError(f"config.json: {said}; only full attention and plain rotary angles are {name}'s")
    width, heads = whole_number(config, "hidden_size"), whole_number(config, "num_attention_heads")
    if config.get("head_dim") not in (None, width / heads):
        raise UserError(f"config.json: head_dim is {config['head_dim']}; expected {width} / {heads}")
    tensors = weights.tensors
    fields = {
        "vocab_size": whole_number(config, "vocab_size"),
        "length": whole_number(config, "max_position_embeddings"),
        "width": width,
        "depth": whole_number(config, "num_hidden_layers"),
        "heads": heads,
        "kv_heads": whole_number(config, "num_key_value_heads", "num_attention_heads"),
        "hidden": whole_number(config, "intermediate_size"),
        "theta": float(number({**rope, **config}, "rope_theta")),
        "norm_eps": number(config, "rms_norm_eps"),
        "qkv_bias": "model.layers.0.self_attn.q_proj.bias" in tensors,
        "qk_norm": "model.layers.0.self_attn.q_norm.weight" in tensors,
        "tied": bool(config.get("tie_word_embeddings", False)),
    }
    return fields, rename_tensors(tensors, "model.layers", WHOLE, INNER), config
