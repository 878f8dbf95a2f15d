"""A stopping rule of one's own: a text ends after so many tokens that are committed without a gap."""

from dataclasses import dataclass

import torch

from gen.text.contracts import StopDecision, StoppingRule


@dataclass(frozen=True)
class MyStop(StoppingRule):
    """Ends a text once its first `tokens` tokens are committed."""

    tokens: int = 3

    def check(self, view, tokens, text_end, predictor, state):
        prompt_end = view.prompt_end
        positions = torch.arange(tokens.shape[1])
        wanted = (positions >= prompt_end[:, None]) & (positions < prompt_end[:, None] + self.tokens)
        done = ~(wanted & (tokens == predictor.mask_token_id)).any(1)
        return StopDecision(done, text_end=torch.where(done, prompt_end + self.tokens, text_end)), state
