"""Policies inside other engines: diffusers' LLaDA2Pipeline, and the call of vLLM's remasking policies."""

import warnings
from types import SimpleNamespace

import pytest
import torch

from gen.config.errors import UserError
from gen.config.spec import build
from gen.models.text import Text
from gen.samplers.interop.block_refinement import PolicyScheduler
from gen.samplers.interop.remasking import Remasking
from gen.text.decoding import Decoding
from gen.text.loop import decode

MASK, STOP, BLOCK = 40, 39, 8


class Model(torch.nn.Module):
    """A sharp random network, called as that pipeline calls one."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        spec = Text(
            vocab_size=41,
            mask_token_id=MASK,
            eos_token_ids=(STOP,),
            length=64,
            width=32,
            depth=2,
            heads=2,
            block_size=BLOCK,
        )
        self.net = spec.build().eval().double()
        with torch.no_grad():
            for weight in self.net.parameters():
                weight.mul_(3 if weight.ndim == 2 else 1)

    @property
    def device(self):
        return torch.device("cpu")

    def forward(self, input_ids, attention_mask, position_ids):
        return SimpleNamespace(logits=self.net(input_ids))


def pipeline(scheduler):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers import LLaDA2Pipeline

        pipe = LLaDA2Pipeline(model=Model(), scheduler=scheduler, tokenizer=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def written(pipe, steps, threshold, editing):
    prompt = torch.arange(24).reshape(2, 12)
    return pipe(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        gen_length=28,
        block_length=BLOCK,
        num_inference_steps=steps,
        temperature=0.0,
        threshold=threshold,
        editing_threshold=editing,
        eos_token_id=STOP,
        mask_token_id=MASK,
        output_type="seq",
    ).sequences


def theirs():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers import BlockRefinementScheduler

    return BlockRefinementScheduler(block_length=BLOCK)


def test_a_quota_in_their_pipeline_writes_what_theirs_does():
    ours = PolicyScheduler(build("samplers.decoding_policies", {"name": "topk", "k": 2, "score": "sample"}), BLOCK)
    a, b = written(pipeline(theirs()), 4, 1.1, None), written(pipeline(ours), 4, 1.1, None)
    assert torch.equal(a, b)
    one = PolicyScheduler(build("samplers.decoding_policies", {"name": "topk", "k": 1}), BLOCK)
    assert not torch.equal(a, written(pipeline(one), 4, 1.1, None))


def test_no_mask_is_left_however_few_steps_the_pipeline_foresaw():
    ours = PolicyScheduler(build("samplers.decoding_policies", "topk"), BLOCK)
    made = written(pipeline(ours), 2, 0.9, None)
    assert not bool((made[:, :8] == MASK).any())


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "topk", "steps": 3},
        {"name": "remdm", "after": 0.5, "times": 4, "count": 2},
        {"name": "rcr"},
        {"name": "credit", "inner": {"name": "threshold", "threshold": 0.5}, "alpha": 3.0},
        {"name": "threshold", "threshold": 0.3},
    ],
    ids=lambda spec: spec["name"],
)
def test_a_policy_writes_in_their_pipeline_what_it_writes_here(spec):
    """Policies that count masks, take tokens back, remember, and draw their own; the prompt ends inside a block."""
    policy = build("samplers.decoding_policies", spec)
    pipe, prompt = pipeline(PolicyScheduler(policy, BLOCK)), torch.randint(39, (8, 12), generator=torch.manual_seed(0))
    how = {"num_inference_steps": BLOCK, "temperature": 0.0, "editing_threshold": None, "eos_early_stop": False}
    made = pipe(input_ids=prompt, attention_mask=torch.ones_like(prompt), gen_length=28, block_length=BLOCK, **how,
                mask_token_id=MASK, output_type="seq").sequences  # fmt: skip
    ours = decode(pipe.model.net, list(prompt), 28, Decoding(policy, stopping_rules=()))
    assert torch.equal(made, ours.tokens[:, 12:])


class Ends(Model):
    """Its first row ends at once, and the other one never."""

    def forward(self, input_ids, attention_mask, position_ids):
        logits = super().forward(input_ids, attention_mask, position_ids).logits
        logits[0, :, STOP], logits[1:, :, STOP] = 99.0, -99.0
        self.calls = getattr(self, "calls", 0) + 1
        assert self.calls < 99, "it does not end"
        return SimpleNamespace(logits=logits)


@pytest.mark.parametrize("editing", [None, 0.9])
@pytest.mark.parametrize("name", ["topk", "edit", "remdm"])
def test_a_row_that_is_finished_does_not_keep_the_others(name, editing):
    pipe = pipeline(PolicyScheduler(build("samplers.decoding_policies", name), BLOCK))
    pipe.model = Ends()
    made = written(pipe, BLOCK, 0.9, editing)
    assert made[0][0] == STOP and not bool((made[1] == MASK).any())


def test_no_evaluation_is_spent_on_a_full_block():
    pipe = pipeline(PolicyScheduler(build("samplers.decoding_policies", {"name": "topk", "k": 4}), BLOCK))
    pipe.model = Ends()
    written(pipe, 2, 0.9, None)
    assert pipe.model.calls == 1 + 3 * 2  # of four blocks, the prompt ends in the middle of the first


def test_a_policy_that_waits_is_refused():
    with pytest.raises(UserError, match="Ancestral may skip a step"):
        PolicyScheduler(build("samplers.decoding_policies", "ancestral"))


@pytest.fixture
def policy():
    return Remasking(build("samplers.decoding_policies", {"name": "threshold", "threshold": 0.6}), mask_token_id=3)


def logits(*probs):
    return torch.tensor(probs).log()


SURE, UNSURE, ELSE = (0.8, 0.1, 0.05, 0.05), (0.4, 0.3, 0.2, 0.1), (0.1, 0.2, 0.65, 0.05)


def test_a_block_comes_back_with_what_was_sure(policy):
    made = policy.apply(input_block=[3, 3, 1], logits=logits(UNSURE, ELSE, SURE))
    assert made == ((), (3, 2, 1))
    assert made.committed_token_ids == () and made.next_input_block == (3, 2, 1)


def test_a_full_block_is_committed_and_all_masks_follow(policy):
    assert policy.apply(input_block=[3, 2, 1], logits=logits(UNSURE, ELSE, SURE)) == ((0, 2, 1), (3, 3, 3))
    assert policy.apply(input_draft=(0, 2, 1), logits=logits(UNSURE, ELSE, SURE)) == ((0, 2, 1), (3, 3, 3))


def test_the_mask_is_never_written(policy):
    made = policy.apply(input_block=[3], logits=[[-9.0, -9.0, -8.0, 9.0]])
    assert made.committed_token_ids == (2,)


def test_another_mask_may_be_named(policy):
    made = policy.apply(input_block=[2, 1], logits=logits(SURE, SURE), remasking_config={"mask_token_id": 2})
    assert made.committed_token_ids == (0, 1)


def test_wrong_calls_are_one_line(policy):
    with pytest.raises(UserError, match="needs input_block and logits"):
        policy.apply(input_block=[3])
    with pytest.raises(UserError, match=r"shape \[1, 4\] for a block of 2"):
        policy.apply(input_block=[3, 3], logits=logits(SURE))
    with pytest.raises(UserError, match="the mask is token 4"):
        policy.apply(input_block=[4], logits=logits(SURE), remasking_config={"mask_token_id": 4})
    with pytest.raises(UserError, match="has a memory or skips steps"):
        Remasking(build("samplers.decoding_policies", "credit"), mask_token_id=3)
