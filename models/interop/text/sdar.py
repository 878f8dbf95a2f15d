"""JetLM/SDAR (Cheng et al. 2025, arXiv 2510.06303), dense and with experts, and Gen-Verse/TraDo: Qwen3 in blocks."""

from __future__ import annotations

from dataclasses import dataclass

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import Json, build
from gen.models.interop.lib.inferred import Conversion
from gen.models.interop.lib.qwen import read_qwen
from gen.models.interop.lib.text_config import convert, has_type, special_ids, whole_number
from gen.models.interop.weights import Weights
from gen.models.layers.experts import Experts
from gen.text.decoding import Decoding

__all__ = ["SDARFolder"]

IDS, END = 151936, 151645  # the size of the published vocabulary, and its <|im_end|>, which ends a turn
DENSE, MIXTURE = "SDARForCausalLM", "SDARMoeForCausalLM"
FIXED: Json = {"attention_bias": False, "decoder_sparse_step": 1, "mlp_only_layers": []}


@dataclass(frozen=True)
class SDARFolder:
    """Block-causal attention, no shift. Decoded with the exact cache.

    Attributes:
        mask_token_id: None for config.json's, or else the published one, 151669.
        eos_token_ids: None for config.json's end of text and, in the published vocabulary, the end of a turn.
        block_size: None for config.json's, or else that of the models without a size in their name, 4.
    """

    mask_token_id: int | None = None
    eos_token_ids: tuple[int, ...] | None = None
    block_size: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, block_size="[1, inf)")

    def claims(self, weights: Weights) -> bool:
        return has_type(weights, "sdar", (DENSE,)) or has_type(weights, "sdar_moe", (MIXTURE,))

    def read(self, weights: Weights, preset: str | None) -> Conversion:
        fields, tensors, config = read_qwen(weights, "SDAR", FIXED)
        sizes = {**config, "published": 4, "given": self.block_size}
        end_of_text = (END,) if fields["vocab_size"] == IDS else ()
        fields |= {
            "block_size": whole_number(sizes, "given", "block_size", "published"),
            **special_ids(config, self.mask_token_id, self.eos_token_ids, 151669, end_of_text),
        }
        if config.get("num_experts") is not None:
            normalised = config.get("norm_topk_prob")
            if not isinstance(normalised, bool):
                raise UserError(f"config.json: norm_topk_prob is {normalised!r}; expected true or false")
            fields["experts"] = Experts(
                count=whole_number(config, "num_experts"),
                top_k=whole_number(config, "num_experts_per_tok"),
                hidden=whole_number(config, "moe_intermediate_size"),
                normalised=normalised,
            )
        return convert(weights, fields, tensors, preset, Decoding(kv_plan=build("samplers.kv_plans", "block")))
