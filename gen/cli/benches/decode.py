"""Tokens per second of parallel decoding: ours with and without a cache, and diffusers' LLaDA2Pipeline, one network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from gen.cli.benches.lib.peers import of_diffusers
from gen.config.spec import override
from gen.eval.bench import BenchContext, Call, Case
from gen.models.text import Text
from gen.samplers.decoding_policies.lib.score import score, top_positions
from gen.samplers.decoding_policies.topk import TopK
from gen.text.contracts import CommitDecision, RowState, StepView
from gen.text.decoding import Decoding
from gen.text.loop import decode as decoded
from gen.text.ties import TIE

__all__ = ["decode"]


@dataclass(frozen=True)
class Sizes:
    """batch: prompts, of longest / 4 to `longest` tokens. length: tokens that are written. per_step: at a time."""

    batch: int = 8
    longest: int = 64
    length: int = 256
    per_step: int = 2
    width: int = 256
    depth: int = 4
    block: int = 32


SMALL = Sizes(batch=4, longest=32, length=64, depth=2)  # for a CPU
TINY = Sizes(batch=2, longest=8, length=8, width=64, depth=1, block=8)


def decode(context: BenchContext) -> Iterator[Case]:
    """Yield the case in which one block-causal network writes after ragged prompts, as many tokens at each evaluation.

    Their number is set by diffusers' own BlockRefinementScheduler with a threshold that nothing passes, ours by `topk`.
    Theirs has no cache, and pads prompts on the left. All that is written is compared in float64, where both take the
    position with the larger confidence however little larger it is; theirs there prompt by prompt, since it counts
    padding among the positions and so writes other tokens after it. `_Wrapped` says in what else they differ.

    Args:
        context: device, dtype and size.
    """
    yield _case(context, TINY if context.quick else Sizes() if context.cuda else SMALL)


def _case(context: BenchContext, sizes: Sizes) -> Case:
    bench = Decoders(context, sizes)
    calls = [
        Call("plain", lambda: bench.ours(None), True, check=lambda: bench.exact(None)),
        Call("cached", lambda: bench.ours("block"), True, check=lambda: bench.exact("block")),
        Call("diffusers", lambda: bench.theirs(bench.net), check=lambda: bench.one_by_one(bench.wide)),
    ]
    tokens = sizes.batch * sizes.length
    return Case(
        name=f"{sizes.batch} prompts, {sizes.length} tokens each, {sizes.per_step} at a time, blocks of {sizes.block}",
        dtype=context.dtype,
        calls=calls,
        inputs=bench.prompts,
        exact=lambda *prompts: bench.exact(None)(*prompts),
        baseline="plain",
        rates={"tokens/s": tokens},
    )


@dataclass(frozen=True)
class Untied(TopK):
    """TopK without equals: of two confidences the larger comes first, however little larger it is."""

    def select(self, view: StepView, state: RowState) -> tuple[CommitDecision, RowState]:
        values = score(view, self.score) / TIE**2
        return CommitDecision(top_positions(values, self.k)), state


class Decoders:
    """One network with fresh weights, and who decodes with it. Prompts are tensors of ids, the shortest first."""

    def __init__(self, context: BenchContext, sizes: Sizes, seed: int = 0):
        self.context, self.sizes, self.seed = context, sizes, seed

    @cached_property
    def net(self) -> Any:
        return self._net().to(self.context.dtype)

    @cached_property
    def wide(self) -> Any:
        return self._net().double()

    def _net(self) -> nn.Module:
        s = self.sizes
        with torch.random.fork_rng(), self.context.device:
            torch.manual_seed(self.seed)
            spec = Text(
                length=s.length + s.longest, width=s.width, depth=s.depth, heads=s.width // 64, block_size=s.block
            )
            net: nn.Module = spec.build()
            head = net.get_submodule("head")  # scaled, so that tokens are as unlike as a trained network's
            for weight in head.parameters():
                weight.data *= 18
        return net.eval().requires_grad_(False)

    def prompts(self, seed: int) -> tuple[Tensor, ...]:
        lengths = torch.linspace(self.sizes.longest / 4, self.sizes.longest, self.sizes.batch).int().tolist()
        generator = torch.Generator().manual_seed(seed)
        allowed = torch.tensor(
            [t for t in range(self.net.vocab_size) if t != self.net.mask_token_id and t not in self.net.eos_token_ids]
        )
        return tuple(allowed[torch.randint(len(allowed), (n,), generator=generator)] for n in lengths)

    def ours(self, cache: str | None) -> Callable[..., Tensor]:
        return self._decoder(self.net, cache, TopK(self.sizes.per_step))

    def exact(self, cache: str | None) -> Callable[..., Tensor]:
        return self._decoder(self.wide, cache, Untied(self.sizes.per_step))

    def _decoder(self, net: Any, cache: str | None, policy: TopK) -> Callable[..., Tensor]:
        """[B, length], what is written after each prompt."""
        s, how = self.sizes, override(Decoding(policy, stopping_rules=()), {"kv_plan": cache})

        def call(*prompts: Tensor) -> Tensor:
            tokens = decoded(net, prompts, s.length, how).tokens
            return torch.stack([row[len(p) : len(p) + s.length] for row, p in zip(tokens, prompts, strict=True)])

        return call

    def theirs(self, net: Any) -> Callable[..., Tensor]:
        """The same of their pipeline."""
        s, model = self.sizes, _Wrapped(net, self.context.device)
        scheduler = of_diffusers("BlockRefinementScheduler")(block_length=s.block)
        pipe = of_diffusers("LLaDA2Pipeline")(model=model, scheduler=scheduler, tokenizer=None)
        pipe.set_progress_bar_config(disable=True)

        def call(*prompts: Tensor) -> Tensor:
            wide = max(map(len, prompts))
            padded = torch.stack([torch.nn.functional.pad(p, (wide - len(p), 0)) for p in prompts])
            real = torch.stack([(torch.arange(wide) >= wide - len(p)).long() for p in prompts])
            return pipe(
                input_ids=padded, attention_mask=real, gen_length=s.length, block_length=s.block,
                num_inference_steps=-(-s.block // s.per_step), temperature=0.0, threshold=1.1, editing_threshold=None,
                eos_early_stop=False, mask_token_id=net.mask_token_id, output_type="seq",
            ).sequences  # fmt: skip

        return call

    def one_by_one(self, net: Any) -> Callable[..., Tensor]:
        call = self.theirs(net)
        return lambda *prompts: torch.cat([call(p) for p in prompts])


class _Wrapped(nn.Module):
    """Our network as that pipeline calls a model, which keeps apart what the two decode otherwise.

    Theirs counts the mask's own probability among those of tokens, and so ranks positions otherwise: here it has none,
    as in our loop. And theirs fills the last block to its end, beyond the text: tokens there, which no position of the
    text sees, take their turns, so that the text's own are committed in other steps. Here these come last: their
    distribution is uniform, than which none is less sure.
    """

    def __init__(self, net: Any, device: torch.device):
        super().__init__()
        self.net, self.device = net, device
        self.mask = torch.tensor([net.mask_token_id], device=device)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Any:
        documents = attention_mask.long()  # padding is one of its own
        logits = self.net(input_ids, documents=documents, position_ids=position_ids)
        logits.masked_fill_(documents[..., None] == 0, 0.0)
        return SimpleNamespace(logits=logits.index_fill_(-1, self.mask, -torch.inf))
