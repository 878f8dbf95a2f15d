"""GSAI-ML/LLaDA-8B, LLaDA-1.5 and what was trained in their format (Nie et al. 2025, arXiv 2502.09992)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gen.models.interop.lib.inferred import Found
from gen.models.interop.lib.text_config import checked, found, ids, is_of, mask_of, number, renamed, whole
from gen.models.interop.weights import Weights
from gen.text.decoding import Decoding

__all__ = ["LLaDAFolder"]

WHOLE = {
    "model.transformer.wte.weight": "embed.weight",
    "model.transformer.ln_f.weight": "norm.weight",
    "model.transformer.ff_out.weight": "head.weight",
}
INNER = {
    "attn_norm": "norm1",
    "q_proj": "attn.q",
    "k_proj": "attn.k",
    "v_proj": "attn.v",
    "attn_out": "attn.o",
    "ff_norm": "norm2",
    "ff_proj": "mlp.w1",
    "up_proj": "mlp.w3",
    "ff_out": "mlp.w2",
}
# What their code could do otherwise, and this network cannot.
FIXED = {
    "block_type": "llama",
    "block_group_size": 1,
    "activation_type": "silu",
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "bias_for_layer_norm": False,
    "attention_layer_norm": False,
    "include_bias": False,
    "multi_query_attention": False,
    "rope": True,
    "alibi": False,
    "input_emb_norm": False,
    "scale_logits": False,
    "clip_qkv": None,
}
IDS, EOT = 126464, 126348  # the size of the published vocabulary, and its <|eot_id|>, which ends a turn


@dataclass(frozen=True)
class LLaDAFolder:
    """Full attention, no shift. mask: the id, None for config.json's, or else the published one, 126336.

    eos_token_ids: None for config.json's end of text and, in the published vocabulary, the end of a turn.
    """

    mask_token_id: int | None = None
    eos_token_ids: tuple[int, ...] | None = None

    def claims(self, weights: Weights) -> bool:
        return is_of(weights, "llada", ("LLaDAModelLM",))

    def read(self, weights: Weights, preset: str | None) -> Found:
        config = checked(weights, "LLaDA", FIXED)
        width, vocab = whole(config, "d_model"), whole(config, "embedding_size", "vocab_size")
        wide = config.get("mlp_hidden_size") is not None
        stops = (*ids(config.get("eos_token_id")), *((EOT,) if vocab == IDS else ()))
        fields: dict[str, Any] = {
            "vocab_size": vocab,
            "length": whole(config, "max_sequence_length"),
            "width": width,
            "depth": whole(config, "n_layers"),
            "heads": whole(config, "n_heads"),
            "kv_heads": whole(config, "n_kv_heads", "n_heads"),
            "hidden": whole(config, "mlp_hidden_size") if wide else whole(config, "mlp_ratio") * width,
            "theta": float(number(config, "rope_theta")),
            "norm_eps": number(config, "rms_norm_eps"),
            "qkv_bias": bool(config.get("include_qkv_bias")),
            "tied": bool(config.get("weight_tying")),
            "mask_token_id": mask_of(config, self.mask_token_id, 126336),
            "eos_token_ids": stops if self.eos_token_ids is None else self.eos_token_ids,
        }
        tensors = renamed(weights.tensors, "model.transformer.blocks", WHOLE, INNER)
        return found(weights, fields, tensors, preset, Decoding())
