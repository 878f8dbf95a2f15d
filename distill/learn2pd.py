"""Learn2PD: a small filter learns from a text model's own decoding which of its tokens are final already."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import spec_of
from gen.data import DataSource
from gen.data.answers import Answers
from gen.data.lib.shards import WHOLE_STORE, ShardPlan
from gen.diffusion.denoiser import DenoiserLike
from gen.diffusion.net import unwrap
from gen.distillers.lib.answers import (
    PromptBatch,
    answer_columns,
    make_answer_store,
    sequential_decoding,
    text_teacher,
)
from gen.distillers.lib.teacher import require_data
from gen.samplers.block_schedules.semi_ar import SemiAR
from gen.samplers.decoding_policies.learned import Filter, Learned, window_values
from gen.text.contracts import CommitDecision, DecodingPolicy, Predictor, RowState, StepView
from gen.text.decoding import Decoding, TokenSampling
from gen.text.loop import decode
from gen.text.pipeline import TextPipeline
from gen.training.distillation import Distiller
from gen.training.objectives import Batch, Roles, Step
from gen.training.objectives.lib.masked import check_mask_token
from gen.training.optim.adamw import AdamW
from gen.training.run import Run, run_from
from gen.training.schedules import Constant

__all__ = ["Learn2PD", "FilterRates", "filter_rates", "held_out_rates", "make_replays", "replay"]  # noqa: RUF022 - the plug-in comes first

HOLDOUT = 0.1  # of the replays, as in the paper


@dataclass(frozen=True)
class Learn2PD(Distiller):
    """Learning to decode in parallel, Learn2PD (Bao et al. 2025, arXiv 2509.25188): trains the filter of a policy.

    The loss is the binary cross-entropy of the filter of the policy `learned`, on a teacher's replays. The network
    stays as it is. The teacher answers prompts one token at a time. Each answer is decoded again, every step committing
    exactly the tokens that are right already, and a step without any the whole window ("extremely greedy parallel").
    From the confidences of its window the filter predicts which masked tokens are right. The logs are `filter_rates` at
    the threshold, and `held_out_rates` are those of prompts that it was not trained on.

    The teacher is decoded greedily. The run has the paper's AdamW of rate 3e-3, and no averages; its checkpoints hold
    the teacher's weights with the filter beside them.

    Measured as dParallel, with --objective.block 8, half a minute of training: of wrong tokens held out 1.7 percent are
    called right at .96 (with 8192 prompts; of right ones 80 percent are). Right answers in percent, tokens per forward:
    one token a step 100, .69; the filter at .96 99.5, 2.24 (2640 prompts: 99.6, 2.31), at .9 95.7, 2.59. So three times
    the tokens per forward at equal success; but of that a threshold has all but 7 percent (99.5, 2.09 between .9 and
    .8), since confidences alone hardly say which of many right answers the teacher takes.

    Attributes:
        prompts: how many the teacher answers, at least 1; the paper's.
        block: length of a window, and of the filter; None for the teacher's own.
        hidden, layers: of the filter; the paper's.
        threshold: of the policy, in [0, 1]; the paper's.
        answer_length, store: see CertaintyDistillation.
    """

    prompts: int = 2640
    block: int | None = None
    hidden: int = 32
    layers: int = 2
    threshold: float = 0.96
    answer_length: int | None = None
    store: str | None = None
    for_text: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self, prompts="[1, inf)", block="[1, inf)", hidden="[1, inf)", layers="[1, inf)")
        check_fields(self, threshold="[0, 1]", answer_length="[1, inf)")

    def student(self, run: Run, teacher: Path, folder: Path) -> Run:
        """Return the run of the filter, on replays of the teacher's answers, beside the teacher's weights."""
        pipeline = text_teacher(teacher, "Learn2PD")
        size = self.block or _longest_window(pipeline)
        sampler = replace(pipeline.decoding, policy=Learned("filter.safetensors", threshold=self.threshold))
        if pipeline.net.block_size is None:
            sampler = replace(sampler, block_schedule=SemiAR(length=size))
        elif size != _longest_window(pipeline):
            own = _longest_window(pipeline)
            raise UserError(f"Learn2PD: block = {size}, and the teacher's own blocks have {own} tokens")
        store = Path(self.store or folder / "replays")
        prompts = require_data("Learn2PD", run)
        data = make_replays(pipeline, prompts, store, self.prompts, sampler, size, length=self.answer_length)
        return replace(
            run, objective=replace(self, block=size), data=data, teacher=None, init=str(teacher), sampler=sampler,
            optim=AdamW(lr=3e-3), schedule=Constant(), ema=(), batch_size=512, steps=2000, sample_every=0,
        )  # fmt: skip

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        check_mask_token(net, "Learn2PD")
        return {"net": net.requires_grad_(False), "filter": Filter(self.block or 32, self.hidden, self.layers)}

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        loss, logits = self.loss(roles, batch)
        rates = asdict(filter_rates(logits, batch.cond["correct"], batch.cond["masked"], self.threshold))
        logs = {name: loss.new_tensor(rates[name]) for name in ("false_positive_rate", "recall")}
        yield "filter", loss, {"loss": loss.detach(), **logs}

    def loss(self, roles: Roles, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the mean over masked positions, and the filter's logits [B, length]."""
        if "confidence" not in batch.cond:
            raise UserError("Learn2PD needs replays: this data has none")
        logits = roles["filter"].net(batch.cond["confidence"])
        correct, masked = batch.cond["correct"].to(logits), batch.cond["masked"]
        losses = nn.functional.binary_cross_entropy_with_logits(logits, correct, reduction="none")
        return torch.where(masked, losses, 0).sum() / masked.sum().clamp(min=1), logits


