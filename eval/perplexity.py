"""Perplexity of text: an upper bound for masked diffusion models, and generated text as another model judges it."""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gen.config.errors import MissingDependency, NonFinite, UserError, shown
from gen.config.fields import check_arguments
from gen.diffusion.noise import sample_seeds
from gen.eval.estimate import Estimate, mean_estimate, ratio_estimate
from gen.eval.likelihood import NllBound, nll_bounds
from gen.text.contracts import Predictor
from gen.text.tokenizers import text_end

__all__ = ["JudgedTexts", "PerplexityBound", "judge_texts", "perplexity_bound"]


@dataclass(frozen=True, kw_only=True)
class PerplexityBound:
    """An upper bound of a model's perplexity on texts.

    Attributes:
        nats: per token, its standard error that of drawing texts and masks again; None of a single text.
        monte_carlo: the part of that error that more masks would take away.
        texts, tokens: what was scored. A token is the model's; the first end-of-text token counts.
        samples: masks of each block, see gen.eval.likelihood.nll_bounds.
        block_size: of the model's blocks; None if there is one.
        blocks: nats per predicted token of the first block of a text, the second and so on, if texts have it.
    """

    nats: Estimate
    monte_carlo: float
    texts: int
    tokens: int
    samples: int
    block_size: int | None
    blocks: tuple[Estimate, ...]

    @property
    def bits(self) -> Estimate:
        """Bits per token."""
        return Estimate(self.nats.value / math.log(2), _scaled(self.nats.se, 1 / math.log(2)), self.nats.n)

    @property
    def perplexity(self) -> Estimate:
        """exp(nats)."""
        return _exponential(self.nats)


def perplexity_bound(
    predictor: Predictor,
    items: Sequence[Mapping[str, Tensor]],
    *,
    samples: int = 32,
    seed: int = 0,
    batch_size: int = 64,
) -> PerplexityBound:
    """Bound the perplexity of texts after their prompts, each by the masks of its own seed.

    A text ends with its first end-of-text token. A block-causal network was trained on more of them, to the end of the
    block, and predicts them too: their nats are counted, and the tokens are not, so that it stays a bound.

    Args:
        predictor: a network or an exact joint distribution.
        items: of text data: {"x": ids int64 [L], "prompt": length of the prompt, int64 0-d, 0 if missing}.
        samples, batch_size: see gen.eval.likelihood.nll_bounds.
        seed: of the masks.

    Raises:
        UserError: if there are no texts.
        NonFinite: if a text has no probability, or logits are NaN.
    """
    scored = [_scored(predictor, item) for item in items]
    if not scored:
        raise UserError("perplexity: no texts")
    prompts, texts, counts = zip(*scored, strict=True)
    seeds = sample_seeds(seed, len(texts))
    bounds = nll_bounds(predictor, prompts, texts, samples=samples, seed=seeds, batch_size=batch_size)
    impossible = next((i for i, bound in enumerate(bounds) if math.isinf(bound.nats)), None)
    if impossible is not None:
        raise NonFinite(f"perplexity: text {impossible} has no probability at all")
    tokens = sum(counts)
    nats = ratio_estimate([bound.nats for bound in bounds], counts)
    return PerplexityBound(
        nats=nats if len(texts) > 1 else dataclasses.replace(nats, se=None),
        monte_carlo=math.hypot(*(bound.se for bound in bounds)) / tokens,
        texts=len(texts), tokens=tokens, samples=samples, block_size=predictor.block_size,
        blocks=tuple(_of_block(bounds, j) for j in range(max(len(bound.blocks) for bound in bounds))),
    )  # fmt: skip


def _of_block(bounds: Sequence[NllBound], j: int) -> Estimate:
    """Return nats per predicted token of the j-th blocks."""
    some = [(bound.blocks[j].value, bound.lengths[j]) for bound in bounds if len(bound.blocks) > j]
    return ratio_estimate(*zip(*some, strict=True))


