"""kuleshov-group/mdlm-owt (Sahoo et al. 2024, arXiv 2406.07524): the DDiT of masked diffusion."""

from __future__ import annotations

from dataclasses import dataclass

from gen.config.fields import check_fields
from gen.config.spec import build
from gen.models.interop.lib.ddit_folder import read_ddit
from gen.models.interop.lib.inferred import Conversion
from gen.models.interop.lib.text_config import has_type
from gen.models.interop.weights import Weights
from gen.text.decoding import Decoding, TokenSampling

__all__ = ["MDLMFolder"]


@dataclass(frozen=True)
class MDLMFolder:
    """Full attention, no shift. Decoded by MDLM's own sampler, at temperature 1.

    Attributes:
        mask_token_id: None for config.json's, or else the last id.
        eos_token_ids: None for config.json's and, of GPT-2's ids, 50256.
    """

    mask_token_id: int | None = None
    eos_token_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def claims(self, weights: Weights) -> bool:
        return has_type(weights, "mdlm", ("MDLM",))

    def read(self, weights: Weights, preset: str | None) -> Conversion:
        policy, schedule = build("samplers.decoding_policies", "ancestral"), build("samplers.block_schedules", "whole")
        decoding = Decoding(policy, schedule, sampling=TokenSampling(1.0))
        return read_ddit(weights, "MDLM", {}, self.mask_token_id, self.eos_token_ids, preset, decoding)