@dataclass(frozen=True)
class FilterRates:
    """Shares of tokens at a threshold.

    Attributes:
        false_positive_rate: of the wrong tokens, those that are called right.
        recall: of the right tokens, those that are called right.
        false_discovery_rate: of those that are called right, the wrong ones.
        tokens: how many were judged.
    """

    false_positive_rate: float
    recall: float
    false_discovery_rate: float
    tokens: int


def filter_rates(logits: Tensor, correct: Tensor, masked: Tensor, threshold: float) -> FilterRates:
    """Count how often a filter is right; a share of nothing is 0.

    Args:
        logits: [B, length].
        correct: which tokens are right, [B, length].
        masked: which count, [B, length].
        threshold: of the filter's probability.
    """
    positive, correct, masked = logits.detach().sigmoid() > threshold, correct.bool() & masked, masked.bool()
    wrong = masked & ~correct

    def share(part: Tensor, whole: Tensor) -> float:
        return float((part & whole).sum() / whole.sum().clamp(min=1))

    rates = share(positive, wrong), share(positive, correct), share(wrong, positive & masked)
    return FilterRates(*rates, int(masked.sum()))


def held_out_rates(folder: str | Path) -> FilterRates:
    """Return the rates of a run of Learn2PD on the replays that it was not trained on.

    Args:
        folder: of the run.
    """
    place = checkpoints.locate(Path(folder))
    info = checkpoints.read(place, verify=False)
    run = run_from(info["run"], folder)
    if not isinstance(run.objective, Learn2PD) or not isinstance(run.data, Answers):
        raise UserError(f"{folder} is no run of learn2pd")
    columns = run.data.open("test").columns
    net = Filter.read(place / "filter.safetensors", info["files"].get("filter.safetensors", {}).get("sha256"))
    return filter_rates(net(columns["confidence"]), columns["correct"], columns["masked"], run.objective.threshold)


# -- replays ----------------------------------------------------------------------------------------------------------


