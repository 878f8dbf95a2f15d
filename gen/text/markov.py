"""Markov chains of tokens: texts of any length whose exact conditionals are known, as a Predictor without a network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from gen.config.errors import UserError
from gen.text.contracts import KvCache, Span

__all__ = ["MarkovChain"]


@dataclass(frozen=True, eq=False)
class MarkovChain:
    """Texts in which a token depends on the one before it alone; the mask is token `n_words`.

    What any of the tokens say of the masked ones, before, behind and between them, is summed by messages from both
    sides (forward-backward, Rabiner 1989, section III). A canvas whose tokens never follow each other has
    probability 0, and gets uniform predictions.

    Attributes:
        initial: probabilities of the first token, float64 [n_words].
        transition: those of the next token by the one before it, float64 [n_words, n_words].
        eos_token_ids: see gen.text.contracts.Predictor; each is followed by itself alone.
        block_size, shift: see gen.text.contracts.Predictor.
    """

    initial: Tensor
    transition: Tensor
    eos_token_ids: tuple[int, ...] = ()
    block_size: int | None = None
    shift: int = 0

    @classmethod
    def of_texts(cls, texts: Iterable[Sequence[int]], n_words: int, eos_token_id: int | None = None) -> MarkovChain:
        """Return the chain of the first tokens and of the pairs of neighbours that some texts have.

        Args:
            texts: ids of each, below n_words.
            n_words: number of tokens without the mask.
            eos_token_id: ends each text, and follows itself; None where texts have no end: then every token that is
                the last one of its text alone starts anew.

        Raises:
            UserError: for no texts.
        """
        initial, pairs = torch.zeros(n_words, dtype=torch.float64), torch.zeros(n_words, n_words, dtype=torch.float64)
        for text in texts:
            ids = torch.tensor([*text, *(() if eos_token_id is None else (eos_token_id, eos_token_id))])
            if len(ids):
                initial[ids[0]] += 1
                pairs.index_put_((ids[:-1], ids[1:]), torch.ones(len(ids) - 1, dtype=torch.float64), accumulate=True)
        if not bool(initial.any()):
            raise UserError("MarkovChain: no texts")
        initial = initial / initial.sum()
        transition = torch.where(pairs.sum(1, keepdim=True) > 0, pairs, initial)
        ends = () if eos_token_id is None else (eos_token_id,)
        return cls(initial, transition / transition.sum(1, keepdim=True), ends)

    @property
    def mask_token_id(self) -> int:
        return len(self.initial)

    @property
    def vocab_size(self) -> int:
        return len(self.initial) + 1

    def init_cache(self, rows: int, length: int) -> KvCache:
        return KvCache([], [], torch.zeros(rows, length + 1, dtype=torch.bool))

    def log_probability(self, tokens: Tensor) -> Tensor:
        """Return log p(the tokens that are not masked), summed over what the others may be, float64 [B].

        Args:
            tokens: canvases, int64 [B, N].
        """
        return self._forward(self._allowed(tokens, None))[1]

    def __call__(
        self,
        tokens: Tensor,
        lengths: Tensor | None = None,
        positions: Tensor | None = None,
        *,
        kv_cache: KvCache | None = None,
        span: Span | None = None,
    ) -> Tensor:
        allowed = self._allowed(tokens, lengths)  # [B, N, V]
        before, _ = self._forward(allowed)
        after = [torch.ones_like(self.initial).expand(len(tokens), -1)]
        for i in range(tokens.shape[1] - 1, 0, -1):
            message = (allowed[:, i] * after[-1]) @ self.transition.T
            after.append(message / message.sum(1, keepdim=True).clamp(min=1e-300))
        mass = torch.stack(before, 1) * torch.stack(after[::-1], 1)
        mass = torch.where(mass.sum(-1, keepdim=True) > 0, mass, torch.ones_like(mass))
        logits = torch.nn.functional.pad(mass.log(), (0, 1), value=-torch.inf)  # no token is the mask
        if positions is None:
            return logits
        index = positions.clamp(max=tokens.shape[1] - 1)
        return logits.gather(1, index[..., None].expand(-1, -1, self.vocab_size))

    def _allowed(self, tokens: Tensor, lengths: Tensor | None) -> Tensor:
        """Return which token each position may have, float64 [B, N, V]: any where it is masked or padding."""
        unknown = tokens == self.mask_token_id
        if lengths is not None:
            unknown = unknown | (torch.arange(tokens.shape[1]) >= lengths[:, None])
        known = one_hot(tokens.clamp(max=len(self.initial) - 1), len(self.initial)).double()
        return torch.where(unknown[..., None], torch.ones_like(known), known)

    def _forward(self, allowed: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return p(token i, given the known ones up to i), [B, V] each, and the log of the known ones' probability."""
        messages, total = list[Tensor](), allowed.new_zeros(len(allowed))
        for i in range(allowed.shape[1]):
            coming = self.initial if i == 0 else messages[-1] @ self.transition
            message = coming * allowed[:, i]
            scale = message.sum(1, keepdim=True)
            total = total + scale[:, 0].log()
            messages.append(message / scale.clamp(min=1e-300))
        return messages, total
