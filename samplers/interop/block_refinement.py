"""A policy of parallel decoding as a scheduler of diffusers' block-refinement pipelines (LLaDA2Pipeline).

`pipe.scheduler = Refinement(build("samplers.decoding_policies", "factor"), block_length=32)`; their own rule is `edit`
here.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.text.contracts import DecodingPolicy, RowState, StepView
from gen.text.decoding import TokenSampling

__all__ = ["Refined", "Refinement"]


class Refined(NamedTuple):
    """What `step` returns, by name or as a tuple; all [B, L] but pred_logits [B, L, V], the logits as they came.

    editing_transfer_index: corrected places, and those that became masks again: a pipeline writes no others.
    """

    prev_sample: Tensor
    transfer_index: Tensor
    editing_transfer_index: Tensor
    sampled_tokens: Tensor
    sampled_probs: Tensor
    pred_logits: Tensor


class Refinement:
    """set_timesteps, step, check_eos_finished and check_block_should_continue, as those pipelines call them.

    The policy decides: `threshold`, `editing_threshold` and `minimal_topk` of the pipeline's call are settings of their
    own rule and not looked at. A block ends when no mask is left in it, however many steps the pipeline foresaw. At
    temperature > 0 the pipeline's generator draws, so there a row depends on its batch.
    """

    def __init__(self, policy: DecodingPolicy, block_length: int = 32):
        if policy.may_skip:
            raise UserError(f"{type(policy).__name__} may let a step pass, and a pipeline of diffusers asks every time")
        self.policy = policy
        self.config = SimpleNamespace(block_length=block_length)
        self.state: RowState = {}
        self.mask_budget: Tensor | None = None  # masks at the first step of this block, [B]
        self.open: Tensor | None = None  # rows that have masks after the last step, [B]
        self.post = 0  # evaluations of this block since it was full

    def set_timesteps(self, num_inference_steps: int, device: Any = None, block_length: int | None = None) -> None:
        """How many steps the pipeline shows as its progress."""
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
        **theirs: Any,
    ) -> Refined:
        """One step of a block: logits [B, L, V], tokens [B, L]; timestep 0 begins a block."""
        if mask_token_id is None:
            raise UserError("a policy commits masks: give mask_token_id (uniform corruption has none)")
        b, n = sample.shape
        step = int(timestep)
        if step == 0 or self.mask_budget is None:
            self.state, self.mask_budget, self.post = self.policy.init(b, n), (sample == mask_token_id).sum(1), 0

        def uniform(name: str) -> Tensor:
            device = generator.device if generator is not None else "cpu"
            return torch.rand(b, n, generator=generator, dtype=torch.float64, device=device).to(sample.device)

        ids = torch.tensor([mask_token_id], device=sample.device)
        logp = model_output.float().index_fill(-1, ids, -torch.inf).log_softmax(-1)
        greedy = sampling_method == "greedy" or temperature == 0
        sampling = TokenSampling(0.0 if greedy else temperature, 1.0 if top_p is None else top_p, top_k or None)
        u = None if greedy else uniform("token")
        prompt_or_pad = None if prompt_mask is None else prompt_mask.expand(b, n)
        view = StepView.of_block(
            logp,
            sample,
            mask_token_id,
            resample=lambda p: sampling.draw(p, u),
            step=step,
            prompt_or_pad=prompt_or_pad,
            uniform=uniform,
            mask_budget=self.mask_budget,
        )
        choice, self.state = self.policy.select(view, self.state)
        sampled = view.sampled if choice.tokens is None else choice.tokens
        commit = choice.commit & view.masked
        edit = torch.zeros_like(commit)
        if choice.edit is not None:
            edit = choice.edit & ~view.masked & ~view.prompt_or_pad & (sampled != sample)
        new = torch.where(commit | edit, sampled, sample)
        if choice.remask is not None:
            gone = choice.remask & ~view.masked & ~view.prompt_or_pad
            new, edit = torch.where(gone, mask_token_id, new), edit | gone
        self.open = (new == mask_token_id).any(1)
        chosen = logp.gather(-1, sampled[..., None])[..., 0].exp()
        return Refined(new, commit, edit, sampled, chosen, model_output)

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
        """Rows [B] with an end of sequence in their text and no mask before it."""
        text = cur_x[:, prompt_length:]
        places = torch.arange(text.shape[1], device=text.device)
        far = text.shape[1]
        first = [torch.where(text == token, places, far).amin(1) for token in (eos_token_id, mask_token_id)]
        return finished | (first[0] < first[1])

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
        """Until no row that is not finished has a mask, and then while there are corrections, if they are wanted.

        A finished row keeps its masks, so what the pipeline counts (masks_remaining, post_steps) is of no use here.
        """
        if bool(finished.all()):
            return False
        if self.open is None or bool((self.open & ~finished).any()):
            self.post = 0
            return True
        post, self.post = self.post, self.post + 1
        edited = bool((editing_transfer_index & ~finished[:, None]).any())
        return editing_enabled and (edited or post == 0) and post <= max_post_steps  # 0: the one that filled the block
