"""Captions as conditions at sampling: which words were given, and what encodes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gen.config.errors import UserError, shown
from gen.config.spec import Json, build

__all__ = ["ENCODER_MISSING", "PromptEncoder", "encoder_spec", "prompt_encoder", "prompts_of", "text_fields"]

ENCODER_MISSING = "give its folder, as --text-encoder FOLDER or gen.load(..., text_encoder=FOLDER)"


def prompts_of(
    n: int, cond: object, each: int = 1, encode: Callable[[Sequence[str]], object] | None = None
) -> tuple[str, ...]:
    """Return the captions of n samples, () for a condition that is none.

    Args:
        n: number of samples.
        cond: a caption for all, or one for each `each` samples; anything else is no caption.
        each: consecutive samples that share one.
        encode: refuses captions that cannot be read, before their number is.

    Raises:
        UserError: for another number of captions.
    """
    if isinstance(cond, str):
        return (cond,) * n
    if isinstance(cond, Mapping) or not isinstance(cond, Sequence) or not cond:
        return ()
    if not all(isinstance(one, str) for one in cond):
        return ()
    if len(cond) == 1:
        return tuple(cond) * n
    if len(cond) * each != n:
        if encode is not None:
            encode(cond)
        raise UserError(f"{len(cond)} captions for {n // each} conditions: give one for all, or one for each")
    return tuple(caption for caption in cond for _ in range(each))


def encoder_spec(folder: str | Path) -> Json:
    """Return the spec of the text encoder in a folder: a Stable Diffusion 3's three, or one of transformers.

    Args:
        folder: of a pipeline of diffusers, or of a text model.
    """
    return {"name": "sd3" if (Path(folder) / "tokenizer_3").is_dir() else "pretrained", "path": str(folder)}


def text_fields(null: Mapping[str, Tensor]) -> Json:
    """Return the fields of a model of embedded captions.

    Args:
        null: the condition of the empty caption: "text" [L, D], "text_mask" [L], and "pooled" [P] if there is one.
    """
    length, width = null["text"].shape
    pooled = {"pooled_width": len(null["pooled"])} if "pooled" in null else {}
    return {"text_width": width, "text_length": length, "null_text": "stored", **pooled}


@dataclass(frozen=True, eq=False)
class PromptEncoder:
    """Encodes captions by an encoder that was given, in place of the data's own.

    Attributes:
        encoder: of gen.models.text_encoders.
        module: the same, loaded.
    """

    encoder: Any
    module: Callable[[Sequence[str]], dict[str, Tensor]]

    def __call__(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        return self.module(prompts)


def prompt_encoder(source: Any, text_encoder: object = None) -> Callable[[Sequence[str]], dict[str, Tensor]] | None:
    """Return what encodes captions as the data of a training had them; None for data without captions.

    Args:
        source: of the training.
        text_encoder: a spec of gen.models.text_encoders, or the folder of a pretrained one; None for the data's own.

    Raises:
        UserError: for an encoder of data that have their own, or none.
    """
    own: Callable[[Sequence[str]], dict[str, Tensor]] | None = getattr(source, "encode_prompts", None)
    if text_encoder is None:
        return own
    if own is not None:
        raise UserError(f"text_encoder = {shown(text_encoder)}: the model was trained with an encoder of its own")
    path = isinstance(text_encoder, (str, Path)) and not hasattr(text_encoder, "load")
    encoder = build("models.text_encoders", encoder_spec(str(text_encoder)) if path else text_encoder)
    if not hasattr(encoder, "load"):
        raise UserError(f"text_encoder = {shown(text_encoder)}; it must be a folder or one of gen.models.text_encoders")
    there = Path(getattr(source, "path", "")).exists()  # latents that are gone cannot say what encoded their captions
    known = getattr(source, "text_encoder", None) if there else None
    if known is not None and encoder.identity() != known:
        raise UserError(f"text_encoder = {shown(text_encoder)} is not the one that the latents' captions were read by")
    return PromptEncoder(encoder, encoder.load())