def make_replays(
    teacher: TextPipeline,
    data: DataSource,
    folder: Path,
    n: int,
    decoding: Decoding,
    size: int,
    *,
    length: int | None = None,
    plan: ShardPlan = WHOLE_STORE,
) -> Answers:
    """Write every step of every replay of the teacher's answers to prompts; see Learn2PD.

    Items have, beside those of answers, "confidence" float32, "correct" and "masked" bool [size].

    Args:
        teacher, data, folder, n, length, plan: as of gen.distillers.lib.answers.make_answers.
        decoding: block_schedule, stopping_rules and cfg_scale, of answers and replays.
        size: the longest window.
    """
    decoding = replace(sequential_decoding(decoding), sampling=TokenSampling())

    def generate(batch: PromptBatch) -> dict[str, Tensor]:
        decoded = decode(teacher.net, batch.prompts, batch.lengths, decoding, seed=batch.seeds)
        texts = answer_columns(teacher, batch, decoded)
        steps = replay(teacher.net, batch.prompts, batch.lengths, decoded.tokens, decoding, size)
        row = steps.pop("row")
        return {**steps, **{key: texts[key][row] for key in ("x", "prompt", "length")}}

    about = {"decoding": spec_of(decoding, named=False), "window": size, "length": length}
    return make_answer_store(teacher, data, folder, n, about, generate, length=length, plan=plan, holdout=HOLDOUT)


def replay(
    f: Predictor, prompts: list[list[int]], lengths: list[int], answers: Tensor, decoding: Decoding, size: int
) -> dict[str, Tensor]:
    """Decode answers again, committing what is right.

    Args:
        f: the predictor.
        prompts, lengths: as of gen.text.loop.decode.
        answers: canvases of prompt and text, [B, N].
        decoding: block_schedule, stopping_rules and cfg_scale.
        size: the longest window.

    Returns:
        Of every step and row, [S, ...]: row, which text; of the window's tokens, [S, size], the confidence float32, 1
        where one is committed or there is none, whether they are masked, and whether masked ones are correct.
    """
    policy = _Replay(answers, size)
    decode(f, prompts, lengths, replace(decoding, policy=policy, sampling=TokenSampling(), kv_plan=None))
    return {key: torch.cat([step[key] for step in policy.steps]).cpu() for key in policy.steps[0]}


@dataclass(frozen=True, eq=False)
class _Replay(DecodingPolicy):
    """Commits the tokens that are those of the answers, and where none is, the answer's window; keeps every step."""

    answers: Tensor
    size: int
    steps: list[dict[str, Tensor]] = field(default_factory=list)

    def init(self, rows: int, length: int) -> RowState:
        return {"answer": self.answers[:, :length], "row": torch.arange(rows, device=self.answers.device)}

    def select(self, view: StepView, state: RowState) -> tuple[CommitDecision, RowState]:
        answer = state["answer"].gather(1, view.positions)
        right = (view.top_token == answer) & view.masked
        certain = torch.where(view.masked, view.confidence, 1.0)
        columns = [(certain.float(), 1.0), (view.masked.float(), 0.0), (right.float(), 0.0)]
        confidence, masked, correct = (window_values(view, values, empty, self.size) for values, empty in columns)
        step = {"row": state["row"], "confidence": confidence, "masked": masked > 0, "correct": correct > 0}
        active = view.masked.any(1)
        self.steps.append({key: value[active] for key, value in step.items()})
        return CommitDecision(torch.where(right.any(1, keepdim=True), right, view.masked), tokens=answer), state


def _longest_window(teacher: TextPipeline) -> int:
    """The longest window in which a teacher is decoded; UserError for blocks that have no longest one."""
    blocks = teacher.decoding.block_schedule
    if not isinstance(blocks, SemiAR):
        raise UserError(f"Learn2PD: the teacher's blocks are {blocks!r}; say how long a window is with block")
    own = blocks.length if teacher.net.block_size is None else int(unwrap(teacher.net).block_size)
    return own if blocks.sub is None else min(own, blocks.sub)
