"""Learn2PD: a small filter learns from a text model's own decoding which of its tokens are final already."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.spec import spec_of
from gen.data.answers import Answers
from gen.diffusion.denoiser import DenoiserLike
from gen.diffusion.net import unwrap
from gen.distillers.lib.answers import Asked, make_store, padded, sequential, text_teacher
from gen.pipeline import locate
from gen.samplers.block_schedules.semi_ar import SemiAR
from gen.samplers.decoding_policies.learned import Filter, Learned, window_values
from gen.text.contracts import CommitDecision, RowState, StepView
from gen.text.decoding import Decoding, TokenSampling
from gen.text.loop import decode
from gen.text.pipeline import TextPipeline
from gen.training.objectives import Batch, Roles, Step
from gen.training.objectives.lib.masked import check_masks
from gen.training.optim.adamw import AdamW
from gen.training.run import Run, run_from
from gen.training.schedules import Constant

__all__ = ["Learn2PD", "Rates", "held_out", "make_replays", "rates", "replay"]

HOLDOUT = 0.1  # of the replays, as in the paper


@dataclass(frozen=True)
class Learn2PD:
    """Trains the filter of the policy `learned`; the network stays as it is (Bao et al. 2025, arXiv 2509.25188).

    The teacher answers `prompts` prompts one token at a time. Each answer is decoded again, every step committing
    exactly the tokens that are right already, and a step without any the whole window ("extremely greedy parallel").
    From the confidences of its window the filter tells which masked tokens are right: binary cross-entropy. The logs
    say of how many wrong tokens it is sure (false_positives) and of how many right ones (found), at `threshold`, and
    gen.distillers.learn2pd.held_out says the same of prompts that it was not trained on.

    block: the length of a window, and of the filter; None for the teacher's own. hidden, layers: of the filter. The
    teacher is decoded greedily. The run has the paper's AdamW of rate 3e-3, and no averages; its checkpoints hold the
    teacher's weights with the filter beside them. length, store: see gen.distillers.dparallel.

    Measured as there, with --objective.block 8, half a minute of training: of wrong tokens held out 1.7 percent are
    called right at .96 (with 8192 prompts; of right ones 80 percent are). Right answers in percent, tokens per forward:
    one token a step 100, .69; the filter at .96 99.5, 2.24 (2640 prompts: 99.6, 2.31), at .9 95.7, 2.59. So three times
    the tokens per forward at equal success; but of that a threshold has all but 7 percent (99.5, 2.09 between .9 and
    .8), since confidences alone hardly tell which of many right answers the teacher takes.
    """

    prompts: int = 2640
    block: int | None = None
    hidden: int = 32
    layers: int = 2
    threshold: float = 0.96
    length: int | None = None
    store: str | None = None
    writes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("prompts", "block", "hidden", "layers", "length")}
        for name, value in sizes.items():
            if value is not None and value < 1:
                raise UserError(f"Learn2PD: {name} = {value}; it must be at least 1")
        if not 0 <= self.threshold <= 1:
            raise UserError(f"Learn2PD: threshold = {self.threshold}; it must be in [0, 1]")

    def student(self, run: Run, teacher: Path, folder: Path) -> Run:
        """The run of the filter: on replays of the teacher's answers, beside the teacher's weights."""
        taught = text_teacher(teacher, "Learn2PD")
        size = self.block or _window(taught)
        sampler = replace(taught.decoding, policy=Learned("filter.safetensors", threshold=self.threshold))
        if taught.net.block_size is None:
            sampler = replace(sampler, block_schedule=SemiAR(length=size))
        elif size != _window(taught):
            raise UserError(f"Learn2PD: block = {size}, and the teacher's own blocks have {_window(taught)} tokens")
        place = Path(self.store) if self.store else folder / "replays"
        data = make_replays(taught, run.data, place, self.prompts, sampler, size, length=self.length)
        return replace(
            run, objective=replace(self, block=size), data=data, teacher=None, init=str(teacher), sampler=sampler,
            optim=AdamW(lr=3e-3), schedule=Constant(), ema=(), batch_size=512, steps=2000, sample_every=0,
        )  # fmt: skip

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        check_masks(net, "Learn2PD")
        return {"net": net.requires_grad_(False), "filter": Filter(self.block or 32, self.hidden, self.layers)}

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        loss, logits = self.loss(roles, batch)
        found = rates(logits, batch.cond["right"], batch.cond["open"], self.threshold)
        logs = {k: loss.new_tensor(getattr(found, k)) for k in ("false_positives", "found")}
        yield "filter", loss, {"loss": loss.detach(), **logs}

    def loss(self, roles: Roles, batch: Batch) -> tuple[Tensor, Tensor]:
        """The mean over open places, and the filter's logits [B, length]."""
        if "confidence" not in batch.cond:
            raise UserError("Learn2PD needs replays: this data has none")
        logits = roles["filter"].net(batch.cond["confidence"])
        right, open_ = batch.cond["right"].to(logits), batch.cond["open"]
        each = nn.functional.binary_cross_entropy_with_logits(logits, right, reduction="none")
        return torch.where(open_, each, 0).sum() / open_.sum().clamp(min=1), logits

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """The loss on replays held out."""
        return self.loss(roles, batch)[0]


