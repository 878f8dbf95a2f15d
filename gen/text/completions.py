"""Calls of OpenAI's completions: their bodies, and what of a text they ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from gen.config.errors import UserError, nearest, shown
from gen.config.spec import convert
from gen.text.batching import DecodingRequest

__all__ = [
    "ChatRequest", "CompletionRequest", "final_text", "is_infilling", "most_tokens", "read_call", "stop_strings",
    "written_text",
]  # fmt: skip

IGNORED = ("user", "store", "metadata", "safety_identifier", "prompt_cache_key", "service_tier")  # change no text
NEUTRAL: dict[str, tuple[Any, ...]] = {  # values with which a field that is not answered changes no text
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "echo": (False,),
    "best_of": (1,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
}
Call = TypeVar("Call", bound="CompletionRequest | ChatRequest")


@dataclass(frozen=True)
class CompletionRequest:
    """The body of /v1/completions, as far as it is answered.

    Attributes:
        model: name of the model.
        prompt: one or several, strings or ids.
        suffix: text behind what is written, which then is a gap between the two.
        max_tokens: of each text; None for 64, or what the model has room for.
        temperature, top_p: see gen.text.decoding.TokenSampling; None for the server's.
        n: texts of each prompt.
        seed: of the request; None for one of the server's choice.
        stop: strings of which the first that occurs ends the text, before it.
        stream: whether final text is sent while the rest is decoded.
        stream_options: {"include_usage": true} for a last event with the numbers of tokens.
    """

    model: str
    prompt: Any = ""
    suffix: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int = 1
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: dict[str, Any] | None = None


@dataclass(frozen=True)
class ChatRequest:
    """The body of /v1/chat/completions, as far as it is answered; see CompletionRequest.

    Attributes:
        model: name of the model.
        messages: role and content each.
        max_tokens, max_completion_tokens: two names of the same.
        temperature, top_p, n, seed, stop, stream, stream_options: as in CompletionRequest.
    """

    model: str
    messages: list[dict[str, Any]]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int = 1
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: dict[str, Any] | None = None


def read_call(body: Mapping[str, Any], kind: type[Call]) -> Call:
    """Return the call of a body; fields that change no text, or not with their value, are left out.

    Args:
        body: by field; null is as good as a field that is left out.
        kind: CompletionRequest or ChatRequest.

    Raises:
        UserError: for other fields, and values of another type.
    """
    known = [f.name for f in fields(kind)]
    for key, value in body.items():
        if key in known or key in IGNORED or value is None:
            continue
        if key not in NEUTRAL:
            raise UserError(f"unknown field {key!r}. {nearest(key, known)}")
        if not any(value == same and isinstance(value, bool) == isinstance(same, bool) for same in NEUTRAL[key]):
            allowed = ", ".join(known)
            raise UserError(f"{key} = {shown(value)}: this server cannot do that; leave {key} out. Allowed: {allowed}.")
    try:
        return convert({k: v for k, v in body.items() if k in known and v is not None}, kind, "request")
    except UserError as error:
        raise UserError(str(error).removeprefix(f"{kind.__name__}.").replace(kind.__name__, "the request")) from None


def most_tokens(given: CompletionRequest | ChatRequest) -> int | None:
    """Return the number of tokens that a call allows; None where it does not say.

    Args:
        given: the call.
    """
    if isinstance(given, ChatRequest) and given.max_completion_tokens is not None:
        return given.max_completion_tokens
    return given.max_tokens


def is_infilling(given: CompletionRequest | ChatRequest) -> bool:
    """Return whether a call is infilling.

    Args:
        given: the call.
    """
    return isinstance(given, CompletionRequest) and given.suffix is not None


def stop_strings(given: CompletionRequest | ChatRequest) -> list[str]:
    """Return the strings that end a text.

    Args:
        given: the call.
    """
    return [given.stop] if isinstance(given.stop, str) else given.stop or []


def _cut_at(text: str, stops: list[str]) -> tuple[str, bool]:
    """Return a text up to the first string that ends it, and whether there is one."""
    found = [text.index(stop) for stop in stops if stop in text]
    return (text[: min(found)], True) if found else (text, False)


def _without_beginnings(text: str, stops: list[str]) -> str:
    """Return a text without an end that may be the beginning of a string which ends it."""
    sizes = [n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
    return text[: len(text) - max(sizes, default=0)]


def final_text(given: CompletionRequest | ChatRequest, text: str) -> tuple[str, str | None]:
    """Return what of a text that is still decoded will not change, and "stop" if a string has ended it.

    Args:
        given: the call.
        text: the text so far.
    """
    stops = stop_strings(given)
    cut, found = _cut_at(text, stops)
    return (cut, "stop") if found else (_without_beginnings(text, stops), None)


def written_text(given: CompletionRequest | ChatRequest, request: DecodingRequest) -> tuple[str, str]:
    """Return the text of a request that is done, and why it ends, in the protocol's words.

    Args:
        given: the call.
        request: one of its texts.
    """
    made = request.result()
    text, found = _cut_at(made.fills[0][0] if is_infilling(given) else made.texts[0], stop_strings(given))
    return text, "stop" if found or made.reasons != ["full"] else "length"
