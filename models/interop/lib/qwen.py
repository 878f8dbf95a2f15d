"""Folders under Qwen2's names: the formats of models that were derived from Qwen2.5."""

from __future__ import annotations

from gen.config.errors import UserError
from gen.config.spec import Json
from gen.models.interop.lib.expert_tensors import StackedTensors
from gen.models.interop.lib.text_config import checked_config, number, rename_tensors, whole_number, with_rotary
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
    "mlp.gate": "mlp.router",
}
FIXED: Json = {"hidden_act": "silu", "use_sliding_window": False, "use_mrope": False}


def read_qwen(
    weights: Weights, name: str, fixed: Json | None = None, hidden: str = "intermediate_size"
) -> tuple[Json, StackedTensors, Json]:
    """Return the fields of a Text but for its ids, the tensors under our names, and config.json.

    Args:
        weights: the file's.
        name: of the format, in words.
        fixed: further values by key that the format fixes.
        hidden: key of the channels of a SwiGLU, which may be missing where all blocks have experts.
    """
    config = with_rotary(checked_config(weights, name, FIXED | (fixed or {})), name)
    kinds = set(config.get("layer_types") or ()) - {"full_attention"}
    if kinds or config.get("partial_rotary_factor", 1) != 1:
        said = ", ".join(sorted(kinds)) or f"partial_rotary_factor is {config['partial_rotary_factor']}"
        raise UserError(f"config.json: {said}; only full attention, whose heads are rotated whole, is {name}'s")
    width, heads = whole_number(config, "hidden_size"), whole_number(config, "num_attention_heads")
    dim = whole_number({**config, "default": width // heads}, "head_dim", "default")
    tensors = weights.tensors
    fields = {
        "vocab_size": whole_number(config, "vocab_size"),
        "length": whole_number(config, "max_position_embeddings"),
        "width": width,
        "depth": whole_number(config, "num_hidden_layers"),
        "heads": heads,
        "kv_heads": whole_number(config, "num_key_value_heads", "num_attention_heads"),
        "head_dim": None if dim * heads == width else dim,
        "hidden": whole_number(config, hidden) if config.get(hidden) is not None or hidden not in config else None,
        "theta": float(number(config, "rope_theta")),
        "norm_eps": number(config, "rms_norm_eps"),
        "qkv_bias": "model.layers.0.self_attn.q_proj.bias" in tensors,
        "qk_norm": "model.layers.0.self_attn.q_norm.weight" in tensors,
        "tied": bool(config.get("tie_word_embeddings", False)),
    }
    return fields, rename_tensors(tensors, "model.layers", WHOLE, INNER), config
