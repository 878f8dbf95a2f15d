"""What students that are to be certain share: two views of a text, and the loss that sharpens what is right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.diffusion.denoiser import DenoiserLike
from gen.diffusion.net import unwrap
from gen.distillers.lib.answers import make_answers, text_teacher
from gen.distillers.lib.lora import adapted, merge
from gen.text.decoding import Decoding
from gen.training.objectives import Batch, Roles, Step
from gen.training.objectives.lib.masked import Masking, Tokens, check_masks, token_losses, tokens_of
from gen.training.run import Run

__all__ = ["Certain", "narrow", "window"]


@dataclass(frozen=True)
class Certain(Masking):
    """CE + beta H over what each of two views masks, on the teacher's own answers; see gen.distillers.dparallel."""

    prompts: int = 16_384
    beta: float = 2.0
    temperature: float = 0.5
    complementary: bool = True
    right: bool = True
    length: int | None = None
    lora: int | None = None
    store: str | None = None
    writes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.prompts < 1 or not self.beta >= 0 or not self.temperature > 0:
            raise UserError(
                f"{type(self).__name__}: prompts = {self.prompts}, beta = {self.beta}, temperature = "
                f"{self.temperature}; prompts >= 1, beta >= 0 and temperature > 0"
            )
        for name in ("length", "lora"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{type(self).__name__}: {name} = {value}; at least 1, or none")

    def student(self, run: Run, teacher: Path, folder: Path) -> Run:
        """The run of the student: the teacher's, on its answers, from its weights."""
        taught = text_teacher(teacher, type(self).__name__)
        place = Path(self.store) if self.store else folder / "answers"
        data = make_answers(taught, run.data, place, self.prompts, right=self.right, length=self.length)
        return replace(run, objective=self, data=data, teacher=None, init=str(teacher), sampler=self.decoding(run))

    def decoding(self, run: Run) -> Decoding:
        """How the student wants to be decoded."""
        raise NotImplementedError

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        check_masks(net, type(self).__name__)
        if self.lora is None:
            return {"net": net}
        return {"net": net.requires_grad_(False), "lora": adapted(net, self.lora, type(self).__name__)}

    def observe(self, roles: Roles, logs: Mapping[str, float]) -> None:
        """With LoRA, the network that samples gets what its twin has learned."""
        if self.lora is not None:
            merge(unwrap(roles["lora"].net), unwrap(roles["net"].net))

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        role = "net" if self.lora is None else "lora"
        loss, logs = self.loss(roles[role].net, batch)
        yield role, loss, {**logs, "loss": loss.detach()}

    def loss(self, net: Any, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum over both views, and what is logged of their mean."""
        tokens = tokens_of(batch)
        inside, hit = self.masks(net, tokens, batch)
        hidden = [inside & hit, inside & ~hit] if self.complementary else [inside & hit]
        noisy = torch.cat(
            [tokens.x.masked_fill(m | self.later(tokens, inside), unwrap(net).mask_token_id) for m in hidden]
        )
        lengths = None if tokens.lengths is None else tokens.length.repeat(len(hidden))
        views = net(noisy, lengths).chunk(len(hidden))
        terms = [
            narrow(v, tokens.x, m, self.temperature, unwrap(net).mask_token_id)
            for v, m in zip(views, hidden, strict=True)
        ]
        ce, entropy, right = (torch.stack(each) for each in zip(*terms, strict=True))
        logs = {"ce": ce.mean(), "entropy": entropy.mean(), "accuracy": right.mean()}
        return ce.sum() + self.beta * entropy.sum(), {k: v.detach() for k, v in logs.items()}

    def masks(self, net: Any, tokens: Tokens, batch: Batch) -> tuple[Tensor, Tensor]:
        """The places of the noised block, and which of them the first view masks, bool [B, L] each."""
        raise NotImplementedError

    def later(self, tokens: Tokens, inside: Tensor) -> Tensor:
        """Trained places behind the block, masked in both views."""
        return tokens.trained & (inside.long().cumsum(1) == inside.sum(1, keepdim=True)) & ~inside

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """The loss on fixed blocks and masks."""
        return self.loss(roles["net"].net, batch)[0]


def narrow(logits: Tensor, x: Tensor, masked: Tensor, temperature: float, mask: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean CE of the tokens x [B, L] that are masked [B, L], mean entropy of those of them that are the likeliest
    under logits [B, L, V], and their share; nats, 0-d. The entropy is that of softmax(logits / temperature).

    `mask` has no probability. The entropy's gradient is 0 at all other places.
    """
    losses, right = token_losses(logits, x, mask)
    sure = masked & right
    count = masked.sum().clamp(min=1)
    chosen = logits[sure] if logits.dtype == torch.float64 else logits[sure].float()  # [K, V]
    ids = torch.tensor([mask], device=logits.device)
    logp = (chosen / temperature).index_fill(-1, ids, -torch.inf).log_softmax(-1)
    entropy = -(logp.exp() * logp.clamp(min=torch.finfo(logp.dtype).min)).sum()
    ce = torch.where(masked, losses, 0).sum() / count
    return ce, entropy / sure.sum().clamp(min=1), sure.sum() / count


def window(net: Any, tokens: Tokens, length: int | None, u: Tensor) -> Tensor:
    """The places of one block of each text's trained part, bool [B, L], block floor(u n) of its n; all for None.

    Blocks lie as in decoding (gen.samplers.block_schedules.semi_ar): from the end of the prompt on, or where a
    block-causal network has its own, whatever `length` is.
    """
    x, own = tokens.x, unwrap(net).block_size
    size = length if own is None else int(own)
    if size is None:
        return tokens.trained
    start = tokens.trained.to(torch.uint8).argmax(1)
    anchor = start if own is None else torch.zeros_like(start)
    low, high = (start - anchor) // size, (tokens.length - 1 - anchor) // size
    block = low + (u.to(x.device) * (high - low + 1)).long().clamp(max=high - low)
    places = torch.arange(x.shape[1], device=x.device)
    return tokens.trained & ((places - anchor[:, None]).div(size, rounding_mode="floor") == block[:, None])
