"""Efficient-Large-Model/Fast_dLLM_v2 (Wu et al. 2025, arXiv 2509.26328): Qwen2.5 that writes in blocks."""

from __future__ import annotations

from dataclasses import dataclass

from gen.config.fields import check_fields
from gen.config.spec import build
from gen.models.interop.lib.inferred import Conversion
from gen.models.interop.lib.qwen import read_qwen
from gen.models.interop.lib.text_config import convert, has_type, special_ids, whole_number
from gen.models.interop.weights import Weights
from gen.text.decoding import Decoding

__all__ = ["FastDLLMFolder"]


@dataclass(frozen=True)
class FastDLLMFolder:
    """Block-causal attention in blocks of bd_size tokens, 32 as published; shift 1. Decoded with the exact cache.

    Attributes:
        mask_token_id: None for config.json's, or else the published one, 151665.
        eos_token_ids: None for config.json's end of text.
    """

    mask_token_id: int | None = None
    eos_token_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def claims(self, weights: Weights) -> bool:
        return has_type(weights, "Fast_dLLM_Qwen", ("Fast_dLLM_QwenForCausalLM",))

    def read(self, weights: Weights, preset: str | None) -> Conversion:
        fields, tensors, config = read_qwen(weights, "Fast-dLLM v2")
        fields |= {
            "block_size": whole_number({**config, "published": 32}, "bd_size", "published"),
            "shift": 1,
            **special_ids(config, self.mask_token_id, self.eos_token_ids, 151665),
        }
        return convert(weights, fields, tensors, preset, Decoding(kv_plan=build("samplers.kv_plans", "block")))
