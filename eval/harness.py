"""Text models under EleutherAI's lm-evaluation-harness: its three kinds of requests, answered by a TextPipeline.

`gen lm-eval RUN --tasks ...` is the short way. The harness has no plug-ins that are found by themselves, so its own
command line with all of its options is `python -m gen.eval.harness --model gen --model_args run=RUN --tasks ...`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from gen.config.errors import MissingDependency, UserError
from gen.config.spec import Json, override, spec_of
from gen.diffusion.noise import derive
from gen.eval.estimate import Estimate, mean_estimate
from gen.eval.likelihood import NllBound, greedy_matches, nll_bounds
from gen.eval.provenance import checkpoint
from gen.text.chat import break_names
from gen.text.decoding import Decoding
from gen.text.pipeline import TextPipeline

__all__ = ["HarnessModel", "harness_model", "main"]

GEN_LENGTH = 256  # tokens of a text where neither the task nor the user says how many, as elsewhere in the harness
BREAK = "\ue000"  # within the name of a special token that a message only speaks of
Request = Any  # an lm_eval.api.instance.Instance; its args are what a method asks for


class HarnessModel:
    """A text model as the harness calls it; `harness_model` makes it a class of the harness.

    An answer depends on its request, on the seed and, of requests that are repeated, on which of them it is; neither on
    the batch nor on other tasks. Log-likelihoods are lower bounds, see gen.eval.likelihood.

    Attributes:
        pipeline: the model.
        bounds: of all log-likelihoods so far, whose Monte Carlo errors are reported.
        templated: whether a chat template wrote the contexts, so that they name special tokens.
    """

    def __init__(
        self,
        run: str | Path | TextPipeline,
        *,
        seed: int = 0,
        masks: int = 128,
        gen_length: int | None = None,
        temperature: float | None = None,
        block_length: int | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        weights: str | None = None,
        **decoding: Any,
    ) -> None:
        """Load a run.

        Args:
            run: a folder, or the pipeline itself.
            seed: of texts and masks.
            masks: of each block whose likelihood is bounded, an even number.
            gen_length: tokens of a generated text, at most; None for what the task says (max_gen_toks).
            temperature: of generated texts; None for what the task says.
            block_length: see gen.text.pipeline.TextPipeline.plan.
            batch_size: texts or masks at a time; changes nothing but speed and memory.
            max_batch_size: the harness' own; ignored.
            device: cpu, cuda ...; the harness gives cuda:0 where nobody says, which is the CPU where there is none.
            weights: see gen.pipeline.load.
            **decoding: changes of the run's Decoding by dotted key: policy="threshold", kv_plan="dual" ...
        """
        super().__init__()
        from gen.pipeline import load

        loaded = run if isinstance(run, TextPipeline) else load(Path(run), weights, _device(device))
        if not isinstance(loaded, TextPipeline):
            raise UserError(f"{run} makes no text, which is what the harness asks for")
        if loaded.tokenizer is None:
            raise UserError(f"{loaded.name} has no tokenizer, and the harness asks in text")
        self.pipeline, self.seed, self.masks = loaded, int(seed), int(masks)
        self.gen_length, self.temperature = gen_length, temperature
        self.batch_size = _batch_size(batch_size)
        self.plan = override(loaded.plan(block_length=block_length), decoding).on(loaded.path)
        self.bounds = list[NllBound]()
        self.templated = False

    # -- what the harness calls ---------------------------------------------------------------------------------------

    def generate_until(self, requests: Sequence[Request], disable_tqdm: bool = False) -> list[str]:
        """Write after each context, up to the first of its stop strings."""
        asked = [(str(context), dict(how)) for context, how in _arguments(requests)]
        seeds, texts = self._seeds("text", asked), [""] * len(asked)
        groups: dict[tuple[float, float, int | None], list[int]] = {}
        for i, (_, how) in enumerate(asked):
            groups.setdefault(self._sampling(how), []).append(i)
        for (temperature, top_p, top_k), rows in groups.items():
            changes = {"sampling.temperature": temperature, "sampling.top_p": top_p, "sampling.top_k": top_k}
            written = self._write([asked[i] for i in rows], [seeds[i] for i in rows], override(self.plan, changes))
            for i, text in zip(rows, written, strict=True):
                texts[i] = _until(text, asked[i][1].get("until"))
        return texts

    def loglikelihood(self, requests: Sequence[Request], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Bound the log-likelihood of each continuation, and say whether greedy decoding would write it.

        Answers to one question are compared on the same masks where they have as many tokens.
        """
        asked = [(str(context), str(text)) for context, text in _arguments(requests)]
        pairs = [self._pair(*one) for one in asked]
        for (_, ids), (context, text) in zip(pairs, asked, strict=True):
            if not ids:
                raise UserError(f"the continuation {text!r} of {context[-40:]!r} has no token")
        seeds = [derive("harness", self.seed, "likelihood", context) for context, _ in asked]
        bounds = self._bound(pairs, seeds)
        prompts, texts = [prompt for prompt, _ in pairs], [ids for _, ids in pairs]
        greedy = greedy_matches(self.pipeline.net, prompts, texts, self.plan, batch_size=self.batch_size)
        return [(-bound.nats, match) for bound, match in zip(bounds, greedy, strict=True)]

    def loglikelihood_rolling(self, requests: Sequence[Request], disable_tqdm: bool = False) -> list[float]:
        """Bound the log-likelihood of whole texts; of longer ones than the model's canvas piece by piece."""
        asked = [(str(text),) for (text,) in _arguments(requests)]
        pieces, owners, seeds = list[tuple[list[int], list[int]]](), list[int](), list[int]()
        for i, ((text,), seed) in enumerate(zip(asked, self._seeds("rolling", asked), strict=True)):
            ids = self._encode(text)
            size = self.pipeline.length or max(1, len(ids))
            for a in range(0, len(ids), size):
                pieces.append(([], ids[a : a + size]))
                owners.append(i)
                seeds.append(derive("piece", seed, a))
        totals = [0.0] * len(asked)
        for owner, bound in zip(owners, self._bound(pieces, seeds), strict=True):
            totals[owner] -= bound.nats
        return totals

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Write a conversation as the tokenizer's chat template does."""
        chat = getattr(self.pipeline.tokenizer, "chat", None)
        if chat is None:
            raise UserError(f"the tokenizer of {self.pipeline.name} has no chat template")
        self.templated = True
        return str(chat.render([self._said(message) for message in chat_history], add_generation_prompt))

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Return the chat template as text, by which the harness knows cached requests."""
        chat = getattr(self.pipeline.tokenizer, "chat", None)
        self.templated |= bool(chat_template)  # of requests that were cached, all that the harness asks for
        return chat.template if chat_template and chat is not None else ""

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer, by which the harness knows cached requests."""
        return f"{self.pipeline.name}: {self.pipeline.tokenizer!r}"

    def get_model_info(self) -> Json:
        """Return what the harness writes beside its results: run, decoding, and the error of log-likelihoods."""
        return {
            "run": self.pipeline.name,
            "checkpoint": checkpoint(self.pipeline),
            "decoding": spec_of(self.plan, named=False),
            "gen_length": self.gen_length,
            "temperature": self.temperature,
            "seed": self.seed,
            "masks": self.masks,
            "monte_carlo": None if self.monte_carlo is None else asdict(self.monte_carlo),
        }

    @property
    def monte_carlo(self) -> Estimate | None:
        """Mean Monte Carlo error of the log-likelihoods so far, in nats; None where there are none."""
        return mean_estimate([bound.se for bound in self.bounds]) if self.bounds else None

    # -- how it is answered -------------------------------------------------------------------------------------------

    def _write(self, asked: Sequence[tuple[str, Mapping[str, Any]]], seeds: Sequence[int], plan: Decoding) -> list[str]:
        """Return the text after each context."""
        ids = [self._encode(context) for context, _ in asked]
        lengths = [self.gen_length or _most_tokens(how) for _, how in asked]
        if self.pipeline.length is not None:
            room = [max(1, self.pipeline.length - len(prompt)) for prompt in ids]
            short = sum(n < length for n, length in zip(room, lengths, strict=True))
            if short:
                _log(f"{short} of {len(ids)} texts are shorter than asked for: the canvas has no room for more")
            lengths = [min(pair) for pair in zip(room, lengths, strict=True)]
        return (
            replace(self.pipeline, decoding=plan).generate(ids, lengths, seed=seeds, batch_size=self.batch_size).texts
        )

    def _bound(self, pairs: Sequence[tuple[list[int], list[int]]], seeds: Sequence[int]) -> list[NllBound]:
        """Return the bound of each text after its prompt, and report how sure they are."""
        if not pairs:
            return []
        self.pipeline.lengths([prompt for prompt, _ in pairs], [max(1, len(text)) for _, text in pairs])
        order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
        bounds = nll_bounds(
            self.pipeline.net, [pairs[i][0] for i in order], [pairs[i][1] for i in order], samples=self.masks,
            seed=[seeds[i] for i in order], batch_size=self.batch_size,
        )  # fmt: skip
        self.bounds += bounds
        errors = [bound.se for bound in bounds]
        _log(f"Monte Carlo errors of {len(errors)} log-likelihoods: mean {sum(errors) / len(errors):.3g} nats, largest "
             f"{max(errors):.3g}")  # fmt: skip
        return [bounds[at] for at in sorted(range(len(order)), key=order.__getitem__)]

    def _sampling(self, how: Mapping[str, Any]) -> tuple[float, float, int | None]:
        """Return temperature, top_p and top_k of a request; a task that does not sample is greedy."""
        asked = float(how.get("temperature") or 0.0) if how.get("do_sample") is not False else 0.0
        top_k = int(how.get("top_k") or 0)
        return asked if self.temperature is None else self.temperature, float(how.get("top_p") or 1.0), top_k or None

    def _said(self, message: Mapping[str, str]) -> dict[str, str]:
        """Return a message whose content names no special token: its names are broken until they are encoded."""
        content = message["content"]
        if BREAK in content:
            raise UserError(f"a message holds U+{ord(BREAK):X}, which stands for something else here")
        tokenizer: Any = self.pipeline.tokenizer
        return {**message, "content": break_names(content, tokenizer.special_tokens, BREAK)}

    def _encode(self, text: str) -> list[int]:
        """Return a text's ids; special tokens that a chat template named are those tokens."""
        if not self.templated:
            return self.pipeline.encode(text)
        tokenizer: Any = self.pipeline.tokenizer
        ids: list[int] = tokenizer.encode_template(text, BREAK)
        return ids

    def _pair(self, context: str, text: str) -> tuple[list[int], list[int]]:
        """Return the ids of a context and its continuation, cut where the context's own ids end."""
        bare = context.rstrip()
        whole, n = self._encode(context + text), len(self._encode(bare))
        return whole[:n], whole[n:]

    def _seeds(self, kind: str, asked: Iterable[tuple[Any, ...]]) -> list[int]:
        """Return a seed for each request, by what it asks and how often that was asked before."""
        before, seeds = Counter[str](), list[int]()
        for one in asked:
            key = repr(one)
            seeds.append(derive("harness", self.seed, kind, key, before[key]))
            before[key] += 1
        return seeds


