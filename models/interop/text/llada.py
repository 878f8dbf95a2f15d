"""GSAI-ML/LLaDA-8B, LLaDA-1.5 and what was trained in their format (Nie et al. 2025, arXiv 2502.09992)."""

from __future__ import annotations

from dataclasses import dataclass

from gen.config.fields import check_fields
from gen.config.spec import Json
from gen.models.interop.lib.inferred import Conversion
from gen.models.interop.lib.text_config import (
    checked_config,
    convert,
    has_type,
    number,
    rename_tensors,
    special_ids,
    whole_number,
)
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
    """Full attention, no shift.

    Attributes:
        mask_token_id: None for config.json's, or else the published one, 126336.
        eos_token_ids: None for config.json's end of text and, in the published vocabulary, the end of a turn.
    """

    mask_token_id: int | None = None
    eos_token_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def claims(self, weights: Weights) -> bool:
        return has_type(weights, "llada", ("LLaDAModelLM",))

    def read(self, weights: Weights, preset: str | None) -> Conversion:
        config = checked_config(weights, "LLaDA", FIXED)
        width, vocab = whole_number(config, "d_model"), whole_number(config, "embedding_size", "vocab_size")
        wide = config.get("mlp_hidden_size") is not None
        end_of_turn = (EOT,) if vocab == IDS else ()
        fields: Json = {
            "vocab_size": vocab,
            "length": whole_number(config, "max_sequence_length"),
            "width": width,
            "depth": whole_number(config, "n_layers"),
            "heads": whole_number(config, "n_heads"),
            "kv_heads": whole_number(config, "n_kv_heads", "n_heads"),
            "hidden": whole_number(config, "mlp_hidden_size") if wide else whole_number(config, "mlp_ratio") * width,
            "theta": float(number(config, "rope_theta")),
            "norm_eps": number(config, "rms_norm_eps"),
            "qkv_bias": bool(config.get("include_qkv_bias")),
            "tied": bool(config.get("weight_tying")),
            **special_ids(config, self.mask_token_id, self.eos_token_ids, 126336, end_of_turn),
        }
        tensors = rename_tensors(weights.tensors, "model.transformer.blocks", WHOLE, INNER)
        return convert(weights, fields, tensors, preset, Decoding())
