"""The parts of decoding, and what each of them is told: the contracts of
samplers/{decoding_policies,block_schedules,kv_plans,stopping_rules}.

Five parts are chosen independently: which tokens are drawn (TokenSampling), which of them are committed
(decoding_policies), where one may commit at all (block_schedules), what is computed anew (kv_plans) and when a row is
done before its last mask is (stopping_rules). The loop
that runs them is gen/text/loop.py.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.spec import build, name_of, part
from gen.text.predictor import Predictor

__all__ = [
    "Blocks",
    "Choice",
    "Decoded",
    "Decoding",
    "KvPlan",
    "Now",
    "Policy",
    "Progress",
    "State",
    "Stop",
    "TokenSampling",
    "Verdict",
    "View",
    "Window",
    "between",
]

State = Mapping[str, Tensor]  # a part's own memory of each row: tensors [B, ...]


def between(n: int, first: Tensor, last: Tensor) -> Tensor:
    """Which of n places lie from `first` on and before `last`, both [B]: bool [B, n]."""
    places = torch.arange(n, device=first.device)
    return (places >= first[:, None]) & (places < last[:, None])


@dataclass(eq=False)
class View:
    """What a policy sees of one step, for rows B and the W places that were asked about.

    logp [B, W, V]: log p(token | what is not masked) at temperature 1, float32 at least, the mask token's -inf.
    tokens, drawn, at int64 [B, W]: what stands there, what was drawn, the place on the canvas. masked bool [B, W]: the
    masks that may be committed now; later: masks outside of the window; fixed: neither, nor anything generated (the
    prompt, padding); here: the places of the window, masked or not. step, owed int64 [B]: steps in this window before
    this one, masks in it at its first step. start [B]: the end of the prompt. uniform(name): numbers [B, W] in [0, 1),
    of the row's own seed, step and place. draw(logp): what would have been drawn, int64 [B, W], had logp been this.
    """

    logp: Tensor
    tokens: Tensor
    drawn: Tensor
    at: Tensor
    masked: Tensor
    later: Tensor
    fixed: Tensor
    here: Tensor
    step: Tensor
    owed: Tensor
    start: Tensor
    uniform: Callable[[str], Tensor]
    draw: Callable[[Tensor], Tensor]

    @classmethod
    def of_block(
        cls,
        logp: Tensor,
        tokens: Tensor,
        mask: int,
        *,
        draw: Callable[[Tensor], Tensor] | None = None,
        step: int = 0,
        fixed: Tensor | None = None,
        uniform: Callable[[str], Tensor] | None = None,
        owed: Tensor | None = None,
    ) -> View:
        """The view of blocks [B, L] that are whole texts, as engines hand them to a policy.

        draw: takes the likeliest tokens unless given. fixed [B, L]: what is not generated. uniform: none, and a policy
        that draws numbers says so. owed [B]: masks at the first step; L if that is not known.
        """
        masked, (b, n) = tokens == mask, tokens.shape
        none, zero = torch.zeros_like(masked), torch.zeros(b, dtype=torch.int64, device=tokens.device)

        def nothing(name: str) -> Tensor:
            raise UserError(f"this policy draws numbers ({name!r}), and here there are none")

        draw = draw or (lambda logp: logp.argmax(-1))
        return cls(
            logp=logp,
            tokens=tokens,
            drawn=draw(logp),
            at=torch.arange(n, device=tokens.device).expand(b, n),
            masked=masked,
            later=none,
            fixed=none if fixed is None else fixed,
            here=~none,
            step=zero + step,
            owed=masked.sum(1) if step == 0 else zero + n if owed is None else owed,
            start=zero,
            uniform=uniform or nothing,
            draw=draw,
        )

    @cached_property
    def top(self) -> Any:
        """The two largest log-probabilities, .values and .indices [B, W, 2]; the lowest index first among equals."""
        return _top2(self.logp)

    @property
    def best(self) -> Tensor:
        """The likeliest token, int64 [B, W]."""
        return self.top[1][..., 0]

    @cached_property
    def confidence(self) -> Tensor:
        """Its probability, [B, W]: a function of the state alone."""
        return self.top[0][..., 0].exp()

    @cached_property
    def margin(self) -> Tensor:
        """The difference of the two largest probabilities, [B, W]."""
        pair = self.top[0].exp()
        return pair[..., 0] - pair[..., 1]

    @cached_property
    def entropy(self) -> Tensor:
        """-sum p log p in nats, [B, W]."""
        return -(self.logp.exp() * self.logp.clamp(min=torch.finfo(self.logp.dtype).min)).sum(-1)

    @cached_property
    def chosen(self) -> Tensor:
        """The probability of the token that was drawn, [B, W]: an order by it is biased at temperature > 0."""
        return self.logp.gather(-1, self.drawn[..., None])[..., 0].exp()


def _top2(logp: Tensor) -> tuple[Tensor, Tensor]:
    """Largest two and their indices, ties by the lowest index; torch.topk promises no order among equals."""
    first = logp.argmax(-1, keepdim=True)
    rest = logp.scatter(-1, first, -torch.inf)
    second = rest.argmax(-1, keepdim=True)
    indices = torch.cat([first, second], -1)
    return logp.gather(-1, indices), indices


@dataclass(frozen=True, eq=False)
class Choice:
    """commit [B, W]: masked places where `drawn` is written. edit: generated places where it is written over a token.
    remask: committed places that become masks again. hold [B]: rows that stay in a window in which no mask is left.
    tokens int64 [B, W]: what is written if it is not `drawn`."""

    commit: Tensor
    edit: Tensor | None = None
    remask: Tensor | None = None
    hold: Tensor | None = None
    tokens: Tensor | None = None


class Policy(Protocol):
    """Which of the drawn tokens are committed: a pure function of a view and of the policy's state.

    A frozen dataclass. It commits masked places only, and at least one in every row that has any, unless `waits`.
    """

    waits: bool
    """Whether a step may commit nothing; such a step costs no forward of a row that did not change."""

    @property
    def order_uses_samples(self) -> bool:
        """Whether which places are chosen depends on the tokens that were drawn: at temperature > 0 even one token at
        a time is then no sample of the model's joint (gen/text/worlds.py tells by how much)."""
        ...

    def init(self, rows: int, length: int) -> State:
        """The state before the first step, tensors [rows, ...], for canvases of so many tokens."""
        ...

    def select(self, view: View, state: State) -> tuple[Choice, State]: ...


