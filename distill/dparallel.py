"""dParallel: a text model learns to be certain of its own right answers, so that more of them passes a threshold."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from gen.config.errors import UserError
from gen.distillers.lib.certainty import Certain, window
from gen.samplers.decoding_policies.entropy import Entropy
from gen.text.decoding import Decoding
from gen.training.objectives import Batch
from gen.training.objectives.lib.masked import Tokens
from gen.training.run import Run

__all__ = ["DParallel"]


@dataclass(frozen=True)
class DParallel(Certain):
    """CE + CE' + beta (H + H') on the teacher's own right answers (Chen et al. 2025, arXiv 2509.26488).

    Two views of a text mask a share `ratio` of one block and the rest of it; what is before the block is clean, what is
    after it is masked in both. CE: the mean over a view's masked places. H: the mean entropy of softmax(logits /
    temperature) over those of them whose token is the likeliest already; it moves no other place. block: of so many
    tokens, a random one of each text; None for the whole answer (the paper's Dream). ratio: None draws it uniformly for
    each text, so that nearly empty answers are seen too. complementary: False for the first view alone, the
    confidence-aware loss of LLaDA2 (CAP). The student is decoded by the policy `entropy`.

    prompts: how many are asked of the teacher's data. right: only answers that the data call right, if they can tell
    (gen.distillers.lib.answers). length: tokens of an answer, at most; None for as many as the data have there. lora:
    the rank of adapters that learn instead of the network (peft); the weights that are saved have them added in, and
    averages of those are one update late. store: a folder of answers, to share them between students.

    Measured (2026-11-28, one core of an AMD EPYC that other work shared, torch 2.13) on the recipe `lists`, 1000
    held-out prompts of all ten tasks: right answers in percent, tokens per forward. Teacher: one token a step 100, .69;
    threshold .9 99.9, 2.04; .8 97.0, 2.43; .7 90.2, 2.86; entropy .45 99.7, 2.11. Its student (5 minutes of that core;
    --objective.ratio none --steps 1500 --optim.lr 5e-4): one token a step 100, .69; threshold .95 99.0, 2.92; .9 97.1,
    3.22; .8 94.6, 3.73; .7 90.8, 4.21; entropy .1 99.8, 2.57; .45 95.7, 3.45. With ratio .5 and 2000 steps: threshold
    .97 99.0, 2.77; .9 96.9, 3.24; .7 89.9, 4.28. Within one point of one token a step that is 1.35 times the teacher's
    tokens per forward. On tasks with one answer the teacher is as good as certain (5.2 of at most 5.4 at .9); the gain
    is on those with many (1.8 instead of 1.2 at 97.5 percent), where the student gives the one answer that the
    teacher would have given: diversity is the price. At one and the same threshold it is wrong more often.
    """

    block: int | None = 32
    ratio: float | None = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.block is not None and self.block < 1) or (self.ratio is not None and not 0 < self.ratio <= 1):
            raise UserError(
                f"DParallel: block = {self.block}, ratio = {self.ratio}; block >= 1 and 0 < ratio <= 1, or none"
            )

    def decoding(self, run: Run) -> Decoding:
        assert isinstance(run.sampler, Decoding)
        return replace(run.sampler, policy=Entropy())

    def masks(self, net: Any, tokens: Tokens, batch: Batch) -> tuple[Tensor, Tensor]:
        share = batch.noise.uniform("ratio")[:, None] if self.ratio is None else self.ratio
        hit = batch.noise.uniform("mask", tokens.x.shape[1]) < share
        return window(net, tokens, self.block, batch.noise.uniform("block")), hit.to(tokens.x.device)
