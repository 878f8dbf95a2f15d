"""inclusionAI/LLaDA-MoE-7B-A1B (Zhu et al. 2025, arXiv 2509.24389): LLaDA with a mixture of experts."""

from __future__ import annotations

from dataclasses import dataclass

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import Json
from gen.models.interop.lib.inferred import Conversion
from gen.models.interop.lib.qwen import read_qwen
from gen.models.interop.lib.text_config import convert, has_type, special_ids, whole_number
from gen.models.interop.weights import Weights
from gen.models.layers.experts import Experts
from gen.text.decoding import Decoding

__all__ = ["LLaDAMoEFolder"]

IDS, END = 157184, 156892  # the size of the published vocabulary, and its end of text, which ends a turn too
# What config.json may say, and the published code does not do or this network cannot.
FIXED: Json = {
    "attention_bias": False,
    "norm_topk_prob": False,
    "moe_router_enable_expert_bias": False,
    "moe_router_score_function": "softmax",
    "routed_scaling_factor": 1,
    "shared_expert_intermediate_size": None,
    "clip_qkv": None,
}


@dataclass(frozen=True)
class LLaDAMoEFolder:
    """Full attention, no shift; each token is given to the experts of its largest softmax scores, which weigh them.

    Attributes:
        mask_token_id: None for config.json's, or else the published one, 156895.
        eos_token_ids: None for config.json's end of text and, in the published vocabulary, 156892.
    """

    mask_token_id: int | None = None
    eos_token_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def claims(self, weights: Weights) -> bool:
        return has_type(weights, "lladamoe", ("LLaDAMoEModelLM", "LLaDAMoEModel"))

    def read(self, weights: Weights, preset: str | None) -> Conversion:
        fields, tensors, config = read_qwen(weights, "LLaDA-MoE", FIXED, hidden="dense_intermediate_size")
        frequency, depth = config.get("moe_layer_freq"), fields["depth"]
        dense = frequency.count(0) if isinstance(frequency, list) else -1
        if frequency != [0] * dense + [1] * (depth - dense):
            raise UserError(f"config.json: moe_layer_freq is {frequency}; expected {depth} numbers, 0s and then 1s")
        end_of_text = (END,) if fields["vocab_size"] == IDS else ()
        fields |= {
            "experts": Experts(
                count=whole_number(config, "num_experts"),
                top_k=whole_number(config, "num_experts_per_tok"),
                hidden=whole_number(config, "expert_intermediate_size"),
                dense=dense,
            ),
            **special_ids(config, self.mask_token_id, self.eos_token_ids, 156895, end_of_text),
        }
        return convert(weights, fields, tensors, preset, Decoding())