@cache
def harness_model() -> type[Any]:
    """Return HarnessModel as a model of the harness, registered there as "gen".

    Raises:
        MissingDependency: without the package lm-eval.
    """
    try:
        from lm_eval.api.model import LM
        from lm_eval.api.registry import register_model
    except ImportError as error:
        raise MissingDependency(f"the harness needs lm-eval: pip install 'gen-diffusion[lm-eval]' ({error})") from error
    made: type[Any] = type("HarnessModel", (HarnessModel, LM), {"__doc__": HarnessModel.__doc__})
    register_model("gen")(made)
    return made


def main() -> None:
    """Run the harness' own command line, with the model "gen" registered."""
    harness_model()
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


def _arguments(requests: Sequence[Request]) -> list[tuple[Any, ...]]:
    return [tuple(request.args) for request in requests]


def _until(text: str, stops: str | Sequence[str] | None) -> str:
    """Return a text up to the first of the stop strings."""
    several = [stops] if isinstance(stops, str) else stops or []
    return text[: min((at for stop in several if stop and (at := text.find(stop)) >= 0), default=len(text))]


def _batch_size(given: int | str | None) -> int:
    if given is None or str(given).startswith("auto"):
        return 64
    if not str(given).isdecimal() or int(given) < 1:
        raise UserError(f"batch_size = {given!r}; a whole number of at least 1, or auto, which is 64")
    return int(given)


def _device(given: str | None) -> str:
    if given is None or (given.startswith("cuda") and not torch.cuda.is_available()):
        return "cpu"
    return given


def _log(message: str) -> None:
    logging.getLogger("lm_eval.gen").info(message)


if __name__ == "__main__":
    main()


def _most_tokens(how: Mapping[str, Any]) -> int:
    """Return the number of tokens that a request allows, by any of the names that the harness knows for it."""
    given = (how.get(name) for name in ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"))
    return int(next((n for n in given if n is not None), GEN_LENGTH))
