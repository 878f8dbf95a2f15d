"""A decoding policy as a scheduler of diffusers' block-refinement pipelines (LLaDA2Pipeline).

`pipe.scheduler = PolicyScheduler(build("samplers.decoding_policies", "factor"), block_length=32)`; their own rule is
`edit` here.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.text.contracts import DecodingPolicy, RowState, StepView
from gen.text.decoding import TokenSampling

__all__ = ["PolicyScheduler", "PolicySchedulerOutput"]


class PolicySchedulerOutput(NamedTuple):
    """The result of `step`, by name or as a tuple; all [B, L] but pred_logits [B, L, V], the logits as they came.

    editing_transfer_index: corrected positions, and those that became masks again: a pipeline writes no others.
    """

    prev_sample: Tensor
    transfer_index: Tensor
    editing_transfer_index: Tensor
    sampled_tokens: Tensor
    sampled_probs: Tensor
    pred_logits: Tensor


class PolicyScheduler:
    """The scheduler's methods as those pipelines call them: set_timesteps, step and the two checks.

    The policy decides: `threshold`, `editing_threshold` and `minimal_topk` of the pipeline's call are settings of their
    own rule and not looked at. A block ends when no mask is left in it, however many steps the pipeline planned. At
    temperature > 0 the pipeline's generator draws, so there a row depends on its batch.
    """

    def __init__(self, policy: DecodingPolicy, block_length: int = 32):
        if policy.may_skip:
            raise UserError(f"{type(policy).__name__} may skip a step, and a pipeline of diffusers evaluates every one")
        self.policy = policy
        self.config = SimpleNamespace(block_length=block_length)
        self.state: RowState = {}
        self.mask_budget: Tensor | None = None  # masks at the first step of this block, [B]
        self.has_masks: Tensor | None = None  # rows that have masks after the last step, [B]
        self.post_steps = 0  # evaluations of this block since it was full

    def set_timesteps(self, num_inference_steps: int, device: Any = None, block_length: int | None = None) -> None:
        """Set the number of steps that the pipeline shows as its progress."""
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.arange(num_inference_steps - 1, -1, -1, device=device)

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        *,
        mask_token_id: int | None = None,
        temperature: float = 0.0,
        top_p: float | None = None,
        top_k: int | None = None,
        sampling_method: str = "auto",
        prompt_mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
        **ignored: Any,
    ) -> PolicySchedulerOutput:
        """Make one step of a block: logits [B, L, V], tokens [B, L]; timestep 0 begins a block."""
        if mask_token_id is None:
            raise UserError("a policy commits masks: give mask_token_id (uniform corruption has none)")
        (b, n), step = sample.shape, int(timestep)
        if step == 0 or self.mask_budget is None:
            self.state, self.mask_budget = self.policy.init(b, n), (sample == mask_token_id).sum(1)
            self.post_steps = 0

        def uniform(name: str) -> Tensor:
            device = generator.device if generator is not None else "cpu"
            return torch.rand(b, n, generator=generator, dtype=torch.float64, device=device).to(sample.device)

        ids = torch.tensor([mask_token_id], device=sample.device)
        logp = model_output.float().index_fill(-1, ids, -torch.inf).log_softmax(-1)
        greedy = sampling_method == "greedy" or temperature == 0
        sampling = TokenSampling(0.0 if greedy else temperature, 1.0 if top_p is None else top_p, top_k or None)
        u = None if greedy else uniform("token")
        view = StepView.of_block(
            logp,
            sample,
            mask_token_id,
            resample=lambda p: sampling.draw(p, u),
            step=step,
            prompt_or_pad=None if prompt_mask is None else prompt_mask.expand(b, n),
            uniform=uniform,
            mask_budget=self.mask_budget,
        )
        decision, self.state = self.policy.select(view, self.state)
        tokens = view.sampled if decision.tokens is None else decision.tokens
        commit, committed = decision.commit & view.masked, ~view.masked & ~view.prompt_or_pad
        edit = torch.zeros_like(commit) if decision.edit is None else decision.edit & committed & (tokens != sample)
        new = torch.where(commit | edit, tokens, sample)
        if decision.remask is not None:
            remask = decision.remask & committed
            new, edit = torch.where(remask, mask_token_id, new), edit | remask
        self.has_masks = (new == mask_token_id).any(1)
        probabilities = logp.gather(-1, tokens[..., None])[..., 0].exp()
        return PolicySchedulerOutput(new, commit, edit, tokens, probabilities, model_output)

    def check_eos_finished(
        self,
        cur_x: Tensor,
        sampled_tokens: Tensor,
        final_transfer: Tensor,
        finished: Tensor,
        eos_token_id: int,
        mask_token_id: int,
        prompt_length: int,
    ) -> Tensor:
        """Return the rows [B] with an end of sequence in their text and no mask before it."""
        text = cur_x[:, prompt_length:]
        n = text.shape[1]
        positions = torch.arange(n, device=text.device)
        eos, mask = (torch.where(text == token, positions, n).amin(1) for token in (eos_token_id, mask_token_id))
        return finished | (eos < mask)

    def check_block_should_continue(
        self,
        step_idx: int,
        masks_remaining: bool,
        editing_enabled: bool,
        editing_transfer_index: Tensor,
        post_steps: int,
        max_post_steps: int,
        finished: Tensor,
    ) -> bool:
        """Return whether an unfinished row has a mask, or else, if corrections are wanted, whether there were any.

        A finished row keeps its masks, so what the pipeline counts (masks_remaining, post_steps) is of no use here.
        """
        if bool(finished.all()):
            return False
        if self.has_masks is None or bool((self.has_masks & ~finished).any()):
            self.post_steps = 0
            return True
        post, self.post_steps = self.post_steps, self.post_steps + 1
        edited = bool((editing_transfer_index & ~finished[:, None]).any())
        return editing_enabled and (edited or post == 0) and post <= max_post_steps  # 0: the one that filled the block
