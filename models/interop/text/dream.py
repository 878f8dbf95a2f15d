"""Dream-org/Dream-v0 (Ye et al. 2025, arXiv 2508.15487), DiffuCoder, and what else is in their format."""

from __future__ import annotations

from dataclasses import dataclass

from gen.config.errors import UserError
from gen.models.interop.lib.inferred import Conversion
from gen.models.interop.lib.qwen import read_qwen
from gen.models.interop.lib.text_config import convert, has_type, mask_token_id_of, token_ids
from gen.models.interop.weights import Weights
from gen.text.decoding import Decoding

__all__ = ["DreamFolder"]

IDS, END = 152064, 151645  # the size of the published vocabulary, and its <|im_end|>, which ends a turn


@dataclass(frozen=True)
class DreamFolder:
    """Full attention; a place is predicted by the output at the one before (shift 1).

    mask_token_id: the id, None for config.json's, or else the published one, 151666. stops: None for config.json's end
    of text and, in the published vocabulary, the end of a turn. length: of the longest canvas; config.json still has
    that of the model it was made from, and its authors say 2048.
    """

    mask_token_id: int | None = None
    eos_token_ids: tuple[int, ...] | None = None
    shift: int = 1
    length: int = 2048

    def claims(self, weights: Weights) -> bool:
        return has_type(weights, "Dream", ("DreamModel",))

    def read(self, weights: Weights, preset: str | None) -> Conversion:
        fields, tensors, config = read_qwen(weights, "Dream")
        if config.get("block_size") is not None:
            raise UserError(f"config.json: block_size is {config['block_size']}; a Dream sees every place from each")
        stops = (*token_ids(config.get("eos_token_id")), *((END,) if fields["vocab_size"] == IDS else ()))
        fields |= {
            "length": min(self.length, fields["length"]),
            "shift": self.shift,
            "mask_token_id": mask_token_id_of(config, self.mask_token_id, 151666),
            "eos_token_ids": tuple(dict.fromkeys(stops)) if self.eos_token_ids is None else self.eos_token_ids,
        }
        return convert(weights, fields, tensors, preset, Decoding())