def _scored(predictor: Predictor, item: Mapping[str, Tensor]) -> tuple[list[int], list[int], int]:
    """Return an item's prompt, the ids after it that are predicted, and how many of them are its text."""
    if "given" in item:
        raise UserError("perplexity: the data are packed or have gaps to fill in; texts by themselves are scored")
    x, start, block_size = item["x"], int(item.get("prompt", 0)), predictor.block_size
    stop = min(len(x), max(start, int(text_end(x, predictor.eos_token_ids))) + 1)
    end = stop if block_size is None else min(len(x), -(-stop // block_size) * block_size)
    return x[:start].tolist(), x[start:end].tolist(), stop - start


@dataclass(frozen=True, kw_only=True)
class JudgedTexts:
    """Generated text as an autoregressive model judges it.

    A low perplexity alone says little: text that repeats itself has one too, and shows by its low entropy.

    Attributes:
        nats: of the judge, per token of the judge's own tokenizer, which may not be that of the writer.
        entropy: of the frequencies of a text's tokens, in nats, the mean over texts.
        texts, tokens: what was judged, in tokens of the judge.
        judge: name of the judge's folder.
        tokenizer: class of its tokenizer.
    """

    nats: Estimate
    entropy: Estimate
    texts: int
    tokens: int
    judge: str
    tokenizer: str

    @property
    def perplexity(self) -> Estimate:
        """exp(nats): generative perplexity."""
        return _exponential(self.nats)


@check_arguments(batch_size="[1, inf)")
@torch.no_grad()
def judge_texts(
    texts: Sequence[str], folder: str | Path, *, batch_size: int = 8, device: torch.device | str = "cpu"
) -> JudgedTexts:
    """Compute the generative perplexity of texts by a local autoregressive model, and their entropy.

    The judge reads characters: texts are tokenized anew by its own tokenizer. What is longer than its context is cut
    into pieces of that length, each judged by itself (MDLM); where it has a beginning-of-text token that comes first,
    else a piece's first token is not predicted.

    Args:
        texts: strings.
        folder: of a transformers model for causal language modelling, by save_pretrained, with its tokenizer.
        batch_size: pieces at a time; changes nothing but speed and memory.
        device: of the judge.

    Raises:
        UserError: for no texts, and for a folder that holds no such model, or another one's tokenizer.
        MissingDependency: without the package transformers.
    """
    if not any(texts):
        raise UserError(f"perplexity: {len(texts)} texts, and none has a character")
    model, tokenizer = _judge(Path(folder))
    model.eval().to(device)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    if lost := [text for text, own in zip(texts, ids, strict=True) if text.strip() and not own]:
        raise UserError(f"perplexity: the judge's tokenizer has no token for {shown(lost[0])}")
    begin = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    longest = getattr(model.config, "max_position_embeddings", None) or max(map(len, ids)) + 1
    pieces = [
        (i, begin + whole[a : a + longest - len(begin)])
        for i, whole in enumerate(ids)
        for a in range(0, len(whole), longest - len(begin))
    ]
    nats, counts = [0.0] * len(texts), [0.0] * len(texts)
    pieces = sorted((piece for piece in pieces if len(piece[1]) > 1), key=lambda piece: len(piece[1]))
    for a in range(0, len(pieces), batch_size):
        some = pieces[a : a + batch_size]
        for (i, piece), cost in zip(some, _next_token_nats(model, [piece for _, piece in some], device), strict=True):
            nats[i], counts[i] = nats[i] + cost, counts[i] + len(piece) - 1
    if not sum(counts):
        raise UserError("perplexity: no text has two tokens, and the judge has no beginning-of-text token")
    if not math.isfinite(sum(nats)):
        raise NonFinite(f"perplexity: the judge {folder} gives probabilities that are no numbers")
    return JudgedTexts(
        nats=ratio_estimate(nats, counts), entropy=mean_estimate([_entropy(one) for one in ids if one]),
        texts=len(texts), tokens=int(sum(counts)), judge=Path(folder).resolve().name,
        tokenizer=type(tokenizer).__name__,
    )  # fmt: skip


def _judge(folder: Path) -> tuple[Any, Any]:
    """Return a causal language model and its tokenizer, both from one folder, on the CPU."""
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise MissingDependency("a judge needs transformers: pip install 'gen-diffusion[transformers]'") from error
    for needed in ("config.json", "tokenizer*"):  # without a tokenizer transformers would begin an empty one
        if not any(folder.glob(needed)):
            raise UserError(f"{folder} holds no {needed}; a judge is saved by save_pretrained, tokenizer and all")
    with torch.device("meta"):  # PyTorch lists its constructors now; transformers' loader replaces one of them
        torch.empty(0)
    logging: Any = importlib.import_module("transformers.utils.logging")
    shows = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
    except Exception as error:  # of any kind: it depends on which part of the folder is wrong
        why = " ".join(str(error).split())[:300]
        raise UserError(f"{folder} cannot be read as a causal language model with its tokenizer: {why}") from error
    finally:
        if shows:
            logging.enable_progress_bar()
    if len(tokenizer) > model.config.vocab_size:
        raise UserError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens and the model {model.config.vocab_size}: they are of "
            "two models"
        )
    return model, tokenizer


def _next_token_nats(model: Any, pieces: list[list[int]], device: torch.device | str) -> Iterator[float]:
    """Yield the sum of -log p(token | those before it) of each piece, its first token left out."""
    width = max(map(len, pieces))
    ids = torch.zeros(len(pieces), width, dtype=torch.int64)
    for row, piece in zip(ids, pieces, strict=True):
        row[: len(piece)] = torch.tensor(piece)
    real = torch.arange(width) < torch.tensor([[len(piece)] for piece in pieces])
    logits = model(input_ids=ids.to(device), attention_mask=real.long().to(device)).logits[:, :-1].float()
    costs = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:].to(device), reduction="none")
    yield from torch.where(real[:, 1:], costs.cpu().double(), 0).sum(1).tolist()


def _entropy(ids: Sequence[int]) -> float:
    """Return the entropy of the tokens' frequencies, in nats."""
    return -sum(n / len(ids) * math.log(n / len(ids)) for n in Counter(ids).values())


def _exponential(nats: Estimate) -> Estimate:
    """Return exp of an estimate, its error by the delta method."""
    value = math.exp(nats.value) if nats.value < 700 else math.inf
    return Estimate(value, _scaled(nats.se, value), nats.n)


def _scaled(error: float | None, factor: float) -> float | None:
    return None if error is None else error * factor
