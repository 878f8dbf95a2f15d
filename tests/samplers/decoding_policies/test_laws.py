"""The laws of policies, over every file of the folder: a new policy is tested without a new test."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import pytest
import torch
from safetensors.torch import save_file

from gen.config.spec import build, names
from gen.samplers.decoding_policies.learned import Filter
from gen.samplers.stopping_rules.prophet import Prophet
from gen.text.decoding import Decoding, TokenSampling
from gen.text.loop import decode
from gen.text.worlds import JointDistribution, decoded_distribution, parity_joint, shuffle_joint
from tests.gen.predictors import Fake, Noisy
from tests.samplers.decoding_policies.views import WORDS, view

POLICIES = names("samplers.decoding_policies")
NEVER = Prophet(gaps=(1e9, 1e9, 1e9))  # looks at the whole text and does nothing

# What makes each commit one token at a time.
ONE = {
    "dream": [{"steps": 4, "eps": 0.0}],
    "edit": [{"threshold": 1.0}, {"threshold": 1.0, "edit": None}],
    "entropy": [{"threshold": 0.0}],
    "entropy_bound": [{"bound": 0.0}],
    "factor": [{"factor": 1e-9}],
    "hierarchy": [{"threshold": 1.0, "low": 1.0}],
    "learned": [{"threshold": 1.0}],
    "local_leap": [{"anchor": 1.0, "near": 1.0}],
    "threshold": [{"threshold": 1.0, "strict": True}],
    "topk": [{}, {"score": "margin"}, {"score": "entropy"}, {"score": "left_to_right"}, {"steps": 9}],
}
# Those that are no samplers of the model's joint even so.
OTHERS = {
    "ancestral": "commits places independently of one another: exact in the limit of many steps only",
    "credit": "draws tokens from other logits than the model's",
    "rcr": "takes tokens back by how likely they were",
    "remdm": "takes tokens back by how likely they were",
}


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """Builds a policy by name; a learned one has random weights, for windows of `length`."""
    folder = tmp_path_factory.mktemp("filters")

    def make(name, length=64, **fields):
        if name == "learned":
            torch.manual_seed(0)
            fields["file"] = str(folder / f"{length}.safetensors")
            save_file(Filter(length).state_dict(), fields["file"])
        return build("samplers.decoding_policies", name, **fields)

    return make


def test_every_policy_is_accounted_for():
    assert set(POLICIES) == set(ONE) | set(OTHERS)


def random_view(step, dtype):
    """Rows with prompts, padding, places before and after the window, and none or all masked."""
    torch.manual_seed(step)
    b, w = 40, 16
    lo, hi = torch.randint(0, 6, (b, 1)), torch.randint(9, 17, (b, 1))
    places = torch.arange(w)
    prompt_or_pad = (places < lo - 2) | (places >= hi + 3)
    in_window = (places >= lo) & (places < hi)
    masked = (torch.rand(b, w) < torch.linspace(0, 1.2, b)[:, None]) & ~prompt_or_pad
    sampled = torch.randint(0, WORDS, (b, w))
    seen = view(torch.rand(b, w) * 0.9 + 0.05, masked.tolist(), best=torch.randint(0, WORDS, (b, w)),
                tokens=torch.randint(0, WORDS, (b, w)).tolist(), sampled=sampled.tolist(), step=step,
                in_window=in_window.tolist(), prompt_or_pad=prompt_or_pad.tolist(), first=3, seed=step)  # fmt: skip
    seen.logp = seen.logp.to(dtype)
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", POLICIES)
def test_it_commits_masks_of_the_window_and_at_least_one(name, dtype, policy):
    """And takes back or corrects only what was generated in the window."""
    own = policy(name, 16)
    state = own.init(40, 19)
    for step in range(6):
        seen = random_view(step, dtype)
        choice, state = own.select(seen, state)
        assert choice.commit.dtype == torch.bool
        assert not (choice.commit & ~seen.masked).any()
        if not own.may_skip:
            assert torch.equal(choice.commit.any(1), seen.masked.any(1))
        ours = seen.in_window & ~seen.prompt_or_pad & ~seen.masked
        for revised in (choice.edit, choice.remask):
            assert revised is None or not (revised & ~ours).any()
        if choice.hold is not None:
            assert not (choice.hold & (seen.masked & ~choice.commit).any(1)).any()
        assert all(len(value) == 40 for value in state.values())


@pytest.mark.parametrize("name", POLICIES)
def test_its_choice_is_the_row_s_own(name, policy):
    own, seen = policy(name, 16), random_view(1, torch.float64)
    together, _ = own.select(seen, own.init(40, 19))
    for i in range(0, 40, 7):
        tensors = {f.name: getattr(seen, f.name)[i : i + 1] for f in fields(seen) if f.type == "Tensor"}
        alone = replace(seen, **tensors, uniform=lambda name, i=i: seen.uniform(name)[i : i + 1])
        choice, _ = own.select(alone, own.init(1, 19))
        for field in ("commit", "edit", "remask", "hold", "tokens"):
            one, all_ = getattr(choice, field), getattr(together, field)
            assert (one is None) == (all_ is None)
            assert one is None or torch.equal(one[0], all_[i])


PROMPTS = [[1, 2, 3], [], [4] * 7, [5, 6], [7]]
LENGTHS = [9, 14, 4, 11, 1]


def same(one, i, other, j):
    """Row i of one result is row j of another, to the bit."""
    assert torch.equal(one.text(i), other.text(j))
    n = int(one.text_end[i])
    assert torch.equal(one.commit_step[i, :n], other.commit_step[j, :n])
    assert torch.equal(one.confidence[i, :n], other.confidence[j, :n])
    assert (int(one.nfe[i]), int(one.text_end[i]), one.reasons[i]) == (
        int(other.nfe[j]),
        int(other.text_end[j]),
        other.reasons[j],
    )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", POLICIES)
def test_a_row_is_the_same_in_any_batch(name, temperature, policy):
    how = Decoding(policy(name, 5), {"name": "semi_ar", "length": 5}, sampling=TokenSampling(temperature))
    f, seeds = Noisy(eos_token_ids=(3,)), [11, 12, 13, 14, 15]
    together = decode(f, PROMPTS, LENGTHS, how, seed=seeds)
    seldom = decode(f, PROMPTS, LENGTHS, how, seed=seeds, sync_every=3)
    for i in range(len(PROMPTS)):
        same(together, i, decode(f, PROMPTS[i : i + 1], LENGTHS[i : i + 1], how, seed=seeds[i : i + 1]), 0)
        same(together, i, seldom, i)
        assert not (together.text(i) == f.mask_token_id).any()


@dataclass(eq=False)
class Tied(Fake):
    """All positions are equally good, and pairs of tokens, but for rounding, which is another in every batch."""

    def logits(self, tokens, lengths, positions):
        generator = torch.Generator().manual_seed(len(tokens))
        rounding = torch.rand(len(tokens), positions.shape[1], self.vocab_size, generator=generator).double() - 0.5
        return torch.tensor([3.0, 3, 2, 2, 2.5, 2.5, 1, 1, 0, 0, 0, 0, 0]) + 2e-6 * rounding


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 3, "top_p": 0.7}])
@pytest.mark.parametrize("name", POLICIES)
def test_rounding_does_not_choose_between_equals(name, sampling, policy):
    """Alone and in a batch the same tokens at the same steps, whatever is tied."""
    how = Decoding(policy(name, 5), {"name": "semi_ar", "length": 5}, sampling=TokenSampling(**sampling))
    f, seeds = Tied(eos_token_ids=(8,)), [0, 1, 2, 3, 4]
    together = decode(f, PROMPTS, LENGTHS, how, seed=seeds)
    for i in range(len(PROMPTS)):
        alone = decode(f, PROMPTS[i : i + 1], LENGTHS[i : i + 1], how, seed=seeds[i : i + 1])
        n = int(alone.text_end[0])
        assert torch.equal(alone.tokens[0, :n], together.tokens[i, :n])
        assert torch.equal(alone.commit_step[0, :n], together.commit_step[i, :n])


@pytest.mark.parametrize("name", POLICIES)
def test_an_empty_canvas_of_a_network_is_the_same_in_any_batch(name, policy):
    """All of its positions are equally good: that they are told apart by rounding is no choice."""
    torch.manual_seed(0)
    net = build("models", "text", length=40, width=32, depth=2, heads=4).build().eval()
    how = Decoding(policy(name, 16), {"name": "semi_ar", "length": 16}, sampling=TokenSampling(1.0))
    prompts, seeds = [[], [5] * 9, [], [1, 2, 3], []], [3, 4, 5, 6, 7]
    together = decode(net, prompts, 16, how, seed=seeds)
    for i in (0, 3, 4):
        alone = decode(net, prompts[i : i + 1], 16, how, seed=seeds[i : i + 1])
        assert torch.equal(alone.text(0), together.text(i)), i


@pytest.mark.parametrize("name", POLICIES)
def test_it_does_not_matter_how_much_it_is_shown(name, policy):
    """A stop rule that looks at the whole text shows the policy all of it; its window stays what it is."""
    results = []
    for stops in (("eos",), ("eos", NEVER)):
        how = Decoding(
            policy(name, 5), {"name": "semi_ar", "length": 5}, stopping_rules=stops, sampling=TokenSampling(1.0)
        )
        results.append(decode(Noisy(eos_token_ids=(3,)), PROMPTS, LENGTHS, how, seed=4))
    for i in range(len(PROMPTS)):
        same(results[0], i, results[1], i)


@pytest.mark.parametrize("name", POLICIES)
def test_it_ends_and_leaves_no_mask(name, policy):
    how = Decoding(policy(name, 17), "whole", stopping_rules=(), sampling=TokenSampling(1.0))
    out = decode(Noisy(), [[1]] * 3, 17, how, seed=2)
    assert not (out.tokens == 12).any()
    assert out.reasons == ["full"] * 3
    assert (out.commit_step[:, 1:] >= 1).all()
    assert (out.commit_step <= out.nfe[:, None]).all()


def random_joint(seed, words=3, length=4):
    generator = torch.Generator().manual_seed(seed)
    texts = torch.cartesian_prod(*[torch.arange(words)] * length)
    p = torch.rand(len(texts), generator=generator, dtype=torch.float64) ** 4
    return JointDistribution(texts, p / p.sum(), words)


@pytest.mark.parametrize("name", ONE)
@pytest.mark.parametrize(
    "joint", [random_joint(0), shuffle_joint(4), parity_joint(4)], ids=["random", "shuffle", "parity"]
)
def test_one_token_at_a_time_recovers_an_exact_model(joint, name, policy):
    for options in ONE[name]:
        found = decoded_distribution(joint, policy(name, 4, **options))
        assert found.total_variation < 1e-12
        assert abs(found.kl) < 1e-12
        assert found.success == pytest.approx(1, abs=1e-12)
        last_look = name == "edit" and "edit" not in options  # at what is written
        assert found.nfe == pytest.approx(4 + last_look)


@pytest.mark.parametrize("name", sorted(set(ONE) - {"edit"}))
def test_its_order_does_not_use_samples(name, policy):
    """Other tokens drawn, the same places."""
    own = policy(name, 16, **({"score": "confidence"} if name == "topk" else {}))
    assert not own.order_depends_on_samples
    seen, other = random_view(2, torch.float64), random_view(2, torch.float64)
    other.sampled = (other.sampled + 1) % WORDS
    assert torch.equal(*(own.select(s, own.init(40, 19))[0].commit for s in (seen, other)))
