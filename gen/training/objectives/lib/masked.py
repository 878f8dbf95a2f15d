"""Shared pieces of the objectives of masked text: their base, trained tokens, stratified times, cross-entropies."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.diffusion.denoiser import DenoiserLike
from gen.diffusion.net import unwrap
from gen.text.contracts import positions_between
from gen.text.documents import document_starts
from gen.text.mask_path import MaskPath
from gen.text.tokenizers import text_end
from gen.training.objectives import Batch, Objective, Roles, Step, join
from gen.training.objectives.lib.routing import imbalance, recorded_routers, routers

__all__ = [
    "MaskedObjective",
    "TokenBatch",
    "check_bidirectional",
    "check_mask_path",
    "check_mask_token",
    "packed_tokens",
    "stratify",
    "text_uniforms",
    "token_batch",
    "token_losses",
    "window_ends",
]


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Tokens of a batch of texts.

    Attributes:
        x: ids, int64 [B, L].
        trained: positions from a prompt's end to a text's that are not given, bool [B, L].
        length: end of each text, int64 [B]; from there on there is padding.
        documents: of windows of several texts, int64 [B, L] (gen.text.documents); None for one text each.
    """

    x: Tensor
    trained: Tensor
    length: Tensor
    documents: Tensor | None = None

    @property
    def attended(self) -> dict[str, Tensor | None]:
        """The arguments of a network that say which tokens are attended to."""
        return {"lengths": self.lengths} if self.documents is None else {"documents": self.documents}

    @property
    def texts(self) -> Tensor:
        """The text of each position, int64 [B, L]; padding is one of its own."""
        if self.documents is not None:
            return self.documents
        return (torch.arange(self.x.shape[1], device=self.x.device) >= self.length[:, None]).long()

    def of_texts(self, values: Tensor) -> Tensor:
        """Return numbers of texts, [B] or [B, L] by document, by position: [B, 1] or [B, L]."""
        return values[:, None] if self.documents is None else values.gather(1, self.documents.to(values.device))

    @property
    def lengths(self) -> Tensor | None:
        """The `lengths` argument of a network, None without padding; UserError for windows of several texts."""
        if self.documents is not None:
            raise UserError(
                "this objective trains windows of one text, and these hold several: set data.packing to none"
            )
        return None if bool((self.length == self.x.shape[1]).all()) else self.length

    @property
    def count(self) -> Tensor:
        """Number of trained tokens of each text, [B]; 1 where there is none, so that one may divide by it."""
        return self.trained.sum(1).clamp(min=1)


