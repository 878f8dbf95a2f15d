"""Chats: messages of roles, rendered by the template that a tokenizer's folder has.

A template is a Jinja program of the model's authors. It runs in Jinja's sandbox, which hands it strings and numbers and
nothing of Python, with the functions that transformers gives templates.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from gen.config.errors import UserError, shown
from gen.config.fields import check_fields
from gen.config.reading import read_json, read_text
from gen.text.contracts import Tokenizer

if TYPE_CHECKING:
    import jinja2

__all__ = [
    "ChatTemplate", "Messages", "break_names", "chat_messages", "chat_pairs", "chat_prompt", "chat_template_beside",
]  # fmt: skip

Messages = Sequence[Mapping[str, Any]]

ROLES = ("system", "user", "assistant")
TOOLS = ("tool", "function")  # roles that are left out
CONFIG, TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
ADVICE = """give --data.tokenizer '{"name": "huggingface", "file": "FOLDER/tokenizer.json", ...}'"""


@dataclass(frozen=True)
class ChatTemplate:
    """The template of a model's chats.

    Attributes:
        template: the Jinja program, not empty.
        special_tokens: pairs of a name that the program knows ("bos_token") and its text.
        date: the day that it takes for today, such as "2025-11-30", so that a text is a function of its messages;
            "" for the day on which a template that asks for it is first read.
    """

    template: str = ""
    special_tokens: tuple[tuple[str, str], ...] = ()
    date: str = ""

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.template:
            raise UserError("ChatTemplate: the template of chat is empty; a Jinja program")
        if not self.date and "strftime_now" in self.template:
            object.__setattr__(self, "date", date.today().isoformat())
        try:
            date.fromisoformat(self.date or "2000-01-01")
        except ValueError:
            raise UserError(f"ChatTemplate: date = {self.date!r}; a day such as 2025-11-30") from None

    def render(self, messages: Messages, add_generation_prompt: bool = False) -> str:
        """Return the text of a chat.

        Args:
            messages: see `chat_messages`.
            add_generation_prompt: whether the beginning of the assistant's next turn follows.

        Raises:
            UserError: for what the template refuses, and for a template that is none.
        """
        import jinja2

        given = {"messages": [dict(message) for message in messages], "add_generation_prompt": add_generation_prompt}
        try:
            compiled = _compiled(self.template, self.date)
            return compiled.render(**{"tools": None, "documents": None, **dict(self.special_tokens), **given})
        except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"the chat template fails: {' '.join(str(error).split())[:200]}") from None


@lru_cache(maxsize=8)
def _compiled(template: str, day: str) -> jinja2.Template:
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.nodes import Node
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}`, which marks what an assistant wrote, prints what is inside."""

        tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

        def parse(self, parser: Parser) -> list[Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None,
               sort_keys: bool = False) -> str:  # fmt: skip
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    sandbox = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    sandbox.filters["tojson"] = tojson  # Jinja's own writes HTML
    sandbox.globals["raise_exception"] = raise_exception
    if day:
        sandbox.globals["strftime_now"] = date.fromisoformat(day).strftime
    return sandbox.from_string(template)


def chat_template_beside(file: Path) -> ChatTemplate | None:
    """Return the template in the folder of a tokenizer, or None: chat_template.jinja, or that of tokenizer_config.json.

    Args:
        file: the tokenizer.json.

    Raises:
        UserError: for a tokenizer_config.json that is no JSON, or has a template that is no text.
    """
    config, template = file.parent / CONFIG, file.parent / TEMPLATE
    given = read_json(config, constants=True) if config.is_file() else {}
    given = given if isinstance(given, dict) else {}
    program = read_text(template) if template.is_file() else given.get("chat_template")
    if isinstance(program, list):  # several, by name
        named = {one["name"]: one.get("template") for one in program if isinstance(one, dict) and "name" in one}
        program = named.get("default", next(iter(named.values()), None))
    if program is None:
        return None
    if not isinstance(program, str):
        raise UserError(f"{config}: chat_template is {shown(program)}; it must be a text")
    tokens = {key: value.get("content") if isinstance(value, dict) else value for key, value in given.items()}
    special = [
        (key, value) for key, value in sorted(tokens.items()) if key.endswith("_token") and isinstance(value, str)
    ]
    return ChatTemplate(program, tuple(special))


