"""A stopping rule of one's own: a text ends after so many tokens that are committed without a gap."""

from dataclasses import dataclass

import torch

from gen.text.contracts import StopDecision, StoppingRule


@dataclass(frozen=True)
class MyStop(StoppingRule):
    """Ends a text once its first `tokens` tokens are committed."""

    tokens: int = 3

    def check(self, view, tokens, gap_start, predictor, state):
        index = torch.arange(tokens.shape[1]) - view.prompt_end[:, None]
        wanted = (index >= 0) & (index < self.tokens)
        done = ~(wanted & (tokens == predictor.mask_token_id)).any(1)
        return StopDecision(done, ends=(index == self.tokens - 1) & done[:, None]), state
