"""What formats of text models share: config.json read with care, names rewritten, the tokeniser beside them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from gen.config.errors import UserError
from gen.models.interop.lib.inferred import Found, sized
from gen.models.interop.weights import Weights
from gen.models.text import Text
from gen.text.decoding import Decoding
from gen.text.mask_path import LogLinear
from gen.text.tokenizers.huggingface import HuggingFace
from gen.training.run import Run

__all__ = ["Names", "checked", "found", "ids", "is_of", "mask_of", "number", "renamed", "whole"]

Names = Mapping[str, str]  # theirs to ours; of a block, what follows its number
TOKENIZER = "tokenizer.json"
OTHERWISE = "the file has no tokenizer.json: prompts and texts are ids, until model.tokenizer names one"


def is_of(weights: Weights, kind: str, architectures: tuple[str, ...]) -> bool:
    """Whether config.json says it is of this model_type, or names one of the classes."""
    config = weights.config or {}
    named = config.get("architectures") or []
    if isinstance(named, list) and named:
        return any(name in architectures for name in named)
    return bool(config.get("model_type") == kind)


def checked(weights: Weights, name: str, fixed: Mapping[str, Any]) -> Mapping[str, Any]:
    """config.json; UserError where it says otherwise than `fixed`, of what this network cannot be. It may omit them."""
    config = weights.config
    if config is None:
        raise UserError(f"{weights.folder} has no config.json beside the weights, which says what they are")
    for key, value in fixed.items():
        given = config.get(key)
        if given is not None and given != value:
            raise UserError(f"config.json: {key} is {given!r}; only {value!r} is {name}'s")
    return config


def number(config: Mapping[str, Any], *keys: str) -> Any:
    """The first of these keys that is there and not null; UserError unless it is a number."""
    for key in keys:
        value = config.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UserError(f"config.json: {key} is {value!r}; expected a number")
        return value
    raise UserError(f"config.json does not say {' nor '.join(keys)}")


def whole(config: Mapping[str, Any], *keys: str) -> int:
    """The same for a whole number."""
    value = number(config, *keys)
    if value != int(value):
        raise UserError(f"config.json: {keys[0]} is {value!r}; expected a whole number")
    return int(value)


def ids(value: Any) -> tuple[int, ...]:
    """One id, several, or none, as eos_token_id may be."""
    if value is None:
        return ()
    several = value if isinstance(value, list) else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in several):
        raise UserError(f"config.json: eos_token_id is {value!r}; expected ids")
    return tuple(dict.fromkeys(several))


def mask_of(config: Mapping[str, Any], given: int | None, published: int) -> int:
    """The mask's id: as given, or as config.json says, or as published."""
    says = whole(config, "mask_token_id") if config.get("mask_token_id") is not None else published
    return says if given is None else given


def renamed(tensors: Mapping[str, Tensor], stack: str, once: Names, inner: Names) -> dict[str, Tensor]:
    """Under our names; one that is not known stays as it is, to be reported. UserError where two become one.

    stack: what comes before a block's number.
    """
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(rf"{re.escape(stack)}\.(\d+)\.(.+)\.(weight|bias)", name)
        ours = once.get(name, name)
        if match and match[2] in inner:
            ours = f"blocks.{int(match[1])}.{inner[match[2]]}.{match[3]}"
        if ours in out:
            raise UserError(f"{name} is there twice")
        out[ours] = tensor
    return out


def found(
    weights: Weights, fields: Mapping[str, Any], tensors: Mapping[str, Tensor], preset: str | None, how: Decoding
) -> Found:
    """The model with its tokeniser and the way it is decoded; tables that are computed anew are left out."""
    dropped = {name: "a table that is computed anew" for name in tensors if name.endswith("rotary_emb.inv_freq")}
    kept = {name: tensor for name, tensor in tensors.items() if name not in dropped}
    if fields["tied"] and "head.weight" in kept:
        if not kept["head.weight"].equal(kept["embed.weight"]):
            raise UserError("config.json says that the head is the table of tokens, but the weights have two tables")
        dropped["head.weight"] = "the table of tokens once more"
        del kept["head.weight"]
    file = None if weights.folder is None else weights.folder / TOKENIZER
    copied = {} if file is None or not file.is_file() else {TOKENIZER: file}
    tokenizer = _tokenizer(copied[TOKENIZER], fields) if copied else None
    model = sized(Text, preset, fields, tokenizer=tokenizer)
    run = Run(model=model, path=LogLinear(), parameterisation=None, sampler=how, ema=())
    return Found(run, kept, {}, dropped, () if copied else (OTHERWISE,), copied, narrow=True)


def _tokenizer(file: Path, fields: Mapping[str, Any]) -> HuggingFace:
    """The file as it will lie beside the weights."""
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return HuggingFace(
        TOKENIZER, fields["mask_token_id"], fields["eos_token_ids"], sha256=digest, size=fields["vocab_size"]
    )