@dataclass(frozen=True, eq=False)
class Window:
    """lo, hi int64 [B]: where a row may commit; block, until [B]: the ends of the block that this is (a part of)."""

    lo: Tensor
    hi: Tensor
    block: Tensor
    until: Tensor


class Blocks(Protocol):
    """Where one may commit: a pure function of which places are masked."""

    def window(self, masked: Tensor, start: Tensor, end: Tensor, block: int | None) -> Window:
        """masked bool [B, N]; start, end [B] bound what is generated; block: the predictor's own, or None.

        Every row that has a mask has one in its window, start <= lo < hi <= end.
        """
        ...

    def width(self, longest: int, block: int | None) -> int:
        """No window of a text of `longest` tokens is wider; known without a look at the masks."""
        ...


@dataclass(frozen=True, eq=False)
class Now:
    """What a plan of keys and values knows of one step, all [B]: the window, start and end of what is generated, steps
    in this window before this one, whether the window and its block are new, and how far all places are clean: computed
    when they and all they see had no mask left (block-causal predictors only; else 0)."""

    window: Window
    start: Tensor
    end: Tensor
    step: Tensor
    fresh: Tensor
    entered: Tensor
    clean: Tensor
    masked: Tensor  # [B, N]


class KvPlan(Protocol):
    """What is computed anew at each step: a pure function. All that is not is taken from memory, stale or not."""

    whole: bool
    """Whether the computed places always reach from the window to the end of the canvas."""

    def check(self, predictor: Predictor) -> None:
        """Raises UserError for a predictor that the plan does not fit."""
        ...

    def span(self, now: Now) -> tuple[Tensor, Tensor]:
        """The first place and the one after the last that are computed, int64 [B] each; they hold the window."""
        ...


@dataclass(frozen=True, eq=False)
class Verdict:
    """done [B]: rows that are finished. fill [B]: rows whose masks are first filled with the likeliest tokens.
    end [B]: where the generated text ends now, at most where it ended."""

    done: Tensor
    fill: Tensor | None = None
    end: Tensor | None = None


class Stop(Protocol):
    """When a row is done before its last mask is."""

    whole: bool
    """Whether the view has to hold all places that are generated, not only those of the window."""

    def init(self, rows: int, length: int) -> State: ...

    def check(
        self, view: View, tokens: Tensor, start: Tensor, end: Tensor, f: Predictor, state: State
    ) -> tuple[Verdict, State]:
        """After a commit: tokens [B, N] as they are now, the view of the step before it; f for its mask and stops."""
        ...


