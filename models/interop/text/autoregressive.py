"""Folders of Llama, Qwen2 and Qwen3: next-token models, imported as block diffusion in blocks of one token."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gen.config.fields import check_fields
from gen.config.spec import Json, build
from gen.models.interop.lib.expert_tensors import StackedTensors
from gen.models.interop.lib.inferred import Conversion
from gen.models.interop.lib.qwen import read_qwen
from gen.models.interop.lib.text_config import convert, has_type, special_ids
from gen.models.interop.weights import Weights
from gen.text.decoding import Decoding

__all__ = ["AutoregressiveFolder"]

KINDS = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
NOTE = "a next-token model, which writes one token after another; gen distill adapt makes it write several at once"
QWEN_MASK = {"qwen2": 151665, "qwen3": 151669}  # ids that no token has: Fast-dLLM v2's, and SDAR's
QWEN_IDS = range(151936, 152065)  # sizes of their tables


@dataclass(frozen=True)
class AutoregressiveFolder:
    """A next-token model: blocks of one token and shift 1, so a mask is predicted from what is before it alone.

    It decodes one token after another, with an exact cache, and is what `gen distill adapt` begins with.

    Attributes:
        mask_token_id: an id that no text has, or one beyond the last, which is appended: its row of the tables is the
            mean of all rows. None for 151665 (Qwen2, as Fast-dLLM v2) or 151669 (Qwen3, as SDAR) in tables of their
            size, else to append one.
        eos_token_ids: None for config.json's end of text.
    """

    mask_token_id: int | None = None
    eos_token_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def claims(self, weights: Weights) -> bool:
        return any(has_type(weights, kind, (name,)) for kind, name in KINDS.items())

    def read(self, weights: Weights, preset: str | None) -> Conversion:
        fields, tensors, config = read_qwen(weights, "a next-token model")
        size = fields["vocab_size"]
        unused = QWEN_MASK.get(str(config.get("model_type"))) if size in QWEN_IDS else None
        ids = special_ids(config, self.mask_token_id, self.eos_token_ids, size if unused is None else unused)
        if ids["mask_token_id"] == size:
            fields, tensors = fields | {"vocab_size": size + 1}, _with_mask(tensors)
        own: Json = {"block_size": 1, "shift": 1, **ids}
        done = convert(weights, fields | own, tensors, preset, Decoding(kv_plan=build("samplers.kv_plans", "block")))
        return replace(done, notes=(NOTE, *done.notes))


def _with_mask(tensors: StackedTensors) -> StackedTensors:
    """Return the tensors with a further row, the mean of the others, in the tables of tokens."""

    def grown(table: Tensor) -> Tensor:
        return torch.cat([table, table.float().mean(0, keepdim=True).to(table.dtype)])

    tables = {name: grown(tensors[name]) for name in ("embed.weight", "head.weight") if name in tensors}
    return StackedTensors({**tensors.tensors, **tables}, tensors.parts)
