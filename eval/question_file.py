"""Questions of your own as a task of `gen bench-decode`: JSONL of prompts and answers, and how replies are checked.

A checker is exact, regex, rouge_l, bleu or words, or a function of your own, "my_package.my_module:function", which
gets prompt, reply and answer and returns True, False or a score from 0 to 1.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gen.config.errors import MissingDependency, UserError, nearest, shown
from gen.config.fields import check_fields
from gen.config.reading import parse_json, read_lines
from gen.config.spec import Json, find
from gen.eval.parallelbench.lib.sample import Question
from gen.text.chat import chat_messages

__all__ = ["CHECKERS", "QuestionFile"]

Prompt = str | Question
Checker = Callable[[str, str, str], float]  # prompt, reply, answer -> score


@dataclass(frozen=True)
class QuestionFile:
    """Questions of a JSONL file, a {"prompt": "...", "answer": "..."} on each line.

    "messages" of role and content for "prompt" are a chat, asked by the tokenizer's chat template if it has one.
    "answer" may be a list of strings, any of which is right; the best score counts.

    Attributes:
        path: the file.
        checker: exact (the same but for space around it), regex (the answer is a pattern that is found in the reply),
            rouge_l (the F-measure of the longest common subsequence of stems), bleu (of a sentence), words (the share
            of the answer's words that the reply holds), or "module:function".
        length: tokens of a reply, at most.
    """

    path: str
    checker: str = "exact"
    length: int = 64

    def __post_init__(self) -> None:
        check_fields(self, length="[1, inf)")
        if ":" not in self.checker and self.checker not in CHECKERS:
            raise UserError(f"checker {self.checker!r}: {nearest(self.checker, CHECKERS)} Or module:function.")

    @property
    def label(self) -> str:
        return Path(self.path).stem

    @property
    def protocol(self) -> Json:
        """Content of the questions as a hash, and the checker: what two records must share to be compared."""
        content = json.dumps([(_key(prompt), answers) for prompt, answers in self.questions]).encode()
        return {"questions": hashlib.sha256(content).hexdigest(), "checker": self.checker}

    @cached_property
    def questions(self) -> list[tuple[Prompt, list[str]]]:
        """All prompts, and the right answers to each; UserError names the line that holds neither."""
        found = list[tuple[Prompt, list[str]]]()
        for number, line in enumerate(read_lines(Path(self.path)), 1):
            if line.strip():
                where = f"{self.path}, line {number}"
                found.append(_question(parse_json(line, where), where))
        if not found:
            raise UserError(f"{self.path} holds no question")
        if self.checker == "regex":
            for _, answers in found:
                for answer in answers:
                    _pattern(answer, self.path)
        return found

    @cached_property
    def answers(self) -> dict[str, list[str]]:
        """The right answers by prompt; of questions with the same prompt, all of them."""
        answers: dict[str, list[str]] = {}
        for prompt, right in self.questions:
            answers.setdefault(_key(prompt), []).extend(right)
        return answers

    @cached_property
    def check(self) -> Checker:
        """The function that scores a reply."""
        if ":" not in self.checker:
            return CHECKERS[self.checker]
        function = find(self.checker)
        if not callable(function):
            raise UserError(f"checker {self.checker!r} is {shown(function)}; it must be a function")
        return function

    def prompts(self, split: str = "test", n: int | None = None) -> list[Prompt]:
        """Return n of the prompts, spread evenly over the file; all where n is as many or more."""
        if split != "test":
            raise UserError(f"{self.path}: split {split!r}; questions of a file have a test split only")
        count = min(len(self.questions), len(self.questions) if n is None else n)
        return [self.questions[i * len(self.questions) // count][0] for i in range(count)]

    def score(self, prompt: Prompt, reply: str) -> float:
        """Return the score of a reply by the best of the right answers, 0 .. 1."""
        text = prompt if isinstance(prompt, str) else prompt.text
        return max(self._score(text, reply, answer) for answer in self.answers[_key(prompt)])

    def _score(self, prompt: str, reply: str, answer: str) -> float:
        try:
            given: Any = self.check(prompt, reply, answer)
        except UserError:
            raise
        except Exception as error:  # of the user's own function, which may raise anything
            why = f"{type(error).__name__}: {error}"
            raise UserError(f"checker {self.checker!r} failed on the reply {shown(reply)}: {why}") from error
        try:
            score = float(given)
        except (TypeError, ValueError):
            score = math.nan
        if not 0 <= score <= 1:
            raise UserError(f"checker {self.checker!r} returned {shown(given)}; True, False or a score from 0 to 1")
        return score


def _question(line: Any, where: str) -> tuple[Prompt, list[str]]:
    """Return the prompt and the right answers of a line."""
    keys = {"prompt", "messages", "answer"} & set(line if isinstance(line, dict) else ())
    if keys not in ({"prompt", "answer"}, {"messages", "answer"}) or not isinstance(line.get("prompt", ""), str):
        raise UserError(
            f'{where} is {shown(line)}; a line is {{"prompt": "...", "answer": "..."}}, or has messages for the prompt'
        )
    answers = line["answer"] if isinstance(line["answer"], list) else [line["answer"]]
    if not answers or not all(isinstance(answer, str) for answer in answers):
        raise UserError(f'{where}: "answer" is {shown(line["answer"])}; a string, or a list of strings')
    if "prompt" in line:
        return line["prompt"], answers
    try:
        messages, _ = chat_messages(line["messages"])
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return Question((), "", messages=tuple(messages)), answers


def _key(prompt: Prompt) -> str:
    """Return what tells prompts apart."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt.messages)


def _pattern(answer: str, where: object) -> re.Pattern[str]:
    try:
        return re.compile(answer)
    except re.error as error:
        raise UserError(f"{where}: {answer!r} is no regular expression: {error}") from None


def _exact(prompt: str, reply: str, answer: str) -> float:
    return float(reply.strip() == answer.strip())


def _regex(prompt: str, reply: str, answer: str) -> float:
    return float(_pattern(answer, "answer").search(reply) is not None)


def _words(prompt: str, reply: str, answer: str) -> float:
    wanted = answer.split()
    return sum(word in reply for word in wanted) / len(wanted) if wanted else 1.0


def _rouge_l(prompt: str, reply: str, answer: str) -> float:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise MissingDependency("rouge_l needs rouge-score: pip install 'gen-diffusion[lm-eval]'") from error
    return float(RougeScorer(["rougeL"], use_stemmer=True).score(answer.strip(), reply.strip())["rougeL"].fmeasure)


def _bleu(prompt: str, reply: str, answer: str) -> float:
    try:
        from sacrebleu import sentence_bleu
    except ImportError as error:
        raise MissingDependency("bleu needs sacrebleu: pip install 'gen-diffusion[lm-eval]'") from error
    return min(1.0, float(sentence_bleu(reply, [answer]).score) / 100)


CHECKERS: dict[str, Checker] = {
    "exact": _exact, "regex": _regex, "rouge_l": _rouge_l, "bleu": _bleu, "words": _words,
}  # fmt: skip