@dataclass(frozen=True)
class Rates:
    """Shares at a threshold. false_positives: of the wrong tokens, those that are called right. found: of the right
    ones. wrong: of those that are called right, the wrong ones. tokens: how many were judged."""

    false_positives: float
    found: float
    wrong: float
    tokens: int


def rates(logits: Tensor, right: Tensor, open_: Tensor, threshold: float) -> Rates:
    """Of logits, right and open_ [B, length]; only what is open counts. A share of nothing is 0."""
    said, right, open_ = logits.detach().sigmoid() > threshold, right.bool() & open_, open_.bool()
    wrong = open_ & ~right

    def share(part: Tensor, whole: Tensor) -> float:
        return float((part & whole).sum() / whole.sum().clamp(min=1))

    return Rates(share(said, wrong), share(said, right), share(wrong, said & open_), int(open_.sum()))


def held_out(folder: str | Path) -> Rates:
    """The rates of a run of Learn2PD on the replays that it was not trained on."""
    place = locate(Path(folder))
    info = checkpoints.read(place, verify=False)
    run = run_from(info["run"])
    if not isinstance(run.objective, Learn2PD):
        raise UserError(f"{folder} is no run of learn2pd")
    columns = run.data.open("test").columns
    made = Filter.read(place / "filter.safetensors", info["files"]["filter.safetensors"]["sha256"])
    return rates(made(columns["confidence"]), columns["right"], columns["open"], run.objective.threshold)


# -- replays ----------------------------------------------------------------------------------------------------------


def make_replays(
    teacher: TextPipeline,
    data: Any,
    folder: Path,
    n: int,
    how: Decoding,
    size: int,
    *,
    length: int | None = None,
    quiet: bool = False,
) -> Answers:
    """Every step of every replay of the teacher's answers to n prompts, in `folder`; see Learn2PD.

    how: block_schedule, stopping_rules and cfg_scale, of answers and replays; windows have at most `size` tokens. Items
    have also "confidence" float32, "right" and "open" bool [size].
    """
    how = replace(sequential(how), sampling=TokenSampling())

    def made(asked: Asked) -> dict[str, Tensor]:
        decoded = decode(teacher.net, asked.prompts, asked.lengths, how, seed=asked.seeds)
        texts = padded(teacher, asked, decoded)
        steps = replay(teacher.net, asked.prompts, asked.lengths, decoded.tokens, how, size)
        row = steps.pop("row")
        return {**steps, **{key: texts[key][row] for key in ("x", "prompt", "length")}}

    about = {"decoding": spec_of(how, named=False), "window": size, "length": length}
    return make_store(teacher, data, folder, n, about, made, length=length, quiet=quiet, holdout=HOLDOUT)


def replay(
    f: Any, prompts: list[list[int]], lengths: list[int], answers: Tensor, how: Decoding, size: int
) -> dict[str, Tensor]:
    """Decodes `answers` [B, N], canvases of prompt and text, again, committing what is right.

    Of every step and row, [S, ...]: row, which text; confidence float32 [size], of the window's tokens, 1 where one is
    committed or there is none; open: which may be committed; right: of which of these the likeliest is the answer's.
    """
    policy = _Replay(answers, size)
    decode(f, prompts, lengths, replace(how, policy=policy, sampling=TokenSampling(), kv_plan=None))
    return {key: torch.cat([step[key] for step in policy.steps]).cpu() for key in policy.steps[0]}


@dataclass(frozen=True, eq=False)
class _Replay:
    """Commits the tokens that are those of the answers, and where none is, the answer's window; keeps every step."""

    answers: Tensor
    size: int
    steps: list[dict[str, Tensor]] = field(default_factory=list)
    may_skip: ClassVar[bool] = False
    order_depends_on_samples: ClassVar[bool] = False

    def init(self, rows: int, length: int) -> RowState:
        return {"answer": self.answers[:, :length], "row": torch.arange(rows, device=self.answers.device)}

    def select(self, view: StepView, state: RowState) -> tuple[CommitDecision, RowState]:
        answer = state["answer"].gather(1, view.positions)
        right = (view.top_token == answer) & view.masked
        seen = torch.where(view.masked, view.confidence, 1.0)
        columns = [(seen.float(), 1.0), (view.masked.float(), 0.0), (right.float(), 0.0)]
        confidence, open_, correct = (window_values(view, values, empty, self.size) for values, empty in columns)
        step = {"row": state["row"], "confidence": confidence, "open": open_ > 0, "right": correct > 0}
        alive = view.masked.any(1)
        self.steps.append({key: value[alive] for key, value in step.items()})
        return CommitDecision(torch.where(right.any(1, keepdim=True), right, view.masked), tokens=answer), state


def _window(teacher: TextPipeline) -> int:
    """The longest window in which a teacher is decoded; UserError for blocks that have no longest one."""
    blocks = teacher.decoding.block_schedule
    if not isinstance(blocks, SemiAR):
        raise UserError(f"Learn2PD: the teacher's blocks are {blocks!r}; say how long a window is with block")
    own = blocks.length if teacher.net.block_size is None else int(unwrap(teacher.net).block_size)
    return own if blocks.sub is None else min(own, blocks.sub)