@dataclass(frozen=True)
class MaskedObjective(Objective):
    """Base of objectives that train one network, "net", to predict masked tokens.

    A subclass says at which times, and what each token costs; by default the loss is the sum over the number of trained
    tokens in the step's batch. Validation has fixed masks at stratified times.

    Attributes:
        balance: weight of the imbalance of a network's experts (gen.training.objectives.lib.routing), which every
            trained token then costs beside its cross-entropy, but not in validation. LLaDA-MoE has 0.01 (arXiv
            2509.24389), DeepSeek-V3 1e-4; 0 for none.
        trains_blocks: whether a block sees the clean ones before it, as block-causal networks need it.
    """

    balance: float = field(default=0.0, kw_only=True)
    trains_blocks: ClassVar[bool] = False

    @property
    def stratified(self) -> bool:
        """Whether the times of a training step lie one in each of n equal shares; False by default."""
        return False

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        check_mask_token(net, name := type(self).__name__)
        if not self.trains_blocks:
            check_bidirectional(net, name)
        if self.balance and not routers(net):
            raise UserError(
                f"{name}: balance = {self.balance} balances experts, and this network has none: set it to 0"
            )
        return {"net": net}

    @abstractmethod
    def times(self, net: nn.Module, batch: Batch, stratified: bool) -> Tensor:
        """Draw a time for each text, [B], or for each of its blocks, [B, blocks]."""
        ...

    @abstractmethod
    def losses(self, roles: Roles, tokens: TokenBatch, t: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return each token's weighted CE (0 unless masked), whether it is masked, and whether it is likeliest, [B, L].

        A token is masked where its uniform number u [B, L] is below the probability at its time.
        """
        ...

    def tokens(self, net: nn.Module, batch: Batch) -> TokenBatch:
        """Return the tokens of a training step."""
        return token_batch(batch, net)

    def mask_uniforms(self, batch: Batch) -> Tensor:
        """Draw the uniform numbers that decide which tokens are masked, [B, L]."""
        return batch.noise.uniform("mask", batch.x.shape[1])

    def number(self, tokens: TokenBatch) -> Tensor:
        """Return over how many things the loss of a batch is the mean, 0-d: its trained tokens by default."""
        return tokens.trained.sum()

    def count(self, roles: Roles, batch: Batch) -> Tensor:
        return self.number(self.tokens(roles["net"].net, batch))

    def reduce(self, losses: Tensor, tokens: TokenBatch) -> Tensor:
        """Return the loss of a batch, 0-d."""
        return losses.sum() / self.number(tokens).clamp(min=1)

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        net = roles["net"].net
        tokens, t = self.tokens(net, batch), self.times(net, batch, self.stratified)
        with recorded_routers(net if self.balance else None) as calls:
            losses, masked, likeliest = self.losses(roles, tokens, t, self.mask_uniforms(batch))
        logs = {
            "masked": masked.sum() / tokens.trained.sum().clamp(min=1),
            "accuracy": (likeliest & masked).sum() / masked.sum().clamp(min=1),
        }
        if self.balance:
            uneven = imbalance(calls, tokens.texts) * tokens.trained  # [B, L]
            copies = len(losses) // len(uneven)
            losses = losses + self.balance / copies * uneven.repeat(copies, 1).to(losses)
            logs["imbalance"] = uneven.detach().sum() / tokens.trained.sum().clamp(min=1)
        yield "net", self.reduce(losses, tokens), logs

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        return torch.tensor(self.validate_all(roles, [batch]), dtype=torch.float64)

    def validate_all(self, roles: Roles, batches: Sequence[Batch]) -> float:
        net, whole = roles["net"].net, join(batches)
        tokens, t, u = token_batch(whole, net), self.times(net, whole, True), self.mask_uniforms(whole)
        sizes, each = [len(batch.x) for batch in batches], (token_batch(batch, net) for batch in batches)
        parts = zip(each, t.split(sizes), u.split(sizes), strict=True)
        losses = torch.cat([self.losses(roles, *part)[0] for part in parts])  # [N, L]
        return float(self.reduce(losses.detach(), tokens))


def token_batch(batch: Batch, net: nn.Module, length: Tensor | None = None) -> TokenBatch:
    """Return a batch's tokens: those before cond["prompt"] are given, from cond["length"] on they are padding.

    Args:
        batch: both entries of cond are int64 [B] and may be missing; without a length see `window_ends`. Further tokens
            are given where cond["given"], bool [B, L], says so. cond["document"], int64 [B, L], see `packed_tokens`.
        net: the network, wrapped or not.
        length: texts are cut there, [B]; None for their own length.
    """
    x, cond = batch.x, batch.cond
    if "document" in cond:
        return packed_tokens(batch, net)
    b, n = x.shape
    prompt = cond.get("prompt", torch.zeros(b, dtype=torch.int64, device=x.device))
    end = cond["length"] if "length" in cond else window_ends(batch, net, prompt)
    end = end if length is None else torch.minimum(end, length.to(end))
    trained = positions_between(n, prompt, end)
    return TokenBatch(x, trained & ~cond["given"] if "given" in cond else trained, end)


def packed_tokens(batch: Batch, net: nn.Module) -> TokenBatch:
    """Return the tokens of windows of several texts, each of which is filled up with end-of-text tokens by itself.

    What of those is seen and trained is as in `window_ends`. The rest of a text's share of a window joins what follows
    the last text: padding, a document of its own.

    Args:
        batch: cond["document"] numbers the texts of each window from 0, int64 [B, L], and cond["given"], bool [B, L],
            are prompts and padding. Texts begin with a block of the network (gen.training.checks).
        net: the network, wrapped or not.
    """
    x, documents, given = batch.x, batch.cond["document"], batch.cond["given"]
    n, block_size = x.shape[1], unwrap(net).block_size
    index, starts = torch.arange(n, device=x.device), document_starts(documents)

    def end_of(where: Tensor) -> Tensor:  # the position after the last of some positions of each document, [B, L]
        return torch.zeros_like(x).scatter_reduce(1, documents, (index + 1) * where, "amax")

    text = ~torch.isin(x, torch.tensor(unwrap(net).eos_token_ids, device=x.device, dtype=x.dtype))
    room = end_of(torch.ones_like(text))
    stop = torch.minimum(torch.maximum(end_of(text | given), end_of(starts) - 1), room - 1)
    if block_size is not None:
        end = (stop // block_size + 1) * block_size
    else:
        end = stop + 1 + (batch.to_device(batch.noise.uniform("end", n)) * (room - stop)).long()
    seen = index < torch.minimum(end, room).gather(1, documents)
    documents = torch.where(seen, documents, documents.amax(1, keepdim=True) + 1)
    return TokenBatch(x, seen & ~given, torch.full_like(x[:, 0], n), documents)


def window_ends(batch: Batch, net: nn.Module, prompt: Tensor) -> Tensor:
    """Return the end of what is seen and trained of each text whose window is filled up with end-of-text tokens, [B].

    A text alone would tell a network by its end how long it is, which a decoder does not know. So some of those tokens
    belong to it. A block-causal network sees them to the end of the block in which the text ends, as Fast-dLLM v2
    does: there a decoder stops. Others see them up to a random position: LLaDA fills up to the longest text of a batch,
    but a network that has only seen whole windows fails on the shorter canvas that a decoder gives it.

    Args:
        batch: windows of texts, and noise, of which "end" is drawn.
        net: the network, wrapped or not.
        prompt: length of each prompt, int64 [B].
    """
    x, n, block_size = batch.x, batch.x.shape[1], unwrap(net).block_size
    stop = torch.maximum(text_end(x, unwrap(net).eos_token_ids), prompt).clamp(max=n - 1)
    if block_size is not None:
        return ((stop // block_size + 1) * block_size).clamp(max=n)
    return stop + 1 + (batch.to_device(batch.noise.uniform("end")) * (n - stop)).long()


def text_uniforms(batch: Batch, stratified: bool) -> Tensor:
    """Draw a uniform number for each text, [B]; [B, L] by document for windows of several, of which the first count.

    Args:
        batch: windows of texts.
        stratified: one in each of n equal shares, by the window's index in the batch; see `stratify`. Document d of
            window i has the share of the first document of window i + d.
    """
    if "document" not in batch.cond:
        u = batch.noise.uniform("t")
        return stratify(u, batch) if stratified else u
    u, total = batch.noise.uniform("t", batch.x.shape[1]), batch.total or len(batch.x)
    share = batch.first + torch.arange(len(u))[:, None] + torch.arange(u.shape[1])
    return (u + share % total) / total if stratified else u


def check_mask_token(net: nn.Module, owner: str) -> None:
    """Raise UserError for a network that has no mask token.

    Args:
        net: a network, wrapped or not.
        owner: name of the objective, for the message.
    """
    if not isinstance(getattr(unwrap(net), "mask_token_id", None), int):
        spec = getattr(unwrap(net), "spec", None)
        raise UserError(f"{owner} trains networks that predict masked tokens, such as the model text, and "
                        f"{type(spec if spec is not None else net).__name__} has no mask token")  # fmt: skip


def check_bidirectional(net: nn.Module, owner: str) -> None:
    """Raise UserError for a block-causal network, in which no noisy block would see the clean ones before it.

    Args:
        net: a network, wrapped or not.
        owner: name of the objective, for the message.
    """
    if (block_size := unwrap(net).block_size) is not None:
        raise UserError(
            f"{owner} masks a text as a whole, and this network sees it in blocks of {block_size}: take bd3 or "
            "fast_dllm, or set model.block_size to none"
        )


def check_mask_path(path: Any, owner: str) -> MaskPath:
    """Return a path of masks; UserError for a path of numbers.

    Args:
        path: the run's path.
        owner: name of the objective, for the message.
    """
    if not isinstance(path, MaskPath):
        raise UserError(
            f"{owner} needs a path of masks (gen/text/mask_path.py), e.g. --path log_linear; this is {path!r}"
        )
    return path


def stratify(u: Tensor, batch: Batch) -> Tensor:
    """Return uniform numbers that lie one in each of n equal shares of [0, 1): element i in the i-th share.

    They are counted over the step's batch, however it is cut (MDLM's antithetic times).

    Args:
        u: uniform numbers, [B] or [B, K].
        batch: of B samples, a part of the step's.
    """
    each = u[0].numel()
    share = torch.arange(u.numel(), dtype=u.dtype, device=u.device).reshape(u.shape)
    return (u + batch.first * each + share) / ((batch.total or len(u)) * each)


def token_losses(logits: Tensor, x: Tensor, mask_token_id: int | None = None) -> tuple[Tensor, Tensor]:
    """Return each token's cross-entropy in nats, float32 at least, and whether it is the likeliest, [B, L] each.

    Args:
        logits: [B, L, V].
        x: ids, int64 [B, L].
        mask_token_id: token that gets no probability (MDLM's SUBS); None leaves it what it has.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    if mask_token_id is not None:
        wide = wide.index_fill(-1, torch.tensor([mask_token_id], device=wide.device), -torch.inf)
    losses = nn.functional.cross_entropy(wide.flatten(0, 1), x.flatten(), reduction="none").view(x.shape)
    return losses, wide.detach().argmax(-1) == x
