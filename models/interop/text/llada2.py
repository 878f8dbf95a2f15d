"""inclusionAI/LLaDA2.0 and 2.1, mini and flash (Bie et al. 2025, arXiv 2512.15745): a mixture of experts in blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import Json, build
from gen.models.interop.lib.inferred import Conversion
from gen.models.interop.lib.text_config import (
    checked_config,
    convert,
    has_type,
    number,
    rename_tensors,
    special_ids,
    whole_number,
    with_rotary,
)
from gen.models.interop.weights import Weights
from gen.models.layers.experts import Experts
from gen.text.decoding import Decoding

__all__ = ["LLaDA2Folder"]

IDS, END = 157184, 156892  # the size of the published vocabulary, and its end of text
LAYERS = "model.layers"
WHOLE = {
    "model.word_embeddings.weight": "embed.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "head.weight",
}
INNER = {
    "input_layernorm": "norm1",
    "attention.query": "attn.q",
    "attention.key": "attn.k",
    "attention.value": "attn.v",
    "attention.query_layernorm": "attn.q_norm",
    "attention.key_layernorm": "attn.k_norm",
    "attention.dense": "attn.o",
    "post_attention_layernorm": "norm2",
    "mlp.gate_proj": "mlp.w1",
    "mlp.up_proj": "mlp.w3",
    "mlp.down_proj": "mlp.w2",
    "mlp.gate": "mlp.router",
    "mlp.shared_experts.gate_proj": "mlp.shared.w1",
    "mlp.shared_experts.up_proj": "mlp.shared.w3",
    "mlp.shared_experts.down_proj": "mlp.shared.w2",
}
# What config.json may say, and the published code does not do or this network cannot.
FIXED: Json = {
    "hidden_act": "silu",
    "use_bias": False,
    "norm_head": False,
    "use_sliding_window": False,
    "score_function": "sigmoid",
    "norm_topk_prob": True,
}


@dataclass(frozen=True)
class LLaDA2Folder:
    """Block-causal attention in blocks of 32, no shift; the router of DeepSeek-V3. Decoded with the exact cache.

    Attributes:
        mask_token_id: None for config.json's, or else the published one, 156895.
        eos_token_ids: None for config.json's end of text and, in the published vocabulary, 156892.
        block_size: None for config.json's, or else 32, as published.
        threshold: tokens of a larger probability are committed; .95 as published for 2.0.
    """

    mask_token_id: int | None = None
    eos_token_ids: tuple[int, ...] | None = None
    block_size: int | None = None
    threshold: float = 0.95

    def __post_init__(self) -> None:
        check_fields(self, block_size="[1, inf)", threshold="[0, 1]")

    def claims(self, weights: Weights) -> bool:
        return has_type(weights, "llada2_moe", ("LLaDA2MoeModelLM", "LLaDA2MoeModel"))

    def read(self, weights: Weights, preset: str | None) -> Conversion:
        config = with_rotary(checked_config(weights, "LLaDA2", FIXED), "LLaDA2")
        width, heads = whole_number(config, "hidden_size"), whole_number(config, "num_attention_heads")
        key_heads = whole_number(config, "num_key_value_heads", "num_attention_heads")
        dim = whole_number({**config, "default": width // heads}, "head_dim", "default")
        rotary = int(dim * number({**config, "default": 1}, "partial_rotary_factor", "default"))
        if config.get("rotary_dim") not in (None, rotary):
            raise UserError(f"config.json: rotary_dim is {config['rotary_dim']}; partial_rotary_factor says {rotary}")
        split = _split_heads(weights.tensors, heads, key_heads, dim, rotary)
        tensors = rename_tensors(split, LAYERS, WHOLE, INNER)
        vocab, sizes = whole_number(config, "vocab_size"), {**config, "published": 32, "given": self.block_size}
        fields: Json = {
            "vocab_size": vocab,
            "length": whole_number(config, "max_position_embeddings"),
            "width": width,
            "depth": whole_number(config, "num_hidden_layers"),
            "heads": heads,
            "kv_heads": key_heads,
            "head_dim": None if dim * heads == width else dim,
            "hidden": whole_number(config, "intermediate_size"),
            "experts": _experts(config, any(name.endswith(".expert_bias") for name in tensors)),
            "theta": float(number(config, "rope_theta")),
            "rotary": None if rotary == dim else rotary,
            "norm_eps": number(config, "rms_norm_eps"),
            "qkv_bias": bool(config.get("use_qkv_bias")),
            "qk_norm": bool(config.get("use_qk_norm")),
            "tied": bool(config.get("tie_word_embeddings")),
            "block_size": whole_number(sizes, "given", "block_size", "published"),
            **special_ids(config, self.mask_token_id, self.eos_token_ids, 156895, (END,) if vocab == IDS else ()),
        }
        policy = build("samplers.decoding_policies", {"name": "threshold", "threshold": self.threshold, "strict": True})
        decoding = Decoding(policy=policy, kv_plan=build("samplers.kv_plans", "block"))
        return convert(weights, fields, tensors, preset, decoding)


def _experts(config: Json, bias: bool) -> Experts:
    hidden = whole_number(config, "moe_intermediate_size")
    return Experts(
        count=whole_number(config, "num_experts"),
        top_k=whole_number(config, "num_experts_per_tok"),
        hidden=hidden,
        shared=hidden * whole_number({**config, "none": 0}, "num_shared_experts", "none"),
        dense=whole_number({**config, "none": 0}, "first_k_dense_replace", "none"),
        score="sigmoid",
        bias=bias,
        groups=whole_number(config, "n_group"),
        top_groups=whole_number(config, "topk_group"),
        normalised=True,
        scale=float(number(config, "routed_scaling_factor")),
    )


def _split_heads(tensors: Mapping[str, Tensor], heads: int, key_heads: int, dim: int, rotary: int) -> dict[str, Tensor]:
    """Return the tensors with q, k and v apart, and the channels of the heads of q and k in our order.

    Theirs are rotated as pairs i, i + rotary / 2, and the last ones are not; ours are pairs i, i + dim / 2, of which
    the last are not. Products of q and k do not depend on the order.

    Args:
        tensors: the file's.
        heads, key_heads: of q, and of k and v.
        dim, rotary: channels of a head, and those that are rotated.
    """
    bounds = (0, rotary // 2), (rotary, (rotary + dim) // 2), (rotary // 2, rotary), ((rotary + dim) // 2, dim)
    order = torch.cat([torch.arange(*pair) for pair in bounds])
    out = dict[str, Tensor]()
    for name, tensor in tensors.items():
        head, _, kind = name.rpartition(".")
        if head.endswith("_layernorm") and ".attention." in head and tensor.shape == (dim,):
            out[name] = tensor[order]
        elif not head.endswith(".attention.query_key_value") or len(tensor) != (heads + 2 * key_heads) * dim:
            out[name] = tensor
        else:
            stem, parts = head.removesuffix("query_key_value"), tensor.split([heads * dim, *[key_heads * dim] * 2])
            out |= {
                f"{stem}query.{kind}": parts[0].unflatten(0, (-1, dim))[:, order].flatten(0, 1),
                f"{stem}key.{kind}": parts[1].unflatten(0, (-1, dim))[:, order].flatten(0, 1),
                f"{stem}value.{kind}": parts[2],
            }
    return out
