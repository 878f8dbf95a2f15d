"""Certainty distillation of text models: two masked views of an answer, cross-entropy, and entropy of what is right."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from gen.config.fields import check_fields
from gen.diffusion.denoiser import DenoiserLike
from gen.diffusion.net import unwrap
from gen.distillers.lib.answers import make_answers, text_teacher
from gen.distillers.lib.teacher import require_data
from gen.text.decoding import Decoding
from gen.training.distillation import Distiller
from gen.training.objectives import Batch, Roles, Step, join
from gen.training.objectives.lib.masked import TokenBatch, check_mask_token, token_batch, token_losses
from gen.training.run import Run

__all__ = ["CertaintyDistillation", "certainty_terms", "random_block"]


@dataclass(frozen=True)
class CertaintyDistillation(Distiller):
    """The loss CE + beta H over the masked positions of each of two views, on the teacher's own answers.

    Both views mask parts of one block; what is before it is clean, what is after it is masked in both. See
    `certainty_terms`.

    Attributes:
        prompts: number of prompts of the teacher's data that it answers, at least 1.
        beta: weight of the entropy, at least 0; dParallel's.
        temperature: of the distribution whose entropy it is, positive; dParallel's.
        complementary: False for the first view alone, the confidence-aware loss of LLaDA2 (CAP).
        only_correct: train only on answers that the data call right, if they can tell (gen.distillers.lib.answers).
        answer_length: tokens of an answer, at most; None for as many as the data have there.
        store: folder of the answers, to share them between students; None for the student's own folder.
    """

    prompts: int = 16_384
    beta: float = 2.0
    temperature: float = 0.5
    complementary: bool = True
    only_correct: bool = True
    answer_length: int | None = None
    store: str | None = None
    for_text: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self, prompts="[1, inf)", beta="[0, inf)", temperature="(0, inf)")
        check_fields(self, answer_length="[1, inf)")

    def student(self, run: Run, teacher: Path, folder: Path) -> Run:
        """Return the teacher's run on its answers, from its weights."""
        pipeline, store = text_teacher(teacher, type(self).__name__), Path(self.store or folder / "answers")
        prompts = require_data(type(self).__name__, run)
        assert isinstance(run.sampler, Decoding)
        data = make_answers(
            pipeline, prompts, store, self.prompts, only_correct=self.only_correct, length=self.answer_length
        )
        sampler = self.student_decoding(run.sampler)
        return replace(run, objective=self, data=data, teacher=None, init=str(teacher), sampler=sampler)

    @abstractmethod
    def student_decoding(self, decoding: Decoding) -> Decoding:
        """Return how the student is decoded by default, from the teacher's decoding."""
        ...

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        check_mask_token(net, type(self).__name__)
        return {"net": net}

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        loss, logs = self.loss(roles["net"].net, batch)
        yield "net", loss, {**logs, "loss": loss.detach()}

    def loss(self, net: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum over both views, and logs of their mean."""
        tokens, mask = token_batch(batch, net), unwrap(net).mask_token_id
        block, first = self.masks(net, tokens, batch)
        masked = [block & first, block & ~first] if self.complementary else [block & first]
        after = tokens.trained & (block.long().cumsum(1) == block.sum(1, keepdim=True)) & ~block
        noisy = torch.cat([tokens.x.masked_fill(m | after, mask) for m in masked])
        lengths = None if tokens.lengths is None else tokens.length.repeat(len(masked))
        views = zip(net(noisy, lengths).chunk(len(masked)), masked, strict=True)
        terms = [certainty_terms(logits, tokens.x, m, self.temperature, mask) for logits, m in views]
        ce, entropy, right = (torch.stack(each) for each in zip(*terms, strict=True))
        logs = {"ce": ce.mean(), "entropy": entropy.mean(), "accuracy": right.mean()}
        return ce.sum() + self.beta * entropy.sum(), {k: v.detach() for k, v in logs.items()}

    @abstractmethod
    def masks(self, net: nn.Module, tokens: TokenBatch, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the positions of the noised block, and which of them the first view masks, bool [B, L] each."""
        ...

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """Return the loss on fixed blocks and masks."""
        return self.loss(roles["net"].net, batch)[0]

    def validate_all(self, roles: Roles, batches: Sequence[Batch]) -> float:
        return float(self.validate(roles, join(batches)))  # a mean over masked tokens


def certainty_terms(
    logits: Tensor, x: Tensor, masked: Tensor, temperature: float, mask_token_id: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return cross-entropy of masked tokens, entropy of those that are predicted right, and their share.

    The entropy's gradient is 0 at all other positions.

    Args:
        logits: [B, L, V].
        x: the tokens [B, L].
        masked: which are masked, bool [B, L].
        temperature: the entropy is that of softmax(logits / temperature).
        mask_token_id: which gets no probability.

    Returns:
        Mean CE over the masked positions, mean entropy over those whose token is the likeliest already, in nats, and
        the share of these; 0-d each.
    """
    losses, right = token_losses(logits, x, mask_token_id)
    confident = masked & right
    count = masked.sum().clamp(min=1)
    chosen = logits[confident] if logits.dtype == torch.float64 else logits[confident].float()  # [K, V]
    ids = torch.tensor([mask_token_id], device=logits.device)
    logp = (chosen / temperature).index_fill(-1, ids, -torch.inf).log_softmax(-1)
    entropy = -(logp.exp() * logp.clamp(min=torch.finfo(logp.dtype).min)).sum()
    ce = torch.where(masked, losses, 0).sum() / count
    return ce, entropy / confident.sum().clamp(min=1), confident.sum() / count


def random_block(net: nn.Module, tokens: TokenBatch, length: int | None, u: Tensor) -> Tensor:
    """Return the positions of one block of each text's trained part, bool [B, L]; all for length None.

    Blocks lie as in decoding (gen.samplers.block_schedules.semi_ar): from the end of the prompt on, or where a
    block-causal network has its own, whatever `length` is.

    Args:
        net: the network.
        tokens: the texts.
        length: of a block; None for the whole trained part.
        u: uniform numbers [B]; a text of n blocks gets block floor(u n).
    """
    x, own = tokens.x, unwrap(net).block_size
    size = length if own is None else int(own)
    if size is None:
        return tokens.trained
    start = tokens.trained.to(torch.uint8).argmax(1)
    anchor = start if own is None else torch.zeros_like(start)
    low, high = (start - anchor) // size, (tokens.length - 1 - anchor) // size
    block = low + (u.to(x.device) * (high - low + 1)).long().clamp(max=high - low)
    positions = torch.arange(x.shape[1], device=x.device)
    return tokens.trained & ((positions - anchor[:, None]).div(size, rounding_mode="floor") == block[:, None])
