"""kuleshov-group/bd3lm-owt-block_size4, 8 and 16 (Arriola et al. 2025, arXiv 2503.09573): MDLM's DDiT in blocks."""

from __future__ import annotations

from dataclasses import dataclass

from gen.config.fields import check_fields
from gen.config.spec import build
from gen.models.interop.lib.ddit_folder import read_ddit
from gen.models.interop.lib.inferred import Conversion
from gen.models.interop.lib.text_config import has_type, whole_number
from gen.models.interop.weights import Weights
from gen.text.decoding import Decoding, TokenSampling

__all__ = ["BD3LMFolder"]


@dataclass(frozen=True)
class BD3LMFolder:
    """Block-causal attention in config.json's blocks, no shift.

    Decoded by the first-hitting sampler, one random token at a time at temperature 1, with the exact cache.

    Attributes:
        mask_token_id: None for config.json's, or else the last id.
        eos_token_ids: None for config.json's and, of GPT-2's ids, 50256.
    """

    mask_token_id: int | None = None
    eos_token_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def claims(self, weights: Weights) -> bool:
        return has_type(weights, "bd3lm", ("BD3LM",))

    def read(self, weights: Weights, preset: str | None) -> Conversion:
        policy = build("samplers.decoding_policies", {"name": "topk", "k": 1, "score": "random"})
        config, size = weights.config or {}, None
        if config.get("cross_attn", True):  # or it is one block, as the model that their training begins with
            size = whole_number(config, "block_size")
            size = None if size == config.get("model_length") else size
        plan = None if size is None else build("samplers.kv_plans", "block")
        decoding = Decoding(policy, kv_plan=plan, sampling=TokenSampling(1.0))
        fixed, ids = {"adaln": True, "causal": False}, (self.mask_token_id, self.eos_token_ids)
        return read_ddit(weights, "BD3-LM", fixed, *ids, preset, decoding, size)