def chat_messages(given: Any) -> tuple[list[dict[str, str]], int]:
    """Return checked messages, role and content each, and how many of tools were left out.

    Left out are the turns of tools and what an assistant said to them alone. Content in parts is put together, if all
    are text.

    Args:
        given: a list of {"role": ..., "content": ...}.

    Raises:
        UserError: for no messages, other roles, and content that is missing, empty or no text.
    """
    if not isinstance(given, (list, tuple)) or not given:
        raise UserError(f"messages are {shown(given)}; a list of objects with role and content")
    messages, left_out = list[dict[str, str]](), 0
    for number, message in enumerate(given, 1):
        if not isinstance(message, Mapping):
            raise UserError(f"message {number} is {shown(message)}; an object with role and content")
        role, content = message.get("role"), message.get("content")
        if role in TOOLS or (role == "assistant" and not content and message.get("tool_calls")):
            left_out += 1
            continue
        if role not in ROLES:
            raise UserError(f"message {number} has the role {shown(role)}. Allowed: {', '.join(ROLES)}")
        if isinstance(content, (list, tuple)) and all(_is_text(part) for part in content):
            content = "".join(part["text"] for part in content)
        if not isinstance(content, str):
            raise UserError(f"message {number} ({role}) has the content {shown(content)}; it must be text")
        if not content.strip():
            raise UserError(f"message {number} ({role}) is empty")
        messages.append({"role": role, "content": content})
        left_out += bool(message.get("tool_calls"))
    if not messages:
        raise UserError("no message is left without those of tools")
    return messages, left_out


def _is_text(part: Any) -> bool:
    """Return whether a part of a message is text."""
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


def chat_prompt(tokenizer: Tokenizer | None, messages: Messages) -> list[int]:
    """Return the ids of a chat up to the assistant's next turn.

    Args:
        tokenizer: with a chat template.
        messages: the last one is not the assistant's.

    Raises:
        UserError: for other messages, and for a tokenizer without a template.
    """
    checked, _ = chat_messages(messages)
    if checked[-1]["role"] == "assistant":
        raise UserError("the last message is the assistant's, and nothing is left to answer")
    return _Chat(tokenizer, checked, "give the prompt as text (--prompt)").prompt(len(checked))


def chat_pairs(tokenizer: Tokenizer, messages: Messages, every: bool = False) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the ids of prompt and response: all up to the assistant's last turn, and that turn.

    Each turn is a pair of its own, as LLaDA has it (Nie et al. 2025, appendix B): a network that sees everything would
    read an answer's length, and what it says, off the turns that follow.

    Args:
        tokenizer: with a chat template.
        messages: checked, see `chat_messages`.
        every: whether each assistant's turn is a response, or the last alone.

    Raises:
        UserError: for no assistant's turn, and for a template that begins a response otherwise than it says.
    """
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        raise UserError("the messages have no assistant's turn")
    for turn in turns if every else turns[-1:]:
        yield _Chat(tokenizer, messages[: turn + 1], ADVICE).pair()


def break_names(content: str, names: Sequence[str], broken: str) -> str:
    """Return text with a character after the first of every name of a special token, so that a template leaves it text.

    Args:
        content: what is said.
        names: of the special tokens, the longest first.
        broken: a character that stands nowhere in the content; the tokenizer's encode_template takes it out.
    """
    for name in names:
        content = content.replace(name, name[0] + broken + name[1:])
    return content


class _Chat:
    """The texts of a chat by a tokenizer's template.

    What messages say is text: a special token that is named there is broken by a character that none of them has, until
    the tokens of the template are read.
    """

    def __init__(self, tokenizer: Tokenizer | None, messages: Messages, advice: str) -> None:
        template: ChatTemplate | None = getattr(tokenizer, "chat", None)
        if template is None:
            raise UserError(
                f"{'a model of ids' if tokenizer is None else type(tokenizer).__name__} has no chat template, which is "
                f"{TEMPLATE} or {CONFIG} beside a tokenizer.json: {advice}"
            )
        known: Any = tokenizer
        self.tokenizer, self.template = known, template
        said = "".join(message["content"] for message in messages)
        self.break_ = next(chr(c) for c in range(0xE000, 0xF900) if chr(c) not in said)
        self.messages = [
            {**message, "content": break_names(message["content"], known.special_tokens, self.break_)}
            for message in messages
        ]

    def prompt(self, count: int) -> list[int]:
        """Return the ids of the first messages and of the beginning of a response."""
        return self._ids(self.template.render(self.messages[:count], add_generation_prompt=True))

    def pair(self) -> tuple[list[int], list[int]]:
        """Return the ids of all but the last message, and of that one with the last token that ends a text."""
        prompt = self.template.render(self.messages[:-1], add_generation_prompt=True)
        whole = self.template.render(self.messages)
        if not whole.startswith(prompt):
            same = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(whole))
            raise UserError(
                f"the chat template begins a response with {prompt[same:]!r:.60}, and has {whole[same:]!r:.60} there "
                "when the response follows"
            )
        response, ends = self._ids(whole[len(prompt) :]), self.tokenizer.eos_token_ids
        last = max((i for i, token in enumerate(response) if token in ends), default=None)
        return self._ids(prompt), [*response, ends[0]] if last is None else response[: last + 1]

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode_template(text, self.break_)
        return ids
