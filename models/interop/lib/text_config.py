"""Shared parts of formats of text models: checks of config.json, renaming of tensors, the tokenizer beside them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from gen.config.errors import UserError
from gen.config.reading import file_sha256
from gen.config.spec import Json
from gen.models.interop.lib.expert_tensors import StackedTensors, split_experts
from gen.models.interop.lib.inferred import Conversion, build_spec
from gen.models.interop.weights import Weights
from gen.models.text import Text
from gen.text.chat import chat_template_beside
from gen.text.decoding import Decoding
from gen.text.mask_path import LogLinear
from gen.text.tokenizers.huggingface import HuggingFace
from gen.training.run import Run

__all__ = [
    "Names",
    "checked_config",
    "convert",
    "has_type",
    "number",
    "rename_tensors",
    "special_ids",
    "whole_number",
    "with_rotary",
]

Names = Mapping[str, str]  # theirs to ours; of a block, what follows its number
# What configs of other models say of the computation, and none of these formats does.
FOREIGN: Json = {
    "quantization_config": None,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "query_pre_attn_scalar": None,
    "clip_qkv": None,
    "logit_scale": 1,
    "logits_scaling": 1,
    "embedding_multiplier": 1,
    "residual_multiplier": 1,
    "attention_multiplier": None,
    "scale_emb": 1,
    "scale_depth": None,
    "attention_sink": False,
    "use_sliding_window": False,
}
TOKENIZER = "tokenizer.json"
NO_TOKENIZER = "the file has no tokenizer.json: prompts and texts are ids, until model.tokenizer names one"


def has_type(weights: Weights, kind: str, architectures: tuple[str, ...]) -> bool:
    """Return whether config.json names one of the classes or, if it names none, is of this model_type.

    Args:
        weights: the file's.
        kind: the model_type.
        architectures: names of classes.
    """
    config = weights.config or {}
    named = config.get("architectures") or []
    if isinstance(named, list) and named:
        return any(name in architectures for name in named)
    return bool(config.get("model_type") == kind)


def checked_config(weights: Weights, name: str, fixed: Json) -> Json:
    """Return config.json; UserError where it has another value than one that this network fixes.

    Args:
        weights: the file's.
        name: of the format, in words.
        fixed: values by key, of those that may be absent.
    """
    config = weights.config
    if config is None:
        raise UserError(f"{weights.folder} has no config.json beside the weights, which says what they are")
    for key, value in (FOREIGN | fixed).items():
        given = config.get(key)
        if given is not None and given != value:
            raise UserError(f"config.json: {key} is {given!r}; only {value!r} is {name}'s")
    return config


def with_rotary(config: Json, name: str) -> Json:
    """Return config.json with the values of its rope_parameters; UserError unless the angles are plain ones.

    Args:
        config: config.json.
        name: of the format, in words.
    """
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default" or config.get("rope_scaling"):
        said = config.get("rope_scaling") or rope
        raise UserError(f"config.json: rope {said}; only plain rotary angles are {name}'s")
    return {**rope, **config}


def number(config: Json, *keys: str) -> float:
    """Return the first value that is there and not null; UserError unless it is a number.

    Args:
        config: config.json.
        *keys: names of the value.
    """
    for key in keys:
        value = config.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UserError(f"config.json: {key} is {value!r}; expected a number")
        return value
    raise UserError(f"config.json does not say {' nor '.join(keys)}")


def whole_number(config: Json, *keys: str) -> int:
    """Return the first value that is there and not null; UserError unless it is a whole number.

    Args:
        config: config.json.
        *keys: names of the value.
    """
    value = number(config, *keys)
    if value != int(value):
        raise UserError(f"config.json: {keys[0]} is {value!r}; expected a whole number")
    return int(value)


def special_ids(
    config: Json,
    mask_token_id: int | None,
    eos_token_ids: tuple[int, ...] | None,
    published_mask: int,
    end_of_turn: tuple[int, ...] = (),
) -> Json:
    """Return the fields mask_token_id and eos_token_ids of a Text.

    Args:
        config: config.json, whose eos_token_id is an id, a list of them or null.
        mask_token_id, eos_token_ids: as the user says; None for config.json's.
        published_mask: mask's id where config.json names none.
        end_of_turn: ids that end a text beside config.json's.
    """
    eos = config.get("eos_token_id")
    ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise UserError(f"config.json: eos_token_id is {eos!r}; expected ids")
    if mask_token_id is None:
        known = config.get("mask_token_id") is not None
        mask_token_id = whole_number(config, "mask_token_id") if known else published_mask
    return {
        "mask_token_id": mask_token_id,
        "eos_token_ids": tuple(dict.fromkeys([*ids, *end_of_turn])) if eos_token_ids is None else eos_token_ids,
    }


def rename_tensors(tensors: Mapping[str, Tensor], stack: str, once: Names, inner: Names) -> StackedTensors:
    """Return the tensors under our names, experts stacked; an unknown name stays as it is, to be reported.

    Args:
        tensors: the file's; UserError where two get one name.
        stack: what comes before a block's number.
        once: our names of tensors outside blocks.
        inner: our names inside a block, of what follows its number.
    """
    others, parts = split_experts(tensors, stack)
    out: dict[str, Tensor] = {}
    for name, tensor in others.items():
        match = re.fullmatch(rf"{re.escape(stack)}\.(\d+)\.(.+)\.(weight|bias|expert_bias)", name)
        ours = once.get(name, name)
        if match and match[2] in inner:
            ours = f"blocks.{int(match[1])}.{inner[match[2]]}.{match[3]}"
        if ours in out:
            raise UserError(f"{name} is there twice")
        out[ours] = tensor
    return StackedTensors(out, parts)


def convert(
    weights: Weights,
    fields: Json,
    tensors: StackedTensors,
    preset: str | None,
    decoding: Decoding,
    family: type[Text] = Text,
) -> Conversion:
    """Return the model with its tokenizer and decoding; tables that are computed anew are left out.

    Args:
        weights: the file's.
        fields: of a Text.
        tensors: by our names.
        preset: published size that the weights must have, or None.
        decoding: as the model is decoded by default.
        family: of the network.
    """
    dropped = {name: "a table that is computed anew" for name in tensors if name.endswith("rotary_emb.inv_freq")}
    if fields["tied"] and "head.weight" in tensors:
        if not tensors["head.weight"].equal(tensors["embed.weight"]):
            raise UserError("config.json says that the head is the table of tokens, but the weights have two tables")
        dropped["head.weight"] = "the table of tokens once more"
    kept = tensors.without(dropped)
    file = None if weights.folder is None else weights.folder / TOKENIZER
    copied = {} if file is None or not file.is_file() else {TOKENIZER: file}
    tokenizer = _tokenizer(copied[TOKENIZER], fields) if copied else None
    model = build_spec(family, preset, fields, tokenizer=tokenizer)
    run = Run(model=model, path=LogLinear(), parameterisation=None, sampler=decoding, ema=())
    return Conversion(run, kept, {}, dropped, () if copied else (NO_TOKENIZER,), copied, keep_dtype=True)


def _tokenizer(file: Path, fields: Json) -> HuggingFace:
    """Return the tokenizer of the file as it will lie beside the weights."""
    ids, size = (fields["mask_token_id"], fields["eos_token_ids"]), fields["vocab_size"]
    return HuggingFace(TOKENIZER, *ids, sha256=file_sha256(file), size=size, chat=chat_template_beside(file))
