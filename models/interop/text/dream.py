"""Dream-org/Dream-v0 (Ye et al. 2025, arXiv 2508.15487), DiffuCoder, and what else is in their format."""

from __future__ import annotations

from dataclasses import dataclass

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.models.interop.lib.inferred import Conversion
from gen.models.interop.lib.qwen import read_qwen
from gen.models.interop.lib.text_config import convert, has_type, special_ids
from gen.models.interop.weights import Weights
from gen.text.decoding import Decoding

__all__ = ["DreamFolder"]

IDS, END = 152064, 151645  # the size of the published vocabulary, and its <|im_end|>, which ends a turn


@dataclass(frozen=True)
class DreamFolder:
    """Full attention; a position is predicted by the output at the one before.

    Attributes:
        mask_token_id: None for config.json's, or else the published one, 151666.
        eos_token_ids: None for config.json's end of text and, in the published vocabulary, the end of a turn.
        shift: 1 as published; see gen.text.contracts.Predictor.
        length: tokens of the longest canvas; config.json still has that of the model it was derived from, and its
            authors say 2048.
    """

    mask_token_id: int | None = None
    eos_token_ids: tuple[int, ...] | None = None
    shift: int = 1
    length: int = 2048

    def __post_init__(self) -> None:
        check_fields(self, shift="[0, 1]", length="[1, inf)")

    def claims(self, weights: Weights) -> bool:
        return has_type(weights, "Dream", ("DreamModel",))

    def read(self, weights: Weights, preset: str | None) -> Conversion:
        fields, tensors, config = read_qwen(weights, "Dream")
        if config.get("block_size") is not None:
            raise UserError(f"config.json: block_size is {config['block_size']}; a Dream's attention is full")
        end_of_turn = (END,) if fields["vocab_size"] == IDS else ()
        fields |= {
            "length": min(self.length, fields["length"]),
            "shift": self.shift,
            **special_ids(config, self.mask_token_id, self.eos_token_ids, 151666, end_of_turn),
        }
        return convert(weights, fields, tensors, preset, Decoding())