@dataclass(frozen=True)
class TokenSampling:
    """How a token is drawn: temperature 0 takes the likeliest. top_k, top_p: only from the k likeliest, or the fewest
    that together hold p (the one that crosses p included)."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None

    def __post_init__(self) -> None:
        warm = 0 <= self.temperature < math.inf  # not so of nan
        if not warm or not 0 < self.top_p <= 1 or (self.top_k is not None and self.top_k < 1):
            raise UserError(f"{self}; temperature >= 0 and finite, 0 < top_p <= 1 and top_k >= 1")

    def draw(self, logp: Tensor, u: Tensor | None) -> Tensor:
        """Token ids [B, W] from logp [B, W, V] by one uniform number each, [B, W], in float64 (arXiv 2409.02908)."""
        if self.temperature == 0 or u is None:
            return logp.argmax(-1)
        logp = (logp.double() / self.temperature).log_softmax(-1)
        if self.top_k is not None and self.top_k < logp.shape[-1]:
            logp = logp.masked_fill(logp < logp.topk(self.top_k, -1).values[..., -1:], -torch.inf)
        if self.top_p < 1:
            ordered, index = torch.sort(logp.softmax(-1), dim=-1, descending=True, stable=True)
            out = ordered.cumsum(-1) - ordered >= self.top_p  # what comes before it holds p already
            logp = logp.masked_fill(out.gather(-1, index.argsort(-1)), -torch.inf)
        p = logp.softmax(-1)
        sums, ids = p.cumsum(-1), torch.arange(p.shape[-1], device=p.device)
        last = torch.where(p > 0, ids, 0).amax(-1)  # rounding must not lead beyond it
        drawn = torch.searchsorted(sums, (u.to(sums) * sums[..., -1])[..., None], right=True)[..., 0]
        return torch.minimum(drawn, last)


@dataclass(frozen=True)
class Decoding:
    """How a text is decoded. kv_plan None: everything is computed at every step. stopping_rules: one or several, None
    for none. cfg_scale: as in gen.text.predictor.Guided. suppress_tokens: token ids that are never predicted."""

    policy: Any = part("samplers.decoding_policies", default="threshold")
    block_schedule: Any = part("samplers.block_schedules", default="semi_ar")
    kv_plan: Any = part("samplers.kv_plans", default=None)
    stopping_rules: Any = part("samplers.stopping_rules", default=("eos",))
    sampling: TokenSampling = field(default_factory=TokenSampling)
    cfg_scale: float = 0.0
    suppress_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            folders, value = f.metadata.get("folders"), getattr(self, f.name)
            if folders and isinstance(f.default, tuple):
                given = () if value is None else value if isinstance(value, (list, tuple)) else (value,)
                object.__setattr__(self, f.name, tuple(_built(folders, f.name, v) for v in given))
            elif folders and (value is not None or f.default is not None):
                object.__setattr__(self, f.name, _built(folders, f.name, value))
        if not math.isfinite(self.cfg_scale):
            raise UserError(f"Decoding: cfg_scale = {self.cfg_scale}; it must be finite")
        if self.kv_plan is not None and self.cfg_scale:
            raise UserError("Decoding: guidance needs two prompts' keys and values, so it goes without a kv_plan")
        if self.kv_plan is not None and self.policy.waits:
            raise UserError(f"Decoding: {name_of(type(self.policy))} may wait, and then a kv_plan has nothing to save")
        for stop in self.stopping_rules:
            if stop.whole and self.kv_plan is not None and not self.kv_plan.whole:
                raise UserError(
                    f"Decoding: {name_of(type(stop))} looks at the whole text, and the kv_plan "
                    f"{name_of(type(self.kv_plan))} does not compute it"
                )

    def beside(self, folder: Path) -> Decoding:
        """The same for the model of a checkpoint: a file that the policy reads lies there."""
        found = getattr(self.policy, "beside", None)
        return self if found is None else dataclasses.replace(self, policy=found(folder))


def _built(folders: tuple[str, ...], name: str, value: Any) -> Any:
    """A part from its name, spec or object; UserError for what is no such part."""
    made = build(folders, value)
    if isinstance(made, type) or not hasattr(made, _DOES[name]):
        kind = folders[0].rpartition(".")[2]
        raise UserError(f"Decoding: {name} = {value!r}; a name of `gen list {kind}`, a spec or an object made of one")
    return made


_DOES = {
    "policy": "select",
    "block_schedule": "window",
    "kv_plan": "span",
    "stopping_rules": "check",
}  # what tells a part from others


@dataclass(eq=False)
class Progress:
    """One step, of the rows that were active in it: rows [R] of the batch, their tokens [R, N] after it, masks among
    them where nothing is committed; guess [R, N]: the same with what was drawn in the place of seen masks."""

    rows: Tensor
    tokens: Tensor
    guess: Tensor


@dataclass(eq=False)
class Decoded:
    """tokens int64 [B, N]: prompt and text, then padding; start, end [B] bound the text (end: after a stop token).

    when [B, N]: the row's step that committed a place, -1 where none did; sure [B, N]: the probability it had then.
    nfe [B]: evaluations of the network. computed [B]: places it computed in all. full [B]: evaluations that computed
    the whole canvas. reasons: what ended each row ("full", or a stop's name). steps: of the loop. forwards: calls.
    """

    tokens: Tensor
    start: Tensor
    end: Tensor
    when: Tensor
    sure: Tensor
    nfe: Tensor
    computed: Tensor
    full: Tensor
    reasons: list[str]
    steps: int = 0
    forwards: int = 0
    seconds: float = 0.0

    def text(self, i: int) -> Tensor:
        """The ids of row i's text, without its prompt."""
        return self.tokens[i, self.start[i] : self.end[i]]
